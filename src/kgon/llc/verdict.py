r"""From draws to an estimate with its error and a verdict.

The estimate at w* is the mean over draws of x = nbeta (L(w) - L(w*)). Its sampling error is the
larger of two: the draws' standard deviation over the square root of their effective number, and the
spread of the chains' means over the square root of the number of chains. Both are widened by
Student's factor (`kgon.theory.intervals`), so that two errors mean 95% for few chains too.

Plain SGLD samples another density than the target. For a Gaussian target of dimension d and
curvatures h_i, a step lr shifts the mean of x by about lr sum_i h_i / 8. The logarithm of the
acceptance ratio that a Metropolis correction would have had has the variance
s^2 = lr^3 sum_i h_i^3 / 16, and the mean acceptance is 2 Phi(-s / 2). By Hoelder's inequality

    bias <= d^(2/3) (16 s^2)^(1/3) / 8.

The bias stated here is 5/4 of this: terms of higher order in lr add to the bias, and a chain's own
steps, which start a little further out, are accepted a little more often. At acceptances above
ACCEPTANCE this is less than a quarter, as tests show. The bias is proportional to lr.

Chains that find losses below L(w*) have left for lower ground, and their estimate does not belong
to w*. But a data set's loss is a little lower near w* than at w* by chance: by about
chi^2_d / (2 n) for a regular model of n samples (Wilks), that is chi^2_d / (2 log n) in units of x.
Only draws further below than its 99.9% quantile count.

With thousands of parameters no draw is as low as that, though the mean of all may be far below 0.
At a minimum of the regular model it is not: in a direction of curvature h the sample's gradient is
h^(1/2) z n^(-1/2) with a normal z, and chains of any localization gamma have the mean

    E[x] = a / 2 - a (1 - a / 2) z^2 / log n >= a (1/2 - z^2 / log n),
    a = nbeta h / (nbeta h + gamma),

and until they have forgotten their start something between this and 0. A sum over directions is
negative by chance in few directions only: its 0.1% quantile is least where a is 1 in some k of them
and 0 in others (as for quadratic forms in normal variables: Szekely, Bakirov 2003), and is
k / 2 - chi^2_k(99.9%) / log n. A mean that is below the least of these by more than three errors
counts as a descent.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import chdtri
from torch import Tensor

from kgon.llc.convergence import convergence, diagnose, variance
from kgon.theory.intervals import widening

VERDICTS = ("ok", "unconverged", "escaped", "diverged", "biased", "unchecked")

BELOW = 0.05
"""Largest share of draws below L(w*) of an estimate that is ok (the paper's App. K)."""
RHAT = 1.1
"""Largest rank-normalised split R-hat of the loss and of the distance from w*. At 1.1 half a chain
holds about five effective draws. docs/coverage.md shows how often estimates within this limit and
the next are right."""
ESS = 40.0
"""Least effective number of draws."""
BIAS = 0.1
"""Largest step bias, relative to the estimate or to 1."""
ACCEPTANCE = 0.8
"""Least acceptance of SGLD at which its bias is still that of small steps."""
_SAFETY = 1.25
"""What the bound of the step bias is multiplied by (module docstring)."""
LOST_CHAINS = 0.5
"""Largest share of chains with draws that are not finite; these chains are left out."""

REASONS = {
    "": "ok",
    "step bias unknown": "unchecked",
    "error above target": "unconverged",
    "one chain": "unconverged",
    "few effective draws": "unconverged",
    "R-hat": "unconverged",
    "step too large": "biased",
    "noise of minibatches": "biased",
    "descent from w*": "escaped",
    "draws below L(w*)": "escaped",
    "draws not finite": "diverged",
}
"""What each reason leads to. The last one that holds gives the verdict."""


@dataclass(frozen=True)
class Draws:
    """Draws of chains at some points.

    Attributes:
        loss: (n_draws, n_chains, n_points); NaN where nothing was drawn.
        distance: squared distances |w - w*|^2, like loss.
        acceptance: mean acceptance, (n_chains, n_points); NaN where it is not known.
        noise: the most that noise of minibatch gradients shifts x, (n_chains, n_points); 0 for
            gradients of the whole sample (`kgon.llc.minibatches`).
        observed: values of observables, (n_draws, size, n_chains, n_points), where size may be 0.
    """

    loss: Tensor
    distance: Tensor
    acceptance: Tensor
    noise: Tensor
    observed: Tensor

    def after(self, first: int) -> "Draws":
        """Without the first draws."""
        return replace(
            self, loss=self.loss[first:], distance=self.distance[first:],
            observed=self.observed[first:],
        )  # fmt: skip

    def and_then(self, more: "Draws") -> "Draws":
        """With the draws that followed."""
        n, m = len(self.loss), len(more.loss)
        return Draws(
            torch.cat([self.loss, more.loss]),
            torch.cat([self.distance, more.distance]),
            (n * self.acceptance + m * more.acceptance) / (n + m),
            (n * self.noise + m * more.noise) / (n + m),
            torch.cat([self.observed, more.observed]),
        )

    def at(self, points: Tensor) -> "Draws":
        """Those of some points, a mask (n_points,)."""
        return Draws(*(getattr(self, each.name)[..., points] for each in fields(self)))


@dataclass(frozen=True)
class Premises:
    """What is known before anything is drawn.

    Attributes:
        nbeta: (n_points,).
        reference: L(w*), (n_points,).
        drop: how far the loss falls when w* is descended from, (n_points,).
        size: number of parameters.
        step_bias: whether the sampler has none ("none"), one that the acceptance bounds ("bounded")
            or one that is not known ("unknown").
        discard: largest share of draws below L(w*) of a chain that is kept; None keeps all.
    """

    nbeta: Tensor
    reference: Tensor
    drop: Tensor
    size: int
    step_bias: str
    discard: float | None

    def at(self, points: Tensor) -> "Premises":
        """Those of some points, a mask (n_points,)."""
        return Premises(
            self.nbeta[points], self.reference[points], self.drop[points],
            self.size, self.step_bias, self.discard,
        )  # fmt: skip

    @property
    def log_n(self) -> Tensor:
        """log n of nbeta = n / log n, (n_points,)."""
        log_n = torch.ones_like(self.nbeta)
        for _ in range(30):
            log_n = (self.nbeta * log_n).clamp(min=math.e).log()
        return log_n

    @property
    def chance(self) -> Tensor:
        """How far x lies below 0 by chance alone, (n_points,) (module docstring)."""
        return float(chdtri(self.size, 0.001)) / (2 * self.log_n)

    @property
    def chance_of_mean(self) -> Tensor:
        """How far the mean of x lies below 0 by chance alone, (n_points,) (module docstring)."""
        k = [2**i for i in range(self.size.bit_length())] + [self.size]
        k_directions = torch.tensor(k, dtype=torch.float64)[:, None]
        quantile = torch.from_numpy(chdtri(k_directions.numpy(), 0.001))
        return (quantile / self.log_n - k_directions / 2).amax(0)


@dataclass(frozen=True)
class Summary:
    """Estimates at some points, each field (n_points,) except per_chain (n_chains, n_points)."""

    mean: Tensor
    sampling_error: Tensor
    bias: Tensor
    noise: Tensor
    variance: Tensor
    variance_error: Tensor
    per_chain: Tensor
    rhat: Tensor
    ess: Tensor
    below: Tensor
    acceptance: Tensor
    kept: Tensor
    reason: Tensor

    @property
    def stderr(self) -> Tensor:
        """The total error: two of it hold the bias and two sampling errors."""
        return self.sampling_error + self.bias / 2

    def replace_at(self, points: Tensor, other: "Summary") -> None:
        """Replace in place what is said of some points, a mask (n_points,)."""
        for each in fields(self):
            getattr(self, each.name)[..., points] = getattr(other, each.name)


def verdict(reason: Tensor) -> Tensor:
    """Indices into VERDICTS of indices into REASONS."""
    return torch.tensor([VERDICTS.index(word) for word in REASONS.values()])[reason]


def words(codes: Tensor, names: Iterable[str]) -> NDArray[Any]:
    """Words for indices into names, an array of their shape."""
    return np.asarray(np.array(list(names), dtype=object)[codes.numpy()], dtype=object)


def summarise(draws: Draws, premises: Premises) -> Summary:
    """Estimates, errors, and the reason for each verdict."""
    x = premises.nbeta * (draws.loss - premises.reference)
    finite = x.isfinite().all(0)
    keep = kept_chains(draws, premises)
    kept = keep.sum(0)
    below = (x < -premises.chance).double().mean((0, 1))
    mean, error, rhat, ess, spread, spread_error, acceptance, noise = (
        torch.full_like(premises.reference, math.nan) for _ in range(8)
    )
    # Points that keep all chains are summarised together, others one by one.
    all_kept = kept == x.shape[1]
    groups = [(all_kept, torch.ones_like(keep[:, 0]))] if all_kept.any() else []
    for point in ((kept > 0) & ~all_kept).nonzero().flatten().tolist():
        groups.append((torch.arange(len(kept)) == point, keep[:, point]))
    for points, chains in groups:
        own = x[..., points][:, chains]
        of_loss = diagnose(own)
        of_distance = diagnose(draws.distance[..., points][:, chains])
        mean[points], error[points] = mean_and_error(own, of_loss.ess_mean)
        rhat[points] = torch.maximum(of_loss.rhat, of_distance.rhat)
        ess[points] = of_loss.ess_bulk
        square = (own - mean[points]).square()
        spread[points], spread_error[points] = mean_and_error(square, convergence(square)[1])
        acceptance[points] = draws.acceptance[:, points][chains].mean(0)
        noise[points] = _SAFETY * draws.noise[:, points][chains].mean(0)
    bias = torch.zeros_like(mean)
    if premises.step_bias == "bounded":
        bias = step_bias(acceptance, premises.size) + noise
    none = torch.zeros_like(all_kept)
    holds = {
        "step bias unknown": none | (premises.step_bias == "unknown"),
        "one chain": kept == 1,
        "few effective draws": ~(ess >= ESS),
        "R-hat": ~(rhat <= RHAT),
        "step too large": (bias > BIAS * mean.abs().clamp(min=1.0))
        | ((premises.step_bias == "bounded") & (acceptance < ACCEPTANCE)),
        "noise of minibatches": noise > BIAS * mean.abs().clamp(min=1.0),
        "descent from w*": (premises.nbeta * premises.drop > premises.chance)
        | (mean + 3 * error < -premises.chance_of_mean),
        "draws below L(w*)": (below > BELOW) | ((kept == 0) & finite.any(0)),
        "draws not finite": (~finite).double().mean(0) > LOST_CHAINS,
    }
    reason = torch.zeros_like(kept)
    for code, name in enumerate(REASONS):
        reason[holds.get(name, none)] = code
    # A step that shifts the mean by a share shifts the variance by twice that share.
    spread_error = spread_error + bias
    return Summary(
        mean, error, bias, noise, spread, spread_error, x.mean(0), rhat, ess, below, acceptance,
        kept, reason,
    )  # fmt: skip


def kept_chains(draws: Draws, premises: Premises) -> Tensor:
    """Whether each chain counts, (n_chains, n_points): its draws are finite, and not too many lie
    below L(w*)."""
    x = premises.nbeta * (draws.loss - premises.reference)
    finite = x.isfinite().all(0)
    if premises.discard is None:
        return finite
    return finite & ((x < 0).double().mean(0) <= premises.discard)  # the paper's rule


def mean_and_error(x: Tensor, ess: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of draws x (n_draws, n_chains, n_points), and half of its 95% interval's half-width.

    The error is NaN for a single chain, whose mean cannot be compared with another's.
    """
    _, n_chains, n_points = x.shape
    # As in `convergence`, so that an estimate does not depend on the others.
    x = x.permute(2, 1, 0).contiguous()
    flat = x.view(n_points, -1)
    mean = flat.mean(-1)
    if n_chains < 2:
        return mean, torch.full_like(mean, math.nan)
    within = (variance(flat) / ess).sqrt() * widening(ess - 1)
    between = (variance(x.mean(-1)) / n_chains).sqrt() * widening(n_chains - 1)
    return mean, torch.maximum(within, between)


def step_bias(acceptance: Tensor, size: int) -> Tensor:
    """Largest shift of the estimate by the step size, from the acceptance that a Metropolis
    correction would have (module docstring)."""
    bias: Tensor = (
        _SAFETY * (16 * ratio_spread(acceptance).square()) ** (1 / 3) * size ** (2 / 3) / 8
    )
    return bias


def smaller_step(step: Tensor, acceptance: Tensor, bias: Tensor, mean: Tensor) -> Tensor:
    """A step of SGLD that is small enough, for an estimate whose step is too large.

    The bias is proportional to the step. Large steps are accepted more often than the formula says,
    so the result is two thirds of what it gives.
    """
    enough = ratio_spread(torch.tensor(0.95, dtype=torch.float64)) / ratio_spread(acceptance)
    return step * torch.minimum(BIAS * mean.abs().clamp(min=1.0) / bias, enough ** (2 / 3)) * 2 / 3


def ratio_spread(acceptance: Tensor) -> Tensor:
    """The standard deviation s of the log acceptance ratio at a mean acceptance."""
    s: Tensor = -2 * torch.special.ndtri(acceptance.clamp(1e-12, 1.0) / 2)
    return s


def acceptance_for(bias: float, size: int) -> float:
    """The acceptance at which `step_bias` is this bias."""
    s = math.sqrt((8 * bias / _SAFETY / size ** (2 / 3)) ** 3 / 16)
    return float(2 * torch.special.ndtr(torch.tensor(-s / 2, dtype=torch.float64)))
