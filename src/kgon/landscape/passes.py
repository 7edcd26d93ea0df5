"""Passes: the transition states between phases, and the transitions of training that take them.

From a saddle of index 1, gradient flow along the unstable direction leads down on both sides. This
pass joins the phases at the two ends; its barrier from each is the difference of the losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.compiled.exact_loss import descent
from kgon.landscape.search import DESCENT_SLOPE, DESCENT_STEPS, alignment, match
from kgon.theory.atlas import Atlas
from kgon.theory.critical import CriticalPoint, hessian
from kgon.theory.loss import PopulationLoss
from kgon.theory.phases import OTHER, phase_codes, phase_labels
from kgon.theory.shapes import without_inert

DISPLACEMENT = 1e-3
"""Distance from the saddle at which gradient flow starts."""
_FITS = 3
"""How often `distances` fits a path, each time from the nearest point of the last fit."""
ASIDE = 1e-3
"""Standard deviation of a random displacement of the end of a flow, from where the flow goes on. A
flow in a symmetric subspace can end at another saddle, which is stable within that subspace."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A transition state and the phases on its two sides.

    Attributes:
        point: the saddle of index 1.
        ends: the labels of the phases, the one of higher loss first; "" for an end that is not in
            the atlas.
        barriers: the saddle's loss minus that of each end.
    """

    point: CriticalPoint
    ends: tuple[str, str]
    barriers: tuple[float, float]


def passes(atlas: Atlas) -> list[Pass]:
    """All passes of an atlas, in order of loss."""
    saddles = [point for point in atlas if point.index == 1]
    if not saddles:
        return []
    W, b = torch.stack([p.W for p in saddles]), torch.stack([p.b for p in saddles])
    down = torch.linalg.eigh(hessian(PopulationLoss(), W, b)).eigenvectors[..., 0]
    n = b.shape[-1]
    step = DISPLACEMENT * torch.stack([down, -down])
    end_W = (W + step[..., :-n].reshape(2, *W.shape)).flatten(0, 1)
    end_b = (b + step[..., -n:]).flatten(0, 1)
    rng = torch.Generator().manual_seed(0)
    for aside in (0.0, ASIDE, ASIDE):
        end_W, end_b = (
            x + aside * torch.randn(x.shape, generator=rng).double() for x in (end_W, end_b)
        )
        end_W, end_b, loss, _ = descent(end_W, end_b, DESCENT_SLOPE, DESCENT_STEPS)
    loss = loss.view(2, -1)
    labels = match(end_W, end_b, torch.zeros(len(end_b), dtype=torch.bool), atlas)
    found = []
    for i, saddle in enumerate(saddles):
        sides = [(float(loss[side, i]), labels[side * len(saddles) + i]) for side in (0, 1)]
        (high, first), (low, second) = sorted(sides, reverse=True)
        found.append(Pass(saddle, (first, second), (saddle.loss - high, saddle.loss - low)))
    return found


@dataclass(frozen=True)
class Crossing:
    """A transition of a training run from one phase to another, and the pass that it took.

    Attributes:
        member: number of the member.
        start: phase before; snapshots between the two are at no phase.
        end: phase after.
        left (SGD steps): step of the last snapshot in `start`.
        arrived (SGD steps): step of the first snapshot in `end`.
        way: label of the pass joining the two phases to which the run came closest; empty where
            the atlas has none.
        distance (norm of the pass): least distance between the run and the pass (`distances`) while
            the run is in one of the two phases or between them; blank without a pass.
        nearest (SGD steps): step of that distance; blank without a pass.
    """

    member: int
    start: str
    end: str
    left: int
    arrived: int
    way: str
    distance: float | None
    nearest: int | None


def crossings(steps: Tensor, W: Tensor, b: Tensor, ways: Sequence[Pass]) -> list[Crossing]:
    """The transitions of an ensemble between snapshots, and how close each came to a pass.

    Args:
        steps: (n_snapshots,).
        W: (n_snapshots, n_members, n_hidden, n_features).
        b: (n_snapshots, n_members, n_features).
    """
    labels = np.array(phase_labels(b.shape[-1], W.shape[-2]))[phase_codes(W, b).numpy()]
    found = []
    for member in range(b.shape[1]):
        for one, other in pairwise(_stays(labels[:, member])):
            start, end = labels[one[0], member], labels[other[0], member]
            during = slice(one[0], other[-1] + 1)
            path = W[during, member].double(), b[during, member].double()
            near = []
            for point in (way.point for way in ways if set(way.ends) == {start, end}):
                away = distances(point, *path, one[-1] - one[0])
                step = int(steps[during][away.argmin()])
                near.append((float(away.min()), step, point.label))
            least, at, way = min(near, default=(None, None, ""))
            left, arrived = int(steps[one[-1]]), int(steps[other[0]])
            found.append(Crossing(member, str(start), str(end), left, arrived, way, least, at))
    return found


def _stays(labels: NDArray[Any]) -> list[list[int]]:
    """The snapshots of each stay in a phase, in order; those in no phase are left out."""
    named = [i for i, label in enumerate(labels) if label != OTHER]
    return [list(stay) for _, stay in groupby(named, key=lambda i: labels[i])]


def distances(point: CriticalPoint, W: Tensor, b: Tensor, start: int = 0) -> Tensor:
    """The distance of each point of a path from a critical point, relative to the point's norm.

    It is Euclidean in (W, b), with each point of the path rotated and permuted to fit. Inert
    columns are set to zero; the bias of an output that is never positive does not matter, and is
    raised to the value above which it would. The fit at the path's point `start` is sought from
    many rotations, that at other points from the neighbour's fit. This is repeated from the point
    found nearest.

    Args:
        W: (n_points, n_hidden, n_features).
        b: (n_points, n_features).
    """
    at = _raised(point.W, point.b)
    V, c = _raised(W, b)
    least = torch.full_like(b[:, 0], torch.inf)
    for _ in range(_FITS):
        first = alignment(at, (V[start], c[start]), n_starts=20)
        for way in (range(start, len(b)), range(start, -1, -1)):
            turn, order = first
            for i in way:
                again, step = alignment(at, (turn @ V[i][:, order], c[i][order]))
                turn, order = again @ turn, order[step]
                square = (turn @ V[i][:, order] - at[0]).square().sum()
                square = square + (c[i][order] - at[1]).square().sum()
                least[i] = torch.minimum(least[i], square)
        start = int(least.argmin())
    return (least / (at[0].square().sum() + at[1].square().sum())).sqrt()


def _raised(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    W, b = without_inert(W, b)
    return W, torch.maximum(b, -(W.mT @ W).amax(-1).clamp(min=0))
