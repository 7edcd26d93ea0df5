"""Free energies of critical points, and where they cross.

Asymptotically the free energy -log Z of the neighbourhood of a critical point w* is (Chen et al.
2023, eq. (9))

    F_n = s n L(w*) + llc log n + c,   c = ||w*||^2 / (2 prior_std^2),

with s = 1 in the paper, which gives the published crossings. The posterior that the paper samples,
with observation noise of variance 1, has s = 1/2 (`halved`): compare sampled posteriors with that.
Other terms of order 1, such as the prior's constants, are left out. At a few hundred samples they
are several nats, so this formula does not reliably predict which phase is preferred.
"""

import math
from collections.abc import Mapping

import torch

from kgon.theory.critical import CriticalPoint


def prior_constant(point: CriticalPoint, *, prior_std: float = 1.0) -> float:
    """c = ||w*||^2 / (2 prior_std^2) of eq. (9).

    The loss does not depend on the exact bias of a column that is dead or switched off. This takes
    the value nearest to the prior's centre: 0 for a dead column, -l^2 for a live one.
    """
    square = point.W.square().sum()
    bias = torch.maximum(point.b, -point.W.square().sum(0))
    return float(square + bias.square().sum()) / (2 * prior_std**2)


def free_energy(
    point: CriticalPoint,
    n_samples: float,
    *,
    halved: bool = False,
    prior_std: float = 1.0,
    llc: Mapping[str, float] | None = None,
) -> float:
    """F_n of eq. (9), in nats (see the module docstring).

    Args:
        halved: the likelihood is exp(-n L_n / 2) instead of exp(-n L_n).
        prior_std: standard deviation of the prior.
        llc: learning coefficients by label, in place of `point.llc`. The paper's crossing of 4+ and
            5 uses {"4+": 5}.

    Raises:
        ValueError: n_samples is not positive, or the learning coefficient is not known.
    """
    if not 0 < n_samples < math.inf:
        raise ValueError(f"n_samples must be positive and finite, got {n_samples}")
    constant = prior_constant(point, prior_std=prior_std)
    likelihood = n_samples * point.loss * (0.5 if halved else 1.0)
    return likelihood + _llc(point, llc) * math.log(n_samples) + constant


def _llc(point: CriticalPoint, llc: Mapping[str, float] | None) -> float:
    value = (llc or {}).get(point.label, point.llc)
    if value is None:
        raise ValueError(
            f"theory gives no learning coefficient of {point.label!r}: pass "
            f"llc={{{point.label!r}: ...}}"
        )
    return float(value)


def critical_sample_size(
    alpha: CriticalPoint,
    beta: CriticalPoint,
    *,
    halved: bool = False,
    prior_std: float = 1.0,
    llc: Mapping[str, float] | None = None,
) -> float:
    """The n at which the free energies of two critical points cross, F_n(alpha) = F_n(beta).

    The critical point of smaller loss is preferred beyond this n. If it also has the larger
    learning coefficient, F_n(beta) - F_n(alpha) first rises and then falls with n; the result is
    the last crossing, on the falling branch. Published crossings (n_features = 6): 5 -> 6 at 601,
    4+ -> 5 at 381 with llc={"4+": 5}; halved, 5 -> 6 at 1316.

    Args:
        alpha, beta: two critical points of the same n_features, in any order.
        halved, prior_std, llc: as in `free_energy`.

    Returns:
        The crossing, not rounded; NaN if one critical point is preferred for all n >= 1.

    Raises:
        ValueError: n_features differ, or a learning coefficient is not known.
    """
    if alpha.n_features != beta.n_features:
        raise ValueError(
            f"alpha and beta must have the same n_features, got {alpha.n_features} and "
            f"{beta.n_features}"
        )
    if alpha.loss < beta.loss:
        alpha, beta = beta, alpha
    fall = (alpha.loss - beta.loss) * (0.5 if halved else 1.0)
    rise = _llc(beta, llc) - _llc(alpha, llc)
    constant = prior_constant(beta, prior_std=prior_std) - prior_constant(
        alpha, prior_std=prior_std
    )

    def excess(log_n: float) -> float:
        """F_n(beta) - F_n(alpha)."""
        return constant + rise * log_n - fall * math.exp(log_n)

    if fall == 0:
        log_n = -constant / rise if rise else math.nan
        return math.exp(log_n) if log_n >= 0 else math.nan
    # The excess is concave in log n: it falls beyond its maximum.
    top = max(math.log(rise / fall), 0.0) if rise > 0 else 0.0
    if excess(top) < 0:
        return math.nan
    low, high = top, top + 1.0
    while excess(high) > 0:
        low, high = high, high + 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.exp(low)
