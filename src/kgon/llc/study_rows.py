"""The rows that studies of learning coefficients return; tables have their fields as columns."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np

from kgon.llc.estimate import LLC
from kgon.llc.inputs import BUDGET, N_CHAINS, TARGET, check_settings

LossKind = Literal["population", "sample"]
"""The loss on which chains run: the expected loss, or that of a data set of n inputs."""


@dataclass(frozen=True)
class ChainSettings:
    """The settings of `estimate_llc` at one sample size.

    Attributes:
        nbeta: inverse temperature times n.
        localization: strength of the pull back to w*.
        n_chains: chains of each estimate.
        target: total error at which chains end, relative to the estimate or to 1.
        budget: most gradients of a chain.
        lr: step size as it was set; blank if it was adapted.
        n_draws: draws of each chain as they were set; blank if chains ran until the target.
        n_burnin: draws before these; blank if chains ran until the target.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    nbeta: float
    localization: float
    n_chains: int = N_CHAINS
    target: float = TARGET
    budget: int = BUDGET
    lr: float | None = None
    n_draws: int | None = None
    n_burnin: int | None = None

    def __post_init__(self) -> None:
        check_settings(**asdict(self))


@dataclass(frozen=True)
class Estimate:
    """One element of an `LLC`: its fields as numbers, the verdict in words.

    Attributes:
        llc: the estimate, nbeta (E[L] - L(w*)), mean over all draws.
        stderr: its total error, sampling_error + bias / 2.
        sampling_error: error from the finite number of draws.
        bias: the most that the step size may have shifted the estimate; 0 for HMC.
        variance: nbeta^2 Var L, which estimates the same coefficient without L(w*).
        variance_error: its total error.
        rhat: rank-normalised split R-hat, the larger of those of the loss and of |w - w*|^2.
        ess: bulk effective number of draws, all chains together.
        below: share of draws below L(w*) by more than chance explains.
        acceptance: mean Metropolis acceptance; NaN for samplers without one.
        kept: number of chains kept.
        step_size: lr of SGLD, or the length of a leapfrog step.
        draws: draws of each chain that count.
        gradients: gradients that each chain took, warm-up included.
        verdict: ok, unconverged, escaped, biased, diverged or unchecked.
        reason: what the verdict rests on; empty if it is ok.
    """

    llc: float
    stderr: float
    sampling_error: float
    bias: float
    variance: float
    variance_error: float
    rhat: float
    ess: float
    below: float
    acceptance: float
    kept: int
    step_size: float
    draws: int
    gradients: int
    verdict: str
    reason: str


@dataclass(frozen=True)
class _AtCriticalPoint:
    """Where an estimate is, and what it should be.

    Attributes:
        label: label of the critical point.
        n_samples: n, the sample size.
        theory: learning coefficient by theory; blank where there is none.
    """

    label: str
    n_samples: int
    theory: float | None


@dataclass(frozen=True)
class CriticalPointEstimate(_AtCriticalPoint):
    """An estimate at a critical point beside theory and, at n_features = 6, published values.

    Attributes:
        published: estimate by others; blank where none is known.
        published_spread: spread that they state.
        source: where it is published.
        exact: the expectation at the same nbeta and localization by Hamiltonian Monte Carlo, which
            has no step bias; blank if the estimate is that itself.
        exact_stderr: error of `exact`.
        exact_verdict: verdict on `exact`.
        loss: whether chains run on the loss of a data set (sample) or on the expected one
            (population).
        kind: minimum, saddle, or non-smooth where there is no Hessian.
    """

    published: float | None
    published_spread: float | None
    source: str | None
    exact: float | None
    exact_stderr: float | None
    exact_verdict: str | None
    estimate: Estimate
    chains: ChainSettings
    loss: LossKind
    kind: str


@dataclass(frozen=True)
class SnapshotEstimate:
    """An estimate at a member's weights at one training step.

    Attributes:
        step (SGD steps): step of training.
        member: number of the member.
        phase: its phase, by geometry.
        theory: learning coefficient of that phase by theory; blank where there is none.
        loss: whether chains run on the loss of a data set (sample) or on the expected one
            (population).
    """

    step: int
    member: int
    phase: str
    theory: float | None
    estimate: Estimate
    chains: ChainSettings
    loss: LossKind


@dataclass(frozen=True)
class GridEstimate(_AtCriticalPoint):
    """An estimate at one setting of a grid.

    Attributes:
        chosen: whether `kgon.llc.calibration` chose this setting.
    """

    chains: ChainSettings
    estimate: Estimate
    chosen: bool


@dataclass(frozen=True)
class ChosenEstimate(_AtCriticalPoint):
    """The estimate at the chosen setting of a grid; blank where no estimate is ok."""

    chains: ChainSettings | None
    estimate: Estimate | None


def estimates(estimate: LLC) -> Iterator[Estimate]:
    """The elements of an `LLC`, in the order of its flattened batch."""
    source = {"llc": "mean", "step_size": "step", "verdict": "verdicts", "reason": "reasons"}
    columns = {f.name: getattr(estimate, source.get(f.name, f.name)) for f in fields(Estimate)}
    for row in zip(
        *(np.asarray(values).ravel().tolist() for values in columns.values()), strict=True
    ):
        yield Estimate(**dict(zip(columns, row, strict=True)))
