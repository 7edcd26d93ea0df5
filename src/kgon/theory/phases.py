"""The phase of a parameter: the critical point whose geometry it has.

Column i has the length l_i = ||W_i|| and the output f_i = l_i^2 + b_i on its own input e_i.

1. A column is *on* if l_i > ON_LENGTH and f_i > ON_OUTPUT. Of the others, those with b_i > 0 are
   *positive* and the rest *off*.
2. No column that is on may have an output above OFF_OUTPUT on the input of a column that is off.
3. **k-gons** (n_hidden = 2). k is the number of columns that are on, and sigma the number of
   positive ones. If n_features >= 4 and fewer than four columns are on, k = 4 and phi is the number
   of columns that are missing. The parameter has the label k^{sigma+, phi-} if this names a
   critical point for this n_features, and the lengths of the columns that are on, and the angles
   between neighbours, are those of the critical point within LENGTH_TOLERANCE and GAP_TOLERANCE.
4. **Other phases of the atlas**, and all of them for other n_hidden, are compared by outputs. With
   F_ij = ReLU(W_i . W_j + b_i) for columns that are on, the phase is the one with as many columns
   on and as many positive whose F is nearest, if it is within OUTPUT_TOLERANCE sqrt(columns on).
   The distance is the larger of those of the sorted entries of F and of the eigenvalues of
   (F + F^T) / 2: at most |F - P F' P^T| (Frobenius) for any permutation P, so no matching of
   columns is sought.
5. A parameter without a label by rules 3 and 4 is `other`.

For n_hidden = 2 a minimum close to a k-gon has the k-gon's label: "5d2a+" for 7 features, 3e-5
below "5+" in loss, differs from it in that the column that is off is turned towards the positive
one; it is called 5+.

The length of a column that is off does not matter. If output i is off and no other output is active
on input e_i, the loss does not depend on W_i or b_i. So a 4-gon with one column switched off, three
columns with a fourth at zero, and the dead columns that training leaves at some length lie on one
flat piece of the loss.

The phase depends on lengths and on products of columns only, so it is invariant under rotations,
reflections and permutations.
"""

import math
from functools import cache

import torch
from torch import Tensor

from kgon.theory.atlas import built
from kgon.theory.critical import critical_points
from kgon.theory.shapes import entries_and_eigenvalues

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

OUTPUT_TOLERANCE = 0.4
"""Largest deviation of F: its root mean square over the columns that are on. If two phases of the
atlas with equal counts are closer than this, the nearer one is taken."""

HUGE = 1e3
"""Outputs are clamped to this size; those of phases are at most 10."""


def phase_labels(n_features: int, n_hidden: int) -> tuple[str, ...]:
    """The labels of the phases of this size, in order of loss, then `other`."""
    return (*(point.label for point in built(n_features, n_hidden).phases), OTHER)


def check_shapes(W: Tensor, b: Tensor) -> None:
    """ValueError unless W is (*batch, n_hidden, n_features) and b (*batch, n_features)."""
    if W.ndim < 2 or b.ndim < 1 or W.shape[:-2] + W.shape[-1:] != b.shape:
        raise ValueError(
            "W must be (*batch, n_hidden, n_features) and b (*batch, n_features), "
            f"got {tuple(W.shape)} and {tuple(b.shape)}"
        )


def phase_codes(W: Tensor, b: Tensor) -> Tensor:
    """The phase of each parameter as an index into `phase_labels`, (*batch) int64.

    W is (*batch, n_hidden, n_features), b (*batch, n_features). The module docstring has the
    definition. Parameters that are not finite are `other`.
    """
    check_shapes(W, b)
    n_hidden, n_features = W.shape[-2:]
    finite = W.isfinite().all(-2).all(-1) & b.isfinite().all(-1)
    W = torch.where(finite[..., None, None], W, 0.0)
    b = torch.where(finite.unsqueeze(-1), b, 0.0)
    columns = _Columns(W, b)
    code = _nearest(columns, n_features, n_hidden)
    labels = phase_labels(n_features, n_hidden)
    if n_hidden == 2:
        k_gons = [labels.index(point.label) for point in critical_points(n_features)]
        polygon = _k_gons(columns, n_features)
        by_outputs = torch.where(torch.isin(code, torch.tensor(k_gons).to(code)), -1, code)
        code = torch.where(polygon >= 0, polygon, by_outputs)
    return torch.where(finite & columns.silent & (code >= 0), code, labels.index(OTHER))


