"""Whether a loss is a function of its parameters, which every sampler relies on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_repeatable(loss: Callable[..., Tensor], params: Sequence[Tensor]) -> None:
    """ValueError if the loss of the same parameters differs from call to call, as with minibatches.

    A second place is tried because all minibatches may agree at a minimum.
    """
    for place in (params, [p + 0.01 for p in params]):
        one, other = loss(*place), loss(*place)
        # Sums over threads or on a GPU may be rounded in another order.
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-7, equal_nan=True):
            at = int((one - other).abs().argmax())
            raise ValueError(
                "loss differs from call to call: for the same parameters it returned "
                f"{float(one.flatten()[at]):g} and then {float(other.flatten()[at]):g}. Draw its "
                "random parts (minibatches, dropout, noise) once and keep them"
            )
