r"""The Bayesian posterior of the toy model by adaptive tempered sequential Monte Carlo.

Given n_samples inputs, observed with Gaussian noise, and a Gaussian prior on w = (W, b),

    p(w | data) = exp(-n_samples L_n(w) / (2 noise_std^2)) N(w; 0, prior_std^2 I) / Z,

with L_n the mean over samples of the squared error summed over coordinates (`theory.loss`).
noise_std = 1 halves the loss in the exponent; noise_std = sqrt(1/2) gives exp(-n L_n), the form of
the paper's free energies. Z is the evidence without the likelihood's constant
(2 pi noise_std^2)^(-n_samples n_features / 2).

Particles are drawn from the prior, and the likelihood is raised to a power beta that grows from 0
to 1 (Del Moral, Doucet and Jasra 2006). Each rung of this ladder
1. takes the largest beta at which the weights' effective sample size is a given share of the
   particles, and multiplies the estimate of the evidence by the mean weight,
2. resamples systematically,
3. moves the particles by Hamiltonian Monte Carlo, with a step size adapted to the acceptance, and
   by rotations of the hidden space and permutations of the features, both as Metropolis moves. For
   the losses of kgon every rotation is accepted; permutations depend on the data set.
No particle needs to cross between phases: the weights set the shares of phases at the temperatures
at which phases separate. So there is no start to choose, and the sampler also works where chains
would stay in the phase in which they started.

Shapes: parameters are W (n_particles, n_replicates, *batch, n_hidden, n_features) and b likewise;
*batch runs over the loss's data sets. A replicate is an independent run of the sampler, with its
own random stream; it does not depend on other replicates or data sets.

Errors come from the spread between replicates: standard errors times Student's factor for so few
values (`theory.intervals.widening`), so that two errors hold the true value 19 times out of 20. A
single replicate has no error (NaN). Errors leave out a bias of order 1 / n_particles that all
replicates share: with 64 to 256 particles and 8 replicates it is less than a third of an error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.posterior.hmc import TorchMover, mover
from kgon.posterior.tempering import Rung, Tempered, Tempering
from kgon.theory.intervals import widening
from kgon.theory.loss import DirectLoss, EmpiricalLoss, Loss
from kgon.theory.repeatable import check_repeatable

VERDICTS = ("ok", "unchecked", "unconverged", "diverged")

SPREAD = 0.5
"""Standard deviation of the replicates' log evidence above which they disagree. At this value the
share from one replicate is typically off by a factor of e^0.5."""
RHAT = 1.05
"""Largest R-hat of the loss between replicates (spread of their means against that within)."""
LEAST_ACCEPTANCE = 0.5
"""Mean acceptance of the last rung's trajectories below which the step size is not adapted."""
STUCK = 0.9
"""Correlation of a particle's loss before and after the last rung's moves above which the moves did
not renew the draws."""


