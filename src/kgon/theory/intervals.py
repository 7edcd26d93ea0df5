"""Errors of means of few values."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor


def widening(degrees: float | Tensor) -> Tensor:
    """Half of Student's 97.5% quantile, for so many degrees of freedom (fewer than 1 count as 1).

    Multiply a standard error by it: the mean plus or minus two such errors then holds the true mean
    19 times out of 20, if the values are normal. It is 0.98 for many degrees of freedom, 1.6 for
    three and 6.4 for one.
    """
    at_least_one = torch.as_tensor(degrees, dtype=torch.float64).clamp(min=1.0)
    return torch.from_numpy(np.asarray(stdtrit(at_least_one.numpy(), 0.975))) / 2


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """The mean of the finite values and its error; NaN where there are too few.

    The error is the standard error times Student's factor for so few values (`widening`).
    """
    finite = np.array([value for value in values if math.isfinite(value)])
    n = len(finite)
    error = finite.std(ddof=1) / math.sqrt(n) * widening(n - 1) if n > 1 else math.nan
    return (float(finite.mean()) if n else math.nan), float(error)
