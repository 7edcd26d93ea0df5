"""The critical points of the population loss for any n_features and n_hidden.

**What is stored, and what is built.** A search (`kgon.landscape.search`) finds connected shapes of
k columns in d dimensions (`theory.shapes`), and points with positive biases that act on other
columns ("coupled"). The file n{n}_m{m}.json holds those that are new at that n and m, and how often
starts of each kind led to each critical point. All other points are built from these:

- shapes of at most n_features columns in orthogonal subspaces of at most n_hidden dimensions
  together;
- in the r dimensions that are left, q <= 2r single columns of length 1 with bias 0, at the corners
  of a cross-polytope;
- sigma dead columns with the bias 1 / (2 n_features), if the live columns sum to zero;
- other columns dead, W_i = 0.

Dead columns do not act on a shape, so it is critical for any larger n_features, too. Coupled points
are critical for one n_features only, because the positive biases depend on it.

**Labels.** Shapes joined by `x`, then one + for each positive bias, one - for each of the 2r single
columns that is missing: the paper's "5+" and "4++-" for n_hidden = 2. A regular polygon is its
number of columns; any other shape is k, `d`, d, and a letter in order of loss: "7d3a" is the shape
of 7 columns in 3 dimensions with the lowest loss. The single columns of r dimensions are r times
"2": "5x2" is a pentagon and a pair orthogonal to it, "2x2x2" an octahedron. For n_hidden = 2 alone
they are the paper's "4". In a coupled point all live columns count as one shape: "7d3a+".
"""

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgon.theory.critical import (
    DEAD_BIAS,
    OFF_BIAS,
    CriticalPoint,
    critical_point,
    critical_points,
    has_kink,
    negative_eigenvalues,
    polygon,
)
from kgon.theory.loss import population_loss
from kgon.theory.shapes import SAME, dimension, is_regular_polygon, parts

MAX_INDEX = 2
"""Saddles of a larger index are left out: there are thousands, and gradient flow does not come near
them."""

SHIPPED = Path(__file__).parent / "atlases"
"""Atlases that are part of the package (`kgon.landscape.catalogue.SIZES`)."""


