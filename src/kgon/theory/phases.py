"""The phase of a parameter: the critical point whose geometry it has (n_hidden = 2).

Column i has the length l_i = ||W_i|| and the output f_i = l_i^2 + b_i on its own input e_i.

1. A column is *on* if l_i > ON_LENGTH and f_i > ON_OUTPUT. Of the others, those with b_i > 0 are
   *positive* and the rest *off*.
2. k is the number of columns that are on, and sigma the number of positive ones. If n_features >= 4
   and fewer than four columns are on, k = 4 and phi = 4 - (columns on).
3. The parameter has the label k^{sigma+, phi-} if
   - the label names a critical point for this n_features,
   - the lengths of the columns that are on, and the angles between neighbours, are those of the
     critical point within LENGTH_TOLERANCE and GAP_TOLERANCE,
   - no column that is on has an output above OFF_OUTPUT on the input of a column that is off.
   Otherwise its label is `other`.

The length of a column that is off does not matter. If output i is off and no other output is active
on input e_i, the loss does not depend on W_i or b_i. So a 4-gon with one column switched off, three
columns with a fourth at zero, and the dead columns that training leaves at some length lie on one
flat piece of the loss.

The phase depends on lengths and on angles between columns only, so it is invariant under rotations,
reflections and permutations.
"""

import math
from functools import cache

import torch
from torch import Tensor

from kgon.theory.critical import critical_points

OTHER = "other"
"""The label of a parameter that matches no critical point."""

ON_LENGTH = 0.5
"""Least length of a column that is on: half that of the shortest live column (l = 1, 4-gons)."""

ON_OUTPUT = 0.2
"""Least output on its own input of a column that is on. At critical points it is at least 0.6 for
live columns (1 for k < 12); for columns that training leaves switched off it is at most 0."""

LENGTH_TOLERANCE = 0.5
"""Largest relative deviation of a live column from the critical length. It is wide because training
moves slowly along a valley in which l_i grows and b_i falls at nearly constant f_i."""

GAP_TOLERANCE = 0.5
"""Largest relative deviation of the angle between neighbours from 2 pi / k."""

OFF_OUTPUT = 0.5
"""Largest output of a live column on the input of a column that is off: half of its output on its
own input."""


def phase_labels(n_features: int) -> tuple[str, ...]:
    """The labels of the critical points for n_features, in order of loss, then `other`."""
    return (*(point.label for point in critical_points(n_features)), OTHER)


def phase_codes(W: Tensor, b: Tensor) -> Tensor:
    """The phase of each parameter as an index into `phase_labels(n_features)`, (*batch) int64.

    W is (*batch, n_hidden, n_features), b (*batch, n_features). The module docstring has the
    definition. Parameters that are not finite, or with n_hidden other than 2, are `other`.
    """
    if W.ndim < 2 or b.ndim < 1 or W.shape[:-2] + W.shape[-1:] != b.shape:
        raise ValueError(
            "W must be (*batch, n_hidden, n_features) and b (*batch, n_features), "
            f"got {tuple(W.shape)} and {tuple(b.shape)}"
        )
    n_features = b.shape[-1]
    points = critical_points(n_features)
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

    # A label of the table has sigma <= n_features - 4, which leaves at least phi columns off.
    code = _code_table(n_features).to(b.device)[k, sigma, phi]
    lengths = torch.tensor([*(float(p.W[:, 0].norm()) for p in points), 1.0]).to(length)
    critical_length = lengths[code].unsqueeze(-1)
    long_enough = (length - critical_length).abs() <= LENGTH_TOLERANCE * critical_length
    outputs = W.mT @ W + b.unsqueeze(-1)  # i on input e_j
    silent = ~(on.unsqueeze(-1) & off.unsqueeze(-2) & (outputs > OFF_OUTPUT)).any(-1).any(-1)
    fits = finite & (long_enough | ~on).all(-1) & silent & _evenly_spread(W, on, k)
    return torch.where(fits, code, other)


def classify(W: Tensor, b: Tensor) -> list[str]:
    """The phase of each parameter as a label, such as "5+" or "other" (see the module docstring).

    W is (*batch, n_hidden, n_features), b (*batch, n_features). There is one label for each element
    of *batch, flattened in row-major order; `phase_codes` keeps the axes.
    """
    codes = phase_codes(W, b)
    labels = phase_labels(b.shape[-1])
    return [labels[code] for code in codes.flatten().tolist()]


def _evenly_spread(W: Tensor, on: Tensor, k: Tensor) -> Tensor:
    """Whether the gaps between neighbouring columns that are on are 2 pi / k, within tolerance.

    If columns of the k-gon are off, gaps may be wider than that.
    """
    n_on = on.sum(-1, keepdim=True)
    angle = torch.atan2(W[..., 1, :], W[..., 0, :])
    angle = torch.where(on, angle, torch.inf).sort(-1).values
    index = torch.arange(angle.shape[-1], device=angle.device)
    # The last column's neighbour is the first one, 2 pi further on.
    following = torch.where(index + 1 < n_on, angle.roll(-1, -1), angle[..., :1] + 2 * math.pi)
    present = index < n_on
    gap = torch.where(present, following - angle, 0.0)
    alpha = 2 * math.pi / k.unsqueeze(-1).clamp(min=1)
    narrow = gap < (1 - GAP_TOLERANCE) * alpha
    wide = (gap > (1 + GAP_TOLERANCE) * alpha) & (n_on == k.unsqueeze(-1))
    return ~(present & (narrow | wide)).any(-1)


@cache
def _code_table(n_features: int) -> Tensor:
    """Indices into `phase_labels` by [k, sigma, phi]; that of `other` where no label exists."""
    points = critical_points(n_features)
    n = n_features + 1
    table = torch.full((max(n, 5), n, 5), len(points))
    for code, point in enumerate(points):
        table[point.k, point.sigma, point.phi] = code
    return table
