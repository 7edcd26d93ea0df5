"""Initial parameters; every member has its own random stream."""

from collections.abc import Callable

import torch
from torch import Tensor

from kgon import streams
from kgon.theory.atlas import point

Init = Callable[[streams.Keys, int, int], tuple[Tensor, Tensor]]
"""Makes W (n_members, n_hidden, n_features) and b (n_members, n_features), float64, from a stream
for each member, n_hidden and n_features."""


def _check_std(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"init.{name} is a standard deviation and must be >= 0, got {value}")


def _normal_parameters(keys: streams.Keys, m: int, n: int) -> tuple[Tensor, Tensor]:
    z = torch.empty(len(keys), m * n + n, dtype=torch.float64)
    streams.normals(keys, 0, z.numpy())
    return z[:, : m * n].reshape(-1, m, n), z[:, m * n :]


class KGon:
    """A critical point plus noise: the paper starts at 4-gons (Sec. 5).

    W is the critical point's plus N(0, noise^2). Biases are N(0, bias_std^2), or, if bias_std is
    None, the critical point's plus N(0, noise^2).
    """

    def __init__(self, label: str | int, noise: float, bias_std: float | None):
        _check_std("noise", noise)
        if bias_std is not None:
            _check_std("bias_std", bias_std)
        self.label = str(label)
        self.noise = noise
        self.bias_std = bias_std

    def __call__(self, keys: streams.Keys, n_hidden: int, n_features: int) -> tuple[Tensor, Tensor]:
        try:
            start = point(self.label, n_features, n_hidden)
        except ValueError as error:
            raise ValueError(f"init.label: {error} (or use init=normal)") from None
        W, b = _normal_parameters(keys, n_hidden, n_features)
        W = start.W + self.noise * W
        return W, start.b + self.noise * b if self.bias_std is None else self.bias_std * b


class Normal:
    """Independent normal parameters: W of standard deviation std, b of bias_std."""

    def __init__(self, std: float, bias_std: float):
        _check_std("std", std)
        _check_std("bias_std", bias_std)
        self.std = std
        self.bias_std = bias_std

    def __call__(self, keys: streams.Keys, n_hidden: int, n_features: int) -> tuple[Tensor, Tensor]:
        W, b = _normal_parameters(keys, n_hidden, n_features)
        return self.std * W, self.bias_std * b
