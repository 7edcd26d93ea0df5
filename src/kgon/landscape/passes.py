"""Passes: the transition states between phases, and the graph that they make.

From a saddle of index 1, gradient flow along the unstable direction leads down on both sides. The
phases at the two ends are joined by this pass, and its barrier from each is the difference of the
losses.
"""

from dataclasses import dataclass

import torch

from kgon.landscape.search import DESCENT_SLOPE, DESCENT_STEPS, descend, match
from kgon.theory.atlas import Atlas
from kgon.theory.critical import CriticalPoint, hessian
from kgon.theory.loss import PopulationLoss

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
        end_W, end_b, _ = descend(end_W, end_b, DESCENT_SLOPE, DESCENT_STEPS)
    loss = PopulationLoss()(end_W, end_b).view(2, -1)
    labels = match(end_W, end_b, torch.zeros(len(end_b), dtype=torch.bool), atlas)
    found = []
    for i, saddle in enumerate(saddles):
        sides = [(float(loss[side, i]), labels[side * len(saddles) + i]) for side in (0, 1)]
        (high, first), (low, second) = sorted(sides, reverse=True)
        found.append(Pass(saddle, (first, second), (saddle.loss - high, saddle.loss - low)))
    return found