class _Columns:
    """The roles of the columns of each parameter (rules 1 and 2)."""

    def __init__(self, W: Tensor, b: Tensor):
        self.W = W
        self.length = W.norm(dim=-2)
        outputs = W.mT @ W + b.unsqueeze(-1)  # i on input e_j
        # Parameters that are about to diverge overflow here.
        self.outputs = outputs.nan_to_num(nan=HUGE).clamp(-HUGE, HUGE)
        self.on = (self.length > ON_LENGTH) & (self.length.square() + b > ON_OUTPUT)
        positive = ~self.on & (b > 0)
        off = ~self.on & ~positive
        self.n_on, self.sigma = self.on.sum(-1), positive.sum(-1)
        loud = self.on.unsqueeze(-1) & off.unsqueeze(-2) & (self.outputs > OFF_OUTPUT)
        self.silent = ~loud.any(-1).any(-1)

    def signature(self) -> tuple[Tensor, Tensor]:
        """Sorted entries of F, and eigenvalues of its symmetric part (rule 4)."""
        both = self.on.unsqueeze(-1) & self.on.unsqueeze(-2)
        return entries_and_eigenvalues(torch.where(both, self.outputs.relu(), 0.0))


def _nearest(columns: _Columns, n_features: int, n_hidden: int) -> Tensor:
    """The code of the phase by rule 4, -1 where there is none."""
    phases = built(n_features, n_hidden).phases
    if not phases:
        return torch.full_like(columns.n_on, -1)
    W, b = torch.stack([p.W for p in phases]), torch.stack([p.b for p in phases])
    known = _Columns(W.to(columns.W), b.to(columns.W))
    by_entries, by_eigenvalues = (
        torch.cdist(here.reshape(-1, here.shape[-1]), there.to(here))
        for here, there in zip(columns.signature(), known.signature(), strict=True)
    )
    distance = torch.maximum(by_entries, by_eigenvalues)
    distance = distance.reshape(*columns.n_on.shape, len(phases))
    alike = (columns.n_on.unsqueeze(-1) == known.n_on) & (
        columns.sigma.unsqueeze(-1) == known.sigma
    )
    least, code = torch.where(alike, distance, math.inf).min(-1)
    return torch.where(least <= OUTPUT_TOLERANCE * columns.n_on.sqrt(), code, -1)


def _k_gons(columns: _Columns, n_features: int) -> Tensor:
    """The code of the k-gon by rule 3, -1 where there is none."""
    points = critical_points(n_features)
    length, on, n_on = columns.length, columns.on, columns.n_on
    k = n_on.clamp(min=4) if n_features >= 4 else n_on
    # A label of the table has sigma <= n_features - 4, which leaves at least phi columns off.
    index = _k_gon_table(n_features).to(k.device)[k, columns.sigma, k - n_on]
    lengths = torch.tensor([*(float(p.W[:, 0].norm()) for p in points), 1.0]).to(length)
    critical_length = lengths[index].unsqueeze(-1)
    long_enough = (length - critical_length).abs() <= LENGTH_TOLERANCE * critical_length
    fits = (index < len(points)) & (long_enough | ~on).all(-1) & _evenly_spread(columns.W, on, k)
    labels = phase_labels(n_features, 2)
    codes = torch.tensor([*(labels.index(p.label) for p in points), -1]).to(index)
    return torch.where(fits, codes[index], -1)


def classify(W: Tensor, b: Tensor) -> list[str]:
    """The phase of each parameter as a label, such as "5+" or "other" (see the module docstring).

    W is (*batch, n_hidden, n_features), b (*batch, n_features). The labels are in row-major order
    of *batch; `phase_codes` keeps the axes.
    """
    codes = phase_codes(W, b)
    labels = phase_labels(b.shape[-1], W.shape[-2])
    return [labels[code] for code in codes.flatten().tolist()]


def _evenly_spread(W: Tensor, on: Tensor, k: Tensor) -> Tensor:
    """Whether neighbouring columns that are on are 2 pi / k apart, within GAP_TOLERANCE.

    If columns of the k-gon are off, wider gaps are allowed.
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
def _k_gon_table(n_features: int) -> Tensor:
    """Indices into `critical_points` by [k, sigma, phi]; their number where there is no k-gon."""
    points = critical_points(n_features)
    n = n_features + 1
    table = torch.full((max(n, 5), n, 5), len(points))
    for i, point in enumerate(points):
        table[point.k, point.sigma, point.phi] = i
    return table
