"""Shapes formed by the columns of W: their parts, names, symmetry, and equality up to symmetry.

The population loss does not change under O(n_hidden) and permutations of the features, nor with the
W and b of inert columns (`critical.inert`). Two columns *interact* if one's output is active on the
other's input. Live columns thus fall into connected parts. If no bias is positive, each part of a
critical point is critical by itself; the parts lie in orthogonal subspaces or, for single columns,
at angles of 90 degrees or more. A part of one column has length 1 and bias 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.theory.critical import DEAD_BIAS, inert

SAME = 1e-6
"""Largest difference of Gram-matrix entries and biases that count as equal. Points are polished to
a gradient of 1e-12; different shapes differ by 1e-4 or more."""


@dataclass(frozen=True)
class Parts:
    """The columns of one critical point, sorted by their roles.

    Attributes:
        shapes: connected parts of two or more live columns, each a tuple of columns.
        singles: live columns that interact with no other live column.
        positive: columns with a positive bias that are not part of a shape.
        off: the others.
        coupled: whether a positive column has W_i other than 0, so that it acts on live columns.
    """

    shapes: tuple[tuple[int, ...], ...]
    singles: tuple[int, ...]
    positive: tuple[int, ...]
    off: tuple[int, ...]
    coupled: bool


def parts(W: Tensor, b: Tensor) -> Parts:
    """The parts of a critical point, W (n_hidden, n_features), b (n_features,)."""
    outputs = W.mT @ W + b.unsqueeze(-1)
    positive = b > SAME
    live = (outputs.diagonal() > SAME) & ~positive
    linked = live & live.unsqueeze(-1) & ((outputs > SAME) | (outputs.mT > SAME))
    linked.fill_diagonal_(True)
    reach = linked.double().matrix_power(len(b)) > 0
    connected = {tuple(torch.nonzero(row).flatten().tolist()) for row in reach[live]}
    return Parts(
        shapes=tuple(sorted((c for c in connected if len(c) > 1), key=lambda c: (-len(c), c))),
        singles=tuple(sorted(c[0] for c in connected if len(c) == 1)),
        positive=tuple(torch.nonzero(positive).flatten().tolist()),
        off=tuple(torch.nonzero(~live & ~positive).flatten().tolist()),
        coupled=bool((W[:, positive].abs() > SAME).any()),
    )


def dimension(W: Tensor) -> int:
    """The dimension of the span of the columns."""
    return int(torch.linalg.matrix_rank(W, rtol=SAME))


def without_inert(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same points, any batch of them, with inert columns at W_i = 0 and b_i = DEAD_BIAS.

    The tolerance is wide because a descent ends near the boundary of the region where a column is
    inert, at outputs of about the square root of the gradient.
    """
    flat = inert(W, b, tolerance=1e-4)
    return torch.where(flat.unsqueeze(-2), 0.0, W), torch.where(flat, DEAD_BIAS, b)


def invariants(W: Tensor, b: Tensor) -> Tensor:
    """Numbers that symmetries and flat directions leave unchanged, (*batch, n_numbers).

    Let F_ij = ReLU(A_ij + b_i) be the output i on the input e_j, for columns i and j that are live
    or have a positive bias, else 0. The numbers are the sorted entries of F, its sorted diagonal,
    the sorted positive biases, and the eigenvalues of (F + F^T) / 2. Points that agree in all of
    these are taken for one.
    """
    positive = b > SAME
    outputs = (W.mT @ W + b.unsqueeze(-1)).relu()
    counts = positive | (outputs.diagonal(dim1=-2, dim2=-1) > SAME)
    F = torch.where(counts.unsqueeze(-1) & counts.unsqueeze(-2), outputs, 0.0)
    own = F.diagonal(dim1=-2, dim2=-1).sort(-1).values
    biases = torch.where(positive, b, 0.0).sort(-1).values
    return torch.cat([*entries_and_eigenvalues(F), own, biases], -1)


