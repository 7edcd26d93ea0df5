"""Settings for learning coefficients: a grid over (lr, localization, nbeta) as one stack of chains.

An estimate can be trusted where it does not depend on the settings. Every setting of the grid has
its own chains, all with the same noise, so that differences between settings are not due to chance.
A setting is *admissible* at a w* if

1. its verdict is ok;
2. the mean Metropolis acceptance is at least ACCEPTANCE, so that the step is small enough (samplers
   other than plain SGLD have no acceptance; for them the other rules decide);
3. no larger lr that passes rule 2, all else equal, escapes: chains with a smaller lr would escape
   too if they ran as long, since n_draws steps of size lr cover a time of n_draws lr;
4. it is stable in lr: of its two neighbours in lr at least one passes rules 1 and 2, and each that
   does agrees with it within STABLE standard errors of the difference or a share SAME of the
   estimate.

The chosen setting is the admissible one with the first nbeta in the order given; of these, with the
smallest localization, which lowers the estimate least; of these, with the largest effective sample
size. If no setting is admissible, the grid gives no reliable estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.llc.estimate import LLC, VERDICTS, estimate_llc, loss_at
from kgon.llc.langevin import SGLD, SamplerFactory

ACCEPTANCE = 0.9
"""At a quadratic with curvature h in d directions, the chain's variance is too large by the factor
1 / (1 - s / 4) with s = lr nbeta h, and the logarithm of the acceptance ratio has a standard
deviation of about sqrt(d s^3 / 16). So an acceptance of 0.9 allows a bias of a tenth with 14 curved
directions (k-gons of 5 or 6 columns), and less where their curvatures differ."""

STABLE = 2.0
"""Standard errors of a difference; the common noise makes these too large rather than too small."""

SAME = 0.05
"""Relative difference that is tolerated: half of the bias that ACCEPTANCE allows."""


@dataclass(frozen=True)
class Calibration:
    """Estimates over a grid of settings, and the ones to use.

    Attributes:
        lr, localization, nbeta: the values of the grid, as given.
        estimate: fields over (n_lr, n_localization, n_nbeta, *batch).
        admissible: (n_lr, n_localization, n_nbeta, *batch), by the module's rules.
        chosen: (*batch, 3), indices into lr, localization and nbeta; -1 where none is admissible.
    """

    lr: list[float]
    localization: list[float]
    nbeta: list[float]
    estimate: LLC
    admissible: Tensor
    chosen: Tensor


def calibrate(
    loss: Callable[..., Tensor],
    *params: Tensor,
    lr: Sequence[float],
    localization: Sequence[float],
    nbeta: Sequence[float],
    n_chains: int,
    n_draws: int,
    n_burnin: int,
    seed: int | streams.Keys,
    sampler: SamplerFactory = SGLD,
) -> Calibration:
    """Estimate at every setting of the grid and choose among them.

    Args:
        loss, params, n_chains, n_draws, n_burnin, seed, sampler: as in `estimate_llc`; at each
            setting the chains are those of `estimate_llc` with the same seed.
        lr: step sizes, increasing; at least two, because an estimate has to be stable in lr.
        localization: strengths of the pull, increasing.
        nbeta: inverse temperatures times n, in order of preference.

    Raises:
        ValueError: a list of the grid is empty or not in order, or `estimate_llc` raises it.
    """
    grid = [list(map(float, values)) for values in (lr, localization, nbeta)]
    _check_grid(*grid)
    batch = loss_at(loss, params).shape
    shape = tuple(map(len, grid))
    axes = [
        torch.tensor(values, dtype=torch.float64).reshape(
            *[-1 if i == axis else 1 for i in range(3)]
        )
        for axis, values in enumerate(grid)
    ]
    steps, pulls, temperatures = (
        values.reshape(*values.shape, *[1] * len(batch)).expand(*shape, *batch) for values in axes
    )
    keys = streams.seed_keys(seed, batch, "llc")
    estimate = estimate_llc(
        loss,
        *(p.expand(*shape, *p.shape) for p in params),
        nbeta=temperatures,
        lr=steps,
        localization=pulls,
        n_chains=n_chains,
        n_draws=n_draws,
        n_burnin=n_burnin,
        seed=np.broadcast_to(keys, (*shape, *batch)).copy(),
        sampler=sampler,
    )
    admissible = _admissible(estimate)
    return Calibration(
        lr=grid[0],
        localization=grid[1],
        nbeta=grid[2],
        estimate=estimate,
        admissible=admissible,
        chosen=_choose(estimate, admissible),
    )


def _check_grid(lr: list[float], localization: list[float], nbeta: list[float]) -> None:
    for name, values in {"lr": lr, "localization": localization, "nbeta": nbeta}.items():
        if not values:
            raise ValueError(f"the calibration's grid has no {name}: give at least one value")
        if len(set(values)) < len(values):
            raise ValueError(f"the calibration's grid has a {name} twice: {values}")
    if localization != sorted(localization):
        raise ValueError(f"the calibration's localization must increase, got {localization}")
    if len(lr) < 2 or lr != sorted(lr):
        raise ValueError(
            f"the calibration's lr must be two or more increasing values, got {lr}: whether an "
            "estimate is stable in lr is judged from its neighbours"
        )


def _admissible(estimate: LLC) -> Tensor:
    ok = estimate.verdict == VERDICTS.index("ok")
    # The acceptance of anything but plain SGLD is NaN, which passes.
    accepted = ~(estimate.acceptance < ACCEPTANCE)
    lost = (estimate.verdict == VERDICTS.index("escaped")) & accepted
    lost_at_or_above = lost.flip(0).cumsum(0).flip(0) > 0
    error = (estimate.stderr[1:].square() + estimate.stderr[:-1].square()).sqrt()
    allowed = torch.maximum(STABLE * error, SAME * estimate.mean[:-1].abs())
    agree = (estimate.mean[1:] - estimate.mean[:-1]).abs() <= allowed
    sound = ok & accepted
    both = sound[1:] & sound[:-1]
    none = torch.zeros_like(ok[:1])
    # The pairs (i, i + 1), seen from their larger and from their smaller member.
    supported = torch.cat([none, both & agree]) | torch.cat([both & agree, none])
    contradicted = torch.cat([none, both & ~agree]) | torch.cat([both & ~agree, none])
    return sound & ~lost_at_or_above & supported & ~contradicted


def _choose(estimate: LLC, admissible: Tensor) -> Tensor:
    shape, batch = admissible.shape[:3], admissible.shape[3:]
    possible = admissible.reshape(*shape, -1).movedim(-1, 0)
    ess = estimate.ess.reshape(*shape, -1).movedim(-1, 0)
    chosen = torch.full((len(possible), 3), -1)
    for at, settings in enumerate(possible):
        candidates = settings.nonzero().tolist()
        if candidates:
            preference = [(k, j, -float(ess[at, i, j, k])) for i, j, k in candidates]
            chosen[at] = torch.tensor(candidates[preference.index(min(preference))])
    return chosen.reshape(*batch, 3)