@dataclass(frozen=True)
class Posterior:
    """Draws from the posterior of each data set, its evidence, and diagnostics.

    Attributes:
        W: draws (n_particles, n_replicates, *batch, n_hidden, n_features), of equal weight within a
            replicate; `weights` are those of the replicates.
        b: (n_particles, n_replicates, *batch, n_features).
        loss: (n_particles, n_replicates, *batch), the loss of each draw.
        log_evidence: (*batch), log Z, the log of the mean of the replicates' estimates of Z. The
            log of a mean is low by half its variance on average. That is at most about a twelfth of
            the error unless the replicates spread by more than SPREAD, so it is not corrected.
        log_evidence_stderr: (*batch), its error: the relative standard error of the mean of Z, with
            n_replicates - 1 degrees of freedom. NaN for one replicate.
        log_evidence_per_replicate: (n_replicates, *batch).
        strength: (*batch), n_samples / (2 noise_std^2), the factor of the loss.
        beta, ess, acceptance, permuted, refresh: (n_rungs, n_replicates, *batch), see
            `tempering.Rung`; NaN after a replicate's last rung.
        step: (n_replicates, *batch), the last rung's step size.
        rhat: (*batch), R-hat of the loss between replicates.
        verdict: (*batch), an index into VERDICTS; `verdicts` has the words.
    """

    W: Tensor
    b: Tensor
    loss: Tensor
    log_evidence: Tensor
    log_evidence_stderr: Tensor
    log_evidence_per_replicate: Tensor
    strength: Tensor
    beta: Tensor
    ess: Tensor
    acceptance: Tensor
    permuted: Tensor
    refresh: Tensor
    step: Tensor
    rhat: Tensor
    verdict: Tensor

    @property
    def verdicts(self) -> Any:
        """The verdicts in words, as a nested list over (*batch)."""
        return np.array(VERDICTS)[self.verdict.numpy()].tolist()

    @property
    def weights(self) -> Tensor:
        """The replicates' shares in the evidence, (n_replicates, *batch)."""
        return self.log_evidence_per_replicate.softmax(0)

    def mean(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean of f (n_particles, n_replicates, *batch) and its error, (*batch).

        The error is that of `combined`. A mean of booleans is a share, whose error is at least that
        of as many independent draws (`share_error`): few replicates often have equal counts of a
        rare event.
        """
        mean, error = combined(self.weights, f.double().mean(0))
        if f.dtype == torch.bool:
            n_effective = len(f) / self.weights.square().sum(0)
            error = torch.maximum(error, share_error(mean, n_effective))
        return mean, error

    def mean_where(self, f: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean of f over the draws with `where`, and its error (`combined`), (*batch).

        f and `where` are (n_particles, n_replicates, *batch). The results are NaN where no draw
        qualifies.
        """
        share = self.weights * where.double().mean(0)
        part = (f * where).sum(0) / where.sum(0)
        return combined(share / share.sum(0), part.where(where.any(0), 0.0))


def combined(weight: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weighted mean of the replicates' parts (n_replicates, *batch) and its error, (*batch).

    With weights v_r that sum to 1 and m = sum_r v_r m_r,

        error^2 = widening(k - 1)^2 sum_r v_r^2 (m_r - m)^2 / (1 - 2 sum v^3 / sum v^2 + sum v^2).

    The sum is the delta method's for a ratio of means. The denominator, 1 - 1/n for n equal
    weights, makes it unbiased for parts of equal variance, whatever the weights. k = 1 / sum v^2 is
    the effective number of replicates (Kish), k - 1 the degrees of freedom. The error is NaN where
    fewer than two replicates have weight.
    """
    mean = (weight * part).sum(0)
    square = weight.square()
    concentration = square.sum(0)
    # 1 - 2 v_r + sum v^2, without differences of nearly equal numbers.
    others = 1 - torch.eye(len(weight), dtype=torch.float64)
    kept = torch.tensordot(others, weight, 1).square() + torch.tensordot(others, square, 1)
    variance = (square * (part - mean).square()).sum(0) * concentration / (square * kept).sum(0)
    error = variance.sqrt() * widening(1 / concentration - 1)
    return mean, error.where((weight > 0).sum(0) > 1, math.nan)


def share_error(share: Tensor, n_draws: float | Tensor) -> Tensor:
    """Error of a share among independent draws, a lower bound for dependent draws.

    It is the binomial error, except that at a share of 0 or 1 two errors are 3 / n_draws: if
    n_draws draws miss an event, its probability is below that with 95% confidence.
    """
    return (share * (1 - share) / n_draws + (1.5 / n_draws) ** 2).sqrt()


def sample_posterior(
    loss: Loss | Callable[[Tensor, Tensor], Tensor] | Tensor,
    *,
    n_samples: float | Tensor | None = None,
    n_features: int | None = None,
    n_hidden: int = 2,
    noise_std: float = 1.0,
    prior_std: float = 1.0,
    n_particles: int = 1024,
    n_replicates: int = 4,
    seed: int | streams.Keys = 0,
    ess: float = 0.6,
    n_moves: int = 8,
    n_leapfrog: int = 10,
    target_acceptance: float = 0.85,
) -> Posterior:
    """Sample the posterior of every data set of a loss, and estimate its evidence.

    Args:
        loss: a loss of kgon with any batch of data sets; or single-feature inputs x
            (*batch, n_samples, n_features), for their `EmpiricalLoss`; or any function that maps
            stacked (W, b) to one value each. The exact losses (population and empirical, float64 on
            a CPU) run in a compiled loop.
        n_samples: the factor of the loss; by default the size of the loss's sample. A tensor
            (*batch) gives each data set its own, or, for a loss without data, makes a batch.
        n_features: needed only if the loss has no attribute n_features.
        noise_std: standard deviation of the observation noise.
        prior_std: standard deviation of the prior on every entry of W and b.
        n_particles: particles of each replicate.
        n_replicates: independent runs; an error needs at least two.
        seed: an integer, or stream keys (*batch), one for each data set.
        ess: share of the particles that stays effective from rung to rung. The nearer it is to 1,
            the longer the ladder.
        n_moves: trajectories of each particle at each rung.
        n_leapfrog: leapfrog steps of a trajectory.
        target_acceptance: acceptance to which the step size is adapted.

    Returns:
        The draws and their diagnostics. A data set's verdict is the first of these that applies:
        *diverged*: a log evidence is not finite: the loss was NaN, or infinite almost everywhere;
        *unconverged*: the replicates' log evidences spread by more than SPREAD, their losses have
        an R-hat above RHAT, or in some replicate the last rung's acceptance is below
        LEAST_ACCEPTANCE or its `refresh` above STUCK;
        *unchecked*: there is only one replicate, so spread and R-hat could not be checked;
        *ok*: none of these.

    Raises:
        ValueError: an argument is out of range or missing, or the loss has a wrong shape.
    """
    if isinstance(loss, Tensor):
        loss = EmpiricalLoss(loss)
    for name, value in {
        "noise_std": noise_std, "prior_std": prior_std, "n_particles": n_particles,
        "n_replicates": n_replicates, "n_moves": n_moves, "n_leapfrog": n_leapfrog,
        "n_hidden": n_hidden,
    }.items():  # fmt: skip
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if n_particles < 2:
        raise ValueError(f"n_particles must be at least 2, got {n_particles}")
    for name, share in {"ess": ess, "target_acceptance": target_acceptance}.items():
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {share}")
    # If the caller is in inference mode, leave it: it allows no gradients.
    with torch.inference_mode(False), torch.no_grad():
        n_features = _n_features(loss, n_features)
        strength, batch = _strength(loss, n_samples, noise_std)
        moves = mover(loss, (n_replicates, *batch), n_features)
        if isinstance(moves, TorchMover):
            n_runs = n_replicates * math.prod(batch)
            W = torch.full((1, n_runs, n_hidden, n_features), 0.5, dtype=torch.float64)
            check_repeatable(moves.value, (W, W[..., 0, :]))
        tempering = Tempering(
            mover=moves,
            strength=strength.reshape(-1).repeat(n_replicates),
            prior_std=prior_std,
            keys=_keys(seed, batch, n_replicates),
            n_particles=n_particles,
            n_hidden=n_hidden,
            n_features=n_features,
            ess=ess,
            n_moves=n_moves,
            n_leapfrog=n_leapfrog,
            target_acceptance=target_acceptance,
        )
        return _summarise(tempering.sample(), strength, (n_replicates, *batch))


def _n_features(loss: Any, n_features: int | None) -> int:
    known = getattr(loss, "n_features", None)
    if known is None and n_features is None:
        raise ValueError("this loss has no attribute n_features: pass n_features")
    if known is not None and n_features not in (None, known):
        raise ValueError(f"n_features={n_features}, but the loss's data have {known}")
    size = int(known or n_features or 0)
    if size < 1:
        raise ValueError(f"n_features must be at least 1, got {size}")
    return size


def _strength(
    loss: Any, n_samples: float | Tensor | None, noise_std: float
) -> tuple[Tensor, tuple[int, ...]]:
    """n_samples / (2 noise_std^2) over (*batch), and the batch."""
    if n_samples is None:
        n_samples = getattr(loss, "n_samples", None)
    if n_samples is None:
        raise ValueError("this loss has no attribute n_samples: pass n_samples")
    n = torch.as_tensor(n_samples, dtype=torch.float64)
    if not bool(((n >= 0) & n.isfinite()).all()):
        raise ValueError(f"n_samples must be >= 0 and finite, got {n_samples}")
    data: tuple[int, ...] = ()
    if isinstance(loss, EmpiricalLoss):
        data = tuple(loss.moments.sorted.shape[:-2])
    elif isinstance(loss, DirectLoss):
        data = tuple(loss.x.shape[:-2])
    elif getattr(loss, "importance", None) is not None:
        data = tuple(loss.importance.shape[:-1])
    batch = data or tuple(n.shape)
    try:
        n = n.expand(batch)
    except RuntimeError:
        raise ValueError(
            f"n_samples has shape {tuple(n.shape)}, the loss has data sets {batch}"
        ) from None
    return n / (2 * noise_std**2), batch


def _keys(seed: int | streams.Keys, batch: tuple[int, ...], n_replicates: int) -> streams.Keys:
    """The replicates' stream keys, (n_replicates * batch)."""
    keys = streams.seed_keys(seed, batch, "posterior")
    return np.ascontiguousarray(np.moveaxis(streams.subkeys(keys, n_replicates), -1, 0)).ravel()


def _summarise(result: Tempered, strength: Tensor, runs: tuple[int, ...]) -> Posterior:
    rungs = Rung(
        *(torch.stack(entries).reshape(-1, *runs) for entries in zip(*result.rungs, strict=True))
    )
    log_evidence = result.log_evidence.reshape(runs)
    value = result.loss.reshape(-1, *runs)
    n_particles, n_replicates = value.shape[:2]
    pooled = log_evidence.logsumexp(0) - math.log(n_replicates)
    if n_replicates > 1:
        spread = log_evidence.std(0)
        # From the estimates of Z, which are unbiased, not from their logs.
        stderr = (log_evidence - pooled).exp().std(0) / math.sqrt(n_replicates)
        stderr = stderr * widening(n_replicates - 1)
        within = value.var(0).mean(0)
        rhat = (1 - 1 / n_particles + value.mean(0).var(0) / within).sqrt()
    else:
        spread = stderr = rhat = torch.full_like(pooled, math.nan)
    last = rungs.beta == 1
    acceptance = torch.where(last, rungs.acceptance, 1.0).amin((0, 1))
    refresh = torch.where(last, rungs.refresh, 0.0).amax((0, 1))
    unconverged = (
        (spread > SPREAD) | (rhat > RHAT) | (acceptance < LEAST_ACCEPTANCE) | (refresh > STUCK)
    )
    verdict = torch.full(pooled.shape, 0 if n_replicates > 1 else 1)
    verdict = torch.where(unconverged, 2, verdict)
    verdict = torch.where(log_evidence.isfinite().all(0), verdict, 3)
    return Posterior(
        W=result.W.reshape(-1, *runs, *result.W.shape[-2:]),
        b=result.b.reshape(-1, *runs, result.b.shape[-1]),
        loss=value,
        log_evidence=pooled,
        log_evidence_stderr=stderr,
        log_evidence_per_replicate=log_evidence,
        strength=strength,
        step=result.step.reshape(runs),
        rhat=rhat,
        verdict=verdict,
        **rungs._asdict(),
    )
