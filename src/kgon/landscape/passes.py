"""Passes: the transition states between phases, and the graph that they make.

From a saddle of index 1, gradient flow along the unstable direction leads down on both sides. The
phases at the two ends are joined by this pass, and its barrier from each is the difference of the
losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kgon.compiled.exact_loss import descent
from kgon.landscape.search import DESCENT_SLOPE, DESCENT_STEPS, fitted, match
from kgon.theory.atlas import Atlas
from kgon.theory.critical import CriticalPoint, hessian
from kgon.theory.loss import PopulationLoss
from kgon.theory.phases import OTHER, phase_codes, phase_labels
from kgon.theory.shapes import without_inert

DISPLACEMENT = 1e-3
"""Distance from the saddle at which gradient flow starts."""
ASIDE = 1e-3
"""Standard deviation of a random displacement of where a flow has ended, after which it goes on. A
flow in a symmetric subspace can end at another saddle, which attracts only what is symmetric."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A transition state and the phases on its two sides.

    Attributes:
        point: the saddle of index 1.
        ends: the labels of the phases, the one of higher loss first; "" for an end that is at no
            point of the atlas.
        barriers: the saddle's loss less that of each end.
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
        member: of the ensemble.
        start, end: the labels before and after; snapshots between them are at no phase.
        left, arrived: the steps of the last snapshot in `start` and the first one in `end`.
        way: the label of the pass that joins the two phases to which the run came closest, ""
            where the atlas has none.
        distance: the least distance between the run and the pass, relative to the pass's norm, of
            (W, b) up to rotations and permutations with inert columns at zero; None without one.
    """

    member: int
    start: str
    end: str
    left: int
    arrived: int
    way: str
    distance: float | None


def crossings(steps: Tensor, W: Tensor, b: Tensor, ways: Sequence[Pass]) -> list[Crossing]:
    """The transitions of an ensemble by its snapshots, and how close each came to a pass.

    Args:
        steps: (n_snapshots,).
        W: (n_snapshots, n_members, n_hidden, n_features).
        b: (n_snapshots, n_members, n_features).
    """
    labels = np.array(phase_labels(b.shape[-1], W.shape[-2]))[phase_codes(W, b).numpy()]
    found = []
    for member in range(b.shape[1]):
        named = [i for i, label in enumerate(labels[:, member]) if label != OTHER]
        for i, j in pairwise(named):
            start, end = labels[i, member], labels[j, member]
            if start == end:
                continue
            path = without_inert(W[i : j + 1, member].double(), b[i : j + 1, member].double())
            distances = {
                way.point.label: min(_distance(way.point, V, c) for V, c in zip(*path, strict=True))
                for way in ways
                if set(way.ends) == {start, end}
            }
            nearest = min(distances, key=distances.__getitem__, default="")
            found.append(
                Crossing(member, str(start), str(end), int(steps[i]), int(steps[j]), nearest,
                         distances.get(nearest))
            )  # fmt: skip
    return found


def _distance(point: CriticalPoint, W: Tensor, b: Tensor) -> float:
    """The distance of a parameter from a critical point, up to symmetry, relative to its norm."""
    at = without_inert(point.W, point.b)
    V, c = fitted(at, (W, b), n_starts=20)
    difference = (V - at[0]).square().sum() + (c - at[1]).square().sum()
    return float((difference / (at[0].square().sum() + at[1].square().sum())).sqrt())
