"""Errors of means of few values."""

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor


def widening(degrees: float | Tensor) -> Tensor:
    """Student's 97.5% quantile over two.

    A mean's standard error from so many degrees of freedom, times this, is an error of which two
    hold the true mean 19 times out of 20 if the values are normal. It is 0.98 for many degrees of
    freedom, 1.6 for three and 6.4 for one.

    Args:
        degrees: degrees of freedom, at least 1 (fewer count as 1).
    """
    at_least_one = torch.as_tensor(degrees, dtype=torch.float64).clamp(min=1.0)
    return torch.from_numpy(np.asarray(stdtrit(at_least_one.numpy(), 0.975))) / 2