def entries_and_eigenvalues(F: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted entries of F (*batch, n, n), and the eigenvalues of (F + F^T) / 2.

    The distance of either from that of F' is at most |F - P F' P^T| (Frobenius) for any permutation
    P.
    """
    return F.flatten(-2).sort(-1).values, torch.linalg.eigvalsh((F + F.mT) / 2)


def symmetry(W: Tensor, b: Tensor) -> tuple[int, tuple[int, ...]]:
    """The order of the columns' symmetry group, and the sizes of its orbits, largest first.

    Its elements are the permutations of the columns that keep W^T W and b, that is, those that a
    rotation or reflection can undo. Dead columns (W_i = 0) are left out.
    """
    columns = W.abs().amax(-2) > SAME
    A = (W.mT @ W)[columns][:, columns].numpy()
    bias = b[columns].numpy()
    images = list(_automorphisms(A, bias))
    orbits = {frozenset(image[i] for image in images) for i in range(len(bias))}
    return len(images), tuple(sorted((len(orbit) for orbit in orbits), reverse=True))


def _automorphisms(A: NDArray[np.float64], b: NDArray[np.float64]) -> list[list[int]]:
    """All permutations p with A[p][:, p] = A and b[p] = b, column by column."""
    found: list[list[int]] = [[]]
    for i in range(len(b)):
        found = [
            [*image, j]
            for image in found
            for j in range(len(b))
            if j not in image
            and abs(b[j] - b[i]) < SAME
            and abs(A[j, j] - A[i, i]) < SAME
            and all(abs(A[j, image[k]] - A[i, k]) < SAME for k in range(i))
        ]
    return found


def described(W: Tensor, b: Tensor) -> str:
    """A critical point in words: its shapes (`in_words`) and how many other columns there are."""
    columns = parts(W, b)
    words = [in_words(W[:, list(shape)], b[list(shape)]) for shape in columns.shapes]
    counts = {
        "single column": len(columns.singles),
        "positive": len(columns.positive),
        "dead": len(columns.off),
    }
    words += [f"{n} {name}{'s' * (n > 1 and name[-1] == 'n')}" for name, n in counts.items() if n]
    return ", ".join(words)


_SOLIDS: dict[tuple[int, int, int, tuple[int, ...], int], str] = {
    (3, 6, 12, (6,), 0): "triangular prism",
    (3, 7, 6, (3, 3, 1), 0): "capped octahedron",
    (3, 7, 4, (4, 2, 1), 0): "capped triangular prism",
    (3, 8, 16, (8,), 0): "square antiprism",
    (3, 8, 8, (4, 4), 0): "triangular dodecahedron",
    (3, 8, 48, (8,), 4): "cube",
    (3, 9, 12, (6, 3), 0): "tricapped triangular prism",
    (3, 9, 8, (4, 4, 1), 0): "capped square antiprism",
    (3, 10, 16, (8, 2), 1): "bicapped square antiprism",
    (3, 11, 10, (5, 5, 1), 0): "capped pentagonal antiprism",
    (3, 12, 120, (12,), 6): "icosahedron",
    (3, 12, 20, (10, 2), 1): "bicapped pentagonal prism",
    (3, 12, 48, (12,), 6): "cuboctahedron",
}
"""Usual names by dimension, number of columns, order of the symmetry group, its orbits, and the
number of antipodal pairs, which tells an antiprism from a prism."""


def in_words(W: Tensor, b: Tensor) -> str:
    """The usual name of a shape, such as "regular 5-gon" or "square antiprism"; if it has none, the
    order of its symmetry group and its orbits: "7 columns, order 6 (3+3+1)"."""
    d, k = dimension(W), W.shape[-1]
    order, orbits = symmetry(W, b)
    if (d, order) == (2, 2 * k):
        return f"regular {k}-gon"
    unit = W / W.norm(dim=-2, keepdim=True)
    antipodal = int((unit.mT @ unit < -1 + SAME).sum()) // 2
    name = _SOLIDS.get((d, k, order, orbits, antipodal))
    return name or f"{k} columns, order {order} ({'+'.join(map(str, orbits))})"


def is_regular_polygon(W: Tensor, b: Tensor) -> bool:
    """Whether the columns are a regular polygon in a plane."""
    k = W.shape[-1]
    return k > 2 and dimension(W) == 2 and symmetry(W, b) == (2 * k, (k,))
