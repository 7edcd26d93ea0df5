"""Learning coefficients at critical points, over grids of settings, and along training.

Each study estimates all of its w* as one stack and returns a record for each estimate. The noise at
a critical point or snapshot does not depend on which others are estimated with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon import streams
from kgon.data import SingleFeature, draw
from kgon.llc.calibration import Calibration, calibrate
from kgon.llc.estimate import estimate_llc
from kgon.llc.hmc import HMC
from kgon.llc.langevin import SamplerFactory
from kgon.llc.published import PUBLISHED
from kgon.llc.study_rows import (
    ChainSettings,
    ChosenEstimate,
    CriticalPointEstimate,
    Estimate,
    GridEstimate,
    LossKind,
    SnapshotEstimate,
    estimates,
)
from kgon.theory.critical import CriticalPoint
from kgon.theory.loss import EmpiricalLoss, Loss, PopulationLoss
from kgon.theory.phases import phase_codes, phase_labels


@dataclass(frozen=True)
class CalibratedPoint:
    """The grid of one critical point at one sample size.

    Attributes:
        point: the critical point.
        n_samples: the sample size.
        grid: an estimate for each setting.
        calibration: the grid's values and all estimates, for every critical point.
        place: the critical point's place on the batch axis of `calibration`.
    """

    point: CriticalPoint
    n_samples: int
    grid: list[GridEstimate]
    calibration: Calibration
    place: int

    @property
    def chosen(self) -> ChosenEstimate:
        """The setting to use, and the estimate there."""
        found = next((estimate for estimate in self.grid if estimate.chosen), None)
        return ChosenEstimate(
            self.point.label, self.n_samples, self.point.llc,
            found.chains if found else None, found.estimate if found else None,
        )  # fmt: skip


def at_critical_points(
    points: Sequence[CriticalPoint],
    settings: Mapping[int, ChainSettings],
    *,
    loss: LossKind,
    seed: int,
    sampler: SamplerFactory | HMC,
    discard: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[CriticalPointEstimate]:
    """Estimates at critical points of one n_features, for each sample size.

    Args:
        points: the critical points w*.
        settings: of the chains, by sample size.
        loss: which loss the chains run on. All w* share the data set of a sample size.
        seed: of the data sets and the chains.
        discard, sampler: as in `estimate_llc`.
        dtype: of the chains.
    """
    W, b = _stacked(points, dtype)
    records = []
    for n, chains in settings.items():
        function, keys = _loss(loss, n, points[0].n_features, seed), _keys(points, seed)
        estimate = estimate_llc(
            function, W, b, **asdict(chains), seed=keys, discard=discard, sampler=sampler
        )
        exact: Iterable[Estimate | None] = [None] * len(points)
        if not isinstance(sampler, HMC):
            exact = estimates(
                estimate_llc(
                    function,
                    W.double(),
                    b.double(),
                    nbeta=chains.nbeta,
                    localization=chains.localization,
                    seed=keys,
                )
            )
        for point, each, other in zip(points, estimates(estimate), exact, strict=True):
            known = PUBLISHED.get((point.label, n)) if point.n_features == 6 else None
            records.append(
                CriticalPointEstimate(
                    label=point.label,
                    n_samples=n,
                    theory=point.llc,
                    published=known and known.value,
                    published_spread=known and known.spread,
                    source=known and known.source,
                    exact=other.llc if other else None,
                    exact_stderr=other.stderr if other else None,
                    exact_verdict=other.verdict if other else None,
                    estimate=each,
                    chains=chains,
                    loss=loss,
                    kind=point.kind,
                )
            )
    return records


def calibrated(
    points: Sequence[CriticalPoint],
    settings: Mapping[int, ChainSettings],
    *,
    localization: Sequence[float],
    nbeta_factors: Sequence[float],
    loss: LossKind,
    seed: int,
    sampler: SamplerFactory | HMC,
    dtype: torch.dtype = torch.float64,
) -> list[CalibratedPoint]:
    """Grids of settings at critical points, for each sample size (`kgon.llc.calibration`).

    Args:
        points, loss, seed, dtype, sampler: as in `at_critical_points`.
        settings: by sample size; their localization is not used.
        localization, nbeta_factors: the grid; the factors multiply nbeta.
    """
    W, b = _stacked(points, dtype)
    found = []
    for n, chains in settings.items():
        calibration = calibrate(
            _loss(loss, n, points[0].n_features, seed), W, b,
            localization=localization, nbeta=[chains.nbeta * factor for factor in nbeta_factors],
            n_chains=chains.n_chains, target=chains.target, budget=chains.budget,
            seed=_keys(points, seed), sampler=sampler,
        )  # fmt: skip
        grids: list[list[GridEstimate]] = [[] for _ in points]
        places = np.ndindex(*calibration.estimate.mean.shape)
        for (i, j, at), each in zip(places, estimates(calibration.estimate), strict=True):
            grids[at].append(
                GridEstimate(
                    label=points[at].label,
                    n_samples=n,
                    theory=points[at].llc,
                    chains=replace(
                        chains, localization=calibration.localization[i], nbeta=calibration.nbeta[j]
                    ),
                    estimate=each,
                    chosen=[i, j] == calibration.chosen[at].tolist(),
                )
            )
        found += [
            CalibratedPoint(point, n, grid, calibration, at)
            for at, (point, grid) in enumerate(zip(points, grids, strict=True))
        ]
    return found


def along_training(
    train_loss: Callable[..., Tensor],
    W: Tensor,
    b: Tensor,
    *,
    steps: Sequence[int],
    members: Sequence[int],
    points: Sequence[CriticalPoint],
    settings: ChainSettings,
    loss: LossKind,
    seed: int,
    sampler: SamplerFactory | HMC,
    discard: float | None = None,
) -> list[SnapshotEstimate]:
    """Estimates at the snapshots of a training run, those of diverged members left out.

    Args:
        train_loss: maps stacked W and b to one value for each member, of its own data or expected.
        W: (n_snapshots, n_members, n_hidden, n_features).
        b: (n_snapshots, n_members, n_features).
        steps: (n_snapshots), the training steps.
        members: (n_members), the members' numbers.
        points: the critical points whose learning coefficients are the theory of the phases.
        settings: of the chains.
        loss: which of the two `train_loss` is, for the record.
        seed: of the chains.
        discard, sampler: as in `estimate_llc`.
    """
    alive = W.isfinite().all(-1).all(-1) & b.isfinite().all(-1)
    # A diverged member stays in the stack with weights of 0, and its estimate is dropped.
    W = W.where(alive[..., None, None], 0.0)
    b = b.where(alive[..., None], 0.0)
    keys = np.stack([streams.member_keys(seed, members, f"llc {step}") for step in steps])
    estimate = estimate_llc(
        train_loss, W, b, **asdict(settings), seed=keys, discard=discard, sampler=sampler
    )
    phases: NDArray[Any] = np.array(phase_labels(b.shape[-1], W.shape[-2]))[
        phase_codes(W, b).numpy()
    ]
    theory = {point.label: point.llc for point in points}
    return [
        SnapshotEstimate(
            step=int(steps[i]),
            member=members[j],
            phase=str(phases[i, j]),
            theory=theory.get(str(phases[i, j])),
            estimate=each,
            chains=settings,
            loss=loss,
        )
        for (i, j), each in zip(np.ndindex(*alive.shape), estimates(estimate), strict=True)
        if alive[i, j]
    ]


def _stacked(points: Sequence[CriticalPoint], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    return W.to(dtype), b.to(dtype)


def _keys(points: Sequence[CriticalPoint], seed: int) -> streams.Keys:
    """The stream key of each critical point's noise."""
    return np.concatenate(
        [streams.member_keys(seed, [0], f"llc {point.label}") for point in points]
    )


def _loss(kind: LossKind, n: int, n_features: int, seed: int) -> Loss:
    if kind == "population":
        return PopulationLoss()
    keys = streams.member_keys(seed, [0], f"data {n}")
    return EmpiricalLoss(draw(SingleFeature(n_features), keys, 0, n)[0])
