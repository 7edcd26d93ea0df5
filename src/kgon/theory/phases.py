"""The phase of a parameter: which critical point's figure it draws, by geometry (n_hidden = 2).

A column i has a length l_i = ||W_i|| and an output f_i = l_i^2 + b_i on its own input e_i.

1. It is *on* if l_i > ON_LENGTH and f_i > ON_OUTPUT. Of the others, those with b_i > 0 are the
   `+` (sigma of them), the rest are off.
2. k is the number of columns that are on, sigma as counted. With n_features >= 4 and fewer than
   four on, it is a 4-gon of which phi = 4 - (columns on) are off, if as many columns are off.
3. The label stands if it names a critical point for this n_features, the columns that are on have
   lengths and gaps (angles to the next) about that point's, within LENGTH_TOLERANCE and
   GAP_TOLERANCE, and none of them answers to a feature that is off by more than OFF_OUTPUT. If
   not: `other`.

Off columns are not told apart by their length. Where an output is off and no other answers to it,
the loss does not depend on W_i or b_i: a 4-gon with a column switched off and three columns with a
fourth at zero lie on one flat piece of the loss, and so do all the dead columns that training
leaves at some length. The negative sign and the loss are what they share.

This uses lengths and angles between columns only: rotations, reflections and permutations do not
change it.
"""

import math
from functools import cache

import torch
from torch import Tensor

from kgon.theory.critical import CriticalPoint, critical_points

OTHER = "other"
"""The label of what is near no critical point."""

ON_LENGTH = 0.5
"""Least length of a column that is on. Half of the shortest live column (l = 1, 4-gons)."""

ON_OUTPUT = 0.2
"""Least output of a column on its own feature for which it is on. Critical points have at least
0.6 (1 for k < 12) there, and the columns that training leaves switched off at most 0; b_i has
room to move between."""

LENGTH_TOLERANCE = 0.5
"""Largest deviation of a live column from the critical length, relative. Wide, since training
walks slowly along a valley in which l_i grows and b_i falls at nearly constant f_i."""

GAP_TOLERANCE = 0.5
"""Largest deviation of the angle between neighbours from 2 pi / k, relative: half a gap, before
columns k and k + 1 could be taken for one another."""

OFF_OUTPUT = 0.5
"""Largest answer of a live column to a feature that is off, half of what it gives to its own."""


def phase_labels(n_features: int) -> tuple[str, ...]:
    """The labels that occur for n_features: the critical points' by loss, and `other`, last."""
    return (*(point.label for point in _points(n_features)), OTHER)


def phase_codes(W: Tensor, b: Tensor) -> Tensor:
    """The phase of each parameter as an index into `phase_labels(n_features)` (module docstring).

    Args:
        W: (*batch, n_hidden, n_features). Where n_hidden is not 2 all are `other`.
        b: (*batch, n_features).

    Returns:
        (*batch), int64. Parameters that are not finite are `other`.
    """
    if W.ndim < 2 or b.ndim < 1 or W.shape[:-2] + W.shape[-1:] != b.shape:
        raise ValueError(
            "W must be (*batch, n_hidden, n_features) and b (*batch, n_features), "
            f"got {tuple(W.shape)} and {tuple(b.shape)}"
        )
    n_features = b.shape[-1]
    points = _points(n_features)
    other = len(points)
    if W.shape[-2] != 2:
        return torch.full(b.shape[:-1], other, device=b.device)
    finite = W.isfinite().all(-2).all(-1) & b.isfinite().all(-1)
    W = torch.where(finite[..., None, None], W, 0.0)
    b = torch.where(finite.unsqueeze(-1), b, 0.0)

    length = W.norm(dim=-2)
    on = (length > ON_LENGTH) & (length.square() + b > ON_OUTPUT)
    positive = ~on & (b > 0)
    off = ~on & ~positive
    n_on, sigma = on.sum(-1), positive.sum(-1)
    k = n_on.clamp(min=4) if n_features >= 4 else n_on
    phi = k - n_on

    # At most n_features - 4 positive ones leave at least phi columns off, so the table decides.
    code = _code_table(n_features).to(b.device)[k, sigma, phi]
    lengths = torch.tensor([*(float(p.W[:, 0].norm()) for p in points), 1.0]).to(length)
    critical_length = lengths[code].unsqueeze(-1)
    long_enough = (length - critical_length).abs() <= LENGTH_TOLERANCE * critical_length
    answers = W.mT @ W + b.unsqueeze(-1)  # of output i to input e_j
    silent = ~(on.unsqueeze(-1) & off.unsqueeze(-2) & (answers > OFF_OUTPUT)).any(-1).any(-1)
    fits = finite & (long_enough | ~on).all(-1) & silent & _evenly_spread(W, on, k)
    return torch.where(fits, code, other)


def classify(W: Tensor, b: Tensor) -> list[str]:
    """The phase of each parameter as a label, "5+" or "other" (module docstring).

    Args:
        W: (*batch, n_hidden, n_features).
        b: (*batch, n_features).

    Returns:
        One label for each element of *batch, flattened row by row: a list of one label if there are
        no batch axes. `phase_codes` keeps the axes.
    """
    codes = phase_codes(W, b)
    labels = phase_labels(b.shape[-1])
    return [labels[code] for code in codes.flatten().tolist()]


def _evenly_spread(W: Tensor, on: Tensor, k: Tensor) -> Tensor:
    """Whether the gaps between neighbouring columns that are on are 2 pi / k, within tolerance.

    Where columns of the k-gon are off a gap may be wider by any amount.
    """
    n_on = on.sum(-1, keepdim=True)
    angle = torch.atan2(W[..., 1, :], W[..., 0, :])
    angle = torch.where(on, angle, torch.inf).sort(-1).values
    index = torch.arange(angle.shape[-1], device=angle.device)
    # The last one's next is the first, a turn on.
    following = torch.where(index + 1 < n_on, angle.roll(-1, -1), angle[..., :1] + 2 * math.pi)
    present = index < n_on
    gap = torch.where(present, following - angle, 0.0)
    alpha = 2 * math.pi / k.unsqueeze(-1).clamp(min=1)
    narrow = gap < (1 - GAP_TOLERANCE) * alpha
    wide = (gap > (1 + GAP_TOLERANCE) * alpha) & (n_on == k.unsqueeze(-1))
    return ~(present & (narrow | wide)).any(-1)


@cache
def _points(n_features: int) -> tuple[CriticalPoint, ...]:
    return tuple(critical_points(n_features))


@cache
def _code_table(n_features: int) -> Tensor:
    """[k, sigma, phi] to the place in `phase_labels`, that of `other` where there is no label."""
    points = _points(n_features)
    n = n_features + 1
    table = torch.full((max(n, 5), n, 5), len(points))
    for code, point in enumerate(points):
        table[point.k, point.sigma, point.phi] = code
    return table