@dataclass(frozen=True)
class Found:
    """What a search found at one n_features and n_hidden: the content of an atlas file.

    Attributes:
        seed: the search's random seed.
        starts: the number of starts by kind.
        shapes: connected shapes of n_features columns in n_hidden dimensions, (W, b) each.
        coupled: points with positive biases that act on other columns, (W, b) each.
        met: by kind and label, how many starts led there; "" stands for points that are not in the
            atlas, such as saddles of a larger index.
        index: by label, the index of each point of the atlas without a kink, so that loading an
            atlas takes no Hessians; empty while a search is under way.
    """

    seed: int
    starts: dict[str, int]
    shapes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    coupled: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    met: dict[str, dict[str, int]] = field(default_factory=dict)
    index: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(
            {
                "seed": self.seed,
                "starts": self.starts,
                "shapes": [{"W": W.tolist(), "b": b.tolist()} for W, b in self.shapes],
                "coupled": [{"W": W.tolist(), "b": b.tolist()} for W, b in self.coupled],
                "met": self.met,
                "index": self.index,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Found":
        data = json.loads(text)

        def pairs(rows: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
            W, b = ([torch.tensor(row[x], dtype=torch.float64) for row in rows] for x in "Wb")
            return list(zip(W, b, strict=True))

        return cls(
            data["seed"], data["starts"], pairs(data["shapes"]), pairs(data["coupled"]),
            data["met"], data["index"],
        )  # fmt: skip


def file_name(n_features: int, n_hidden: int) -> str:
    return f"n{n_features}_m{n_hidden}.json"


@dataclass(frozen=True, eq=False)
class Atlas:
    """The critical points for one n_features and n_hidden, in order of loss.

    `found` is the result of the search for them; None if there was no search.
    """

    n_features: int
    n_hidden: int
    points: tuple[CriticalPoint, ...]
    found: Found | None

    def __iter__(self) -> Iterator[CriticalPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, label: str) -> CriticalPoint:
        for point in self.points:
            if point.label == label:
                return point
        lowest = ", ".join(p.label for p in self.phases[:8])
        known = f"the phases of lowest loss are {lowest}" if lowest else "none is known"
        raise KeyError(
            f"no critical point {label!r} for n_features={self.n_features}, "
            f"n_hidden={self.n_hidden}; {known}"
        )

    @cached_property
    def phases(self) -> tuple[CriticalPoint, ...]:
        """The phases: minima, points with a kink but no unstable shape, and k-gons of any index,
        near which training rests. The other saddles are passes between phases."""
        if self.found is None:
            return self.points
        index = self.found.index or indices(self.points)
        k_gons = {p.label for p in critical_points(self.n_features)} if self.n_hidden == 2 else ()
        return tuple(
            p for p in self
            if (not p.unstable and index.get(p.label, 0) == 0) or p.label in k_gons
        )  # fmt: skip

    def n_starts(self, label: str) -> int:
        """How many starts, of all kinds, led to this point."""
        met = self.found.met if self.found else {}
        return sum(counts.get(label, 0) for counts in met.values())

    def missing(self) -> dict[str, float]:
        """The probability that one more start of each kind leads to a point that none has met.

        Good and Turing's estimate: the points met once, divided by the number of starts.
        """
        if self.found is None:
            return {}
        return {
            kind: sum(count == 1 for count in self.found.met.get(kind, {}).values()) / n
            for kind, n in self.found.starts.items()
        }


@dataclass(frozen=True)
class _Shape:
    """A connected shape: W (d, k), b (k,), and its index in these coordinates."""

    name: str
    W: Tensor
    b: Tensor
    index: int

    @property
    def balanced(self) -> bool:
        """Whether the columns sum to zero, so that they exert no force on a dead column."""
        return float(self.W.sum(-1).norm()) < SAME


@cache
def found_in(folder: Path, n_features: int, n_hidden: int) -> Found | None:
    """The atlas file of one size, or None if there is none."""
    try:
        return Found.from_json((folder / file_name(n_features, n_hidden)).read_text())
    except FileNotFoundError:
        return None


@cache
def built(n_features: int, n_hidden: int, folder: Path = SHIPPED) -> Atlas:
    """The atlas built from the files of a folder (see the module docstring); cached and shared.

    A size without a file gets the k-gons that theory solves if n_hidden = 2, else no points.
    """
    found = found_in(folder, n_features, n_hidden)
    if found is None:
        solved = critical_points(n_features) if n_hidden == 2 else []
        return Atlas(n_features, n_hidden, tuple(solved), None)
    return build(n_features, n_hidden, found, folder)


def point(label: str | int, n_features: int, n_hidden: int) -> CriticalPoint:
    """The critical point with this label; ValueError if there is none."""
    if n_hidden == 2 and str(label).rstrip("+-").isdigit():
        return critical_point(label, n_features)
    try:
        return built(n_features, n_hidden)[str(label)]
    except KeyError as error:
        raise ValueError(error.args[0]) from None


def build(n_features: int, n_hidden: int, found: Found | None, folder: Path) -> Atlas:
    """The atlas of what a search found, with the shapes of smaller sizes from a folder."""
    shapes = [
        shape
        for d in range(1, n_hidden + 1)
        for k in range(2, n_features + 1)
        if (k, d) != (n_features, n_hidden)
        for shape in stored(folder, k, d)
    ]
    shapes += _named(found.shapes, found.index) if found else ()
    solved = {p.label: p for p in critical_points(n_features)} if n_hidden == 2 else {}
    products = [p for p in _products(shapes, n_features, n_hidden) if p.label not in solved]
    index = found.index if found and found.index else indices(products)
    kept = [p for p in products if index.get(p.label, 0) <= MAX_INDEX]
    if found and found.index:
        kept = [p for p in kept if p.label in index or bool(has_kink(p.W, p.b))]
    points = [*solved.values(), *kept]
    # Left-out products keep their labels, so that a label means the same shapes at every size.
    points += _coupled(found, {point.label for point in (*solved.values(), *products)})
    points.sort(key=lambda point: (point.loss, point.label))
    return Atlas(n_features, n_hidden, tuple(points), found)


def indices(points: Sequence[CriticalPoint]) -> dict[str, int]:
    """The index of each point without a kink, by label, from one batched Hessian."""
    if not points:
        return {}
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    kinks, negative = has_kink(W, b).tolist(), negative_eigenvalues(W, b).tolist()
    return {p.label: n for p, kink, n in zip(points, kinks, negative, strict=True) if not kink}


@cache
def stored(folder: Path, k: int, d: int) -> tuple[_Shape, ...]:
    """The connected shapes of k columns in d dimensions that a folder holds."""
    found = found_in(folder, k, d)
    shapes = found.shapes if found else []
    if d == 2 and k > 4 and (solved := polygon(k)) is not None:
        shapes = [solved, *shapes]
    return _named(shapes, found.index if found else {})


def _named(shapes: list[tuple[Tensor, Tensor]], index: dict[str, int]) -> tuple[_Shape, ...]:
    """Shapes of equal size, in order of loss and named."""
    letters, named = _letters(), []
    for W, b in sorted(shapes, key=lambda s: float(population_loss(*s))):
        d, k = W.shape
        name = str(k) if is_regular_polygon(W, b) else f"{k}d{d}{next(letters)}"
        known = index[name] if name in index else CriticalPoint(name, W, b, 0.0).index
        named.append(_Shape(name, W, b, known or 0))
    return tuple(named)


def _letters() -> Iterator[str]:
    """a, b, c, e, ..., z, aa, ab, ..., without d and x, which join labels."""
    letters = [letter for letter in string.ascii_lowercase if letter not in "dx"]
    yield from letters
    for first in _letters():
        yield from (first + last for last in letters)


def _products(shapes: list[_Shape], n_features: int, n_hidden: int) -> Iterator[CriticalPoint]:
    """Critical points of shapes in orthogonal subspaces, with single, positive and dead columns."""
    for chosen in _choices(shapes, n_features, n_hidden):
        k, d = sum(len(s.b) for s in chosen), sum(len(s.W) for s in chosen)
        singles = 2 * (n_hidden - d)
        if n_hidden == 2 and not chosen:
            continue  # 4-gons, which `critical_points` lists
        for phi in range(max(0, k + singles - n_features), singles + 1):
            balanced = all(s.balanced for s in chosen) and k + singles <= n_features
            for sigma in range(n_features - k - singles + 1 if balanced else 1):
                yield _product(chosen, n_features, n_hidden, phi, sigma)


def _choices(shapes: list[_Shape], k: int, d: int) -> Iterator[tuple[_Shape, ...]]:
    """Multisets of shapes with at most k columns, d dimensions and index MAX_INDEX in total."""

    def extend(chosen: tuple[_Shape, ...], first: int) -> Iterator[tuple[_Shape, ...]]:
        yield chosen
        for i in range(first, len(shapes)):
            more = (*chosen, shapes[i])
            if (
                sum(len(s.b) for s in more) <= k
                and sum(len(s.W) for s in more) <= d
                and sum(s.index for s in more) <= MAX_INDEX
            ):
                yield from extend(more, i)

    return extend((), 0)


def _product(
    chosen: tuple[_Shape, ...], n_features: int, n_hidden: int, phi: int, sigma: int
) -> CriticalPoint:
    W = torch.zeros(n_hidden, n_features, dtype=torch.float64)
    b = torch.full((n_features,), DEAD_BIAS, dtype=torch.float64)
    column = row = 0
    for shape in chosen:
        d, k = shape.W.shape
        W[row : row + d, column : column + k] = shape.W
        b[column : column + k] = shape.b
        column, row = column + k, row + d
    r = n_hidden - row
    corners = torch.cat([torch.eye(r), -torch.eye(r)], -1).double()
    on = 2 * r - phi
    # Columns that are switched off matter only for the force on columns with a positive bias.
    kept = 2 * r if sigma else on
    W[row:, column : column + kept] = corners[:, :kept]
    b[column : column + on] = 0.0
    b[column + on : column + kept] = OFF_BIAS
    b[column + kept : column + kept + sigma] = 1 / (2 * n_features)
    name = "x".join([*(shape.name for shape in chosen), *["2"] * r])
    label = f"{name}{'+' * sigma}{'-' * phi}"
    unstable = any(shape.index for shape in chosen)
    return CriticalPoint(label, W, b, float(population_loss(W, b)), unstable)


def _coupled(found: Found | None, taken: set[str]) -> Iterator[CriticalPoint]:
    """Coupled points, labelled by their live columns: k, d, the first free letter, the signs."""
    for W, b in sorted(found.coupled if found else [], key=lambda p: float(population_loss(*p))):
        columns = parts(W, b)
        k = len(W.mT) - len(columns.positive) - len(columns.off)
        signs = "+" * len(columns.positive)
        stem = f"{k}d{dimension(W)}"
        label = next(n for letter in _letters() if (n := f"{stem}{letter}{signs}") not in taken)
        taken.add(label)
        yield CriticalPoint(label, W, b, float(population_loss(W, b)))
