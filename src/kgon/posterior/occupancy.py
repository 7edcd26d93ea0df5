"""Phases of the posterior against the sample size: shares, learning coefficients, transitions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kgon.compiled.exact_loss import Descent
from kgon.posterior.labels import Labels
from kgon.posterior.smc import Posterior
from kgon.theory.intervals import widening
from kgon.theory.loss import Loss


def shares(
    posterior: Posterior, labels: Labels, by: str = "label"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Posterior probability of each phase that occurs, and its error (`Posterior.mean`), (*batch).

    `by` is as in `Labels.masks`.
    """
    return {phase: posterior.mean(where) for phase, where in labels.masks(by).items()}


def posterior_llc(
    posterior: Posterior, loss: Loss, quenched: Descent, where: Tensor
) -> tuple[Tensor, Tensor]:
    """n beta (E[L_n(w)] - L_n(w*)) over the draws of one phase, and its error, (*batch).

    n beta is the posterior's n_samples / (2 noise_std^2). w* is the critical point at which the
    quench of the draw ends: each draw has its own, because L_n is not invariant under permutations
    and so differs between the images of a critical point. On a finite sample w* does not minimise
    L_n, so a draw's excess loss may be negative. The error is that of `Posterior.mean_where`.

    Args:
        posterior: a sampled posterior, at any temperature.
        loss: L_n, the loss that it was sampled with.
        quenched: the quench of its draws.
        where: (n_particles, n_replicates, *batch), whether a draw is in the phase.
    """
    excess = posterior.loss - loss(quenched.W, quenched.b)
    mean, stderr = posterior.mean_where(excess, where)
    return posterior.strength * mean, posterior.strength * stderr


@dataclass(frozen=True, eq=False)
class Transition:
    """The odds of phase beta against alpha as the sample grows.

    Attributes:
        log_odds: (n_sizes, n_datasets), log P(beta) / P(alpha); NaN where neither occurs.
        crossing: (n_datasets), the n at which the odds pass through 1 towards beta for the last
            time, interpolated linearly; NaN if they do not within the sizes.
    """

    alpha: str
    beta: str
    log_odds: Tensor
    crossing: Tensor

    @property
    def crossed(self) -> float:
        """The share of data sets with a crossing."""
        return float(self.crossing.isfinite().double().mean())

    @property
    def n_crossed(self) -> int:
        """The number of data sets with a crossing."""
        return int(self.crossing.isfinite().sum())

    @property
    def location(self) -> tuple[float, float]:
        """Mean and standard deviation of the crossing over the data sets that cross."""
        found = self.crossing[self.crossing.isfinite()]
        if len(found) == 0:
            return math.nan, math.nan
        return float(found.mean()), float(found.std()) if len(found) > 1 else math.nan

    @property
    def error(self) -> float:
        """The error of the mean crossing, with Student's factor (`widening`) for n_crossed - 1
        degrees of freedom; NaN if fewer than two data sets cross."""
        n = self.n_crossed
        return self.location[1] / math.sqrt(n) * float(widening(n - 1)) if n > 1 else math.nan


def bayesian_transitions(
    n_samples: Tensor, share: dict[str, Tensor], n_draws: int
) -> list[Transition]:
    """The odds of each ordered pair of phases against n, and where they pass through 1.

    Args:
        n_samples: (n_sizes), ascending.
        share: the posterior probability of each phase, (n_sizes, n_datasets).
        n_draws: draws behind each share. A share of 0 counts as half a draw, so that the log odds
            are finite bounds. Pairs without any draw are left out.
    """
    n_samples = torch.as_tensor(n_samples, dtype=torch.float64)
    if n_samples.ndim != 1 or not bool((n_samples.diff() > 0).all()):
        raise ValueError(f"n_samples must be one ascending row of sizes, got {n_samples.tolist()}")
    for label, values in share.items():
        if values.ndim != 2 or len(values) != len(n_samples):
            raise ValueError(
                f"share[{label!r}] must be (n_sizes={len(n_samples)}, n_datasets), got shape "
                f"{tuple(values.shape)}"
            )
    out = []
    for alpha, of_alpha in share.items():
        for beta, of_beta in share.items():
            occurs = (of_alpha > 0) | (of_beta > 0)
            if alpha == beta or not bool(occurs.any()):
                continue
            after, before = (share.clamp(min=0.5 / n_draws).log() for share in (of_beta, of_alpha))
            log_odds = (after - before).where(occurs, math.nan)
            out.append(Transition(alpha, beta, log_odds, _last_rise(n_samples, log_odds)))
    return out


def _last_rise(x: Tensor, y: Tensor) -> Tensor:
    """Where y (n_sizes, n_datasets) last rises through 0, interpolated linearly in x; else NaN."""
    rises = (y[:-1] < 0) & (y[1:] >= 0)
    place = torch.arange(1, len(x)).unsqueeze(-1)
    last = (rises * place).amax(0) if len(x) > 1 else torch.zeros(y.shape[1], dtype=torch.int64)
    low, high = (last - 1).clamp(min=0).unsqueeze(0), last.unsqueeze(0)
    y_low, y_high = y.gather(0, low)[0], y.gather(0, high)[0]
    crossing = x[low[0]] - y_low * (x[high[0]] - x[low[0]]) / (y_high - y_low)
    return crossing.where(last > 0, math.nan)
