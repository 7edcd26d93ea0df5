"""The atlas of any size, from the package or by a new search, and its tables."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kgon import files
from kgon.landscape.passes import Pass
from kgon.landscape.search import search
from kgon.theory.atlas import SHIPPED, Atlas, build, built, file_name, found_in, stored
from kgon.theory.critical import CriticalPoint
from kgon.theory.shapes import described

N_STARTS = 1000
"""Random starts of a search."""


def atlas(
    n_features: int,
    n_hidden: int,
    importance: Sequence[float] | None = None,
    *,
    folder: Path | str = "multirun/atlases",
    progress: Callable[[str], None] = print,
) -> Atlas:
    """All known critical points of the population loss for one size (see `theory.atlas`).

    The atlases of SIZES are part of the package. Others are searched for on first use, reporting to
    `progress`, and kept in `folder`.

    Raises:
        ValueError: a size is not a whole number >= 1, or features differ in importance. Columns
            then cannot be permuted, so critical points have no labels, and those for fewer features
            are not part of a larger atlas.
    """
    for name, value in {"n_features": n_features, "n_hidden": n_hidden}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    if importance is not None and len(set(importance)) > 1:
        raise ValueError(
            "importance must be the same for all features, because an atlas holds points up to "
            f"permutations of the features; got {list(importance)}"
        )
    if (SHIPPED / file_name(n_features, n_hidden)).exists():
        return built(n_features, n_hidden)
    path = Path(folder) / file_name(n_features, n_hidden)
    if not path.exists():
        found = search(n_features, n_hidden, n_starts=N_STARTS, progress=progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, found.as_json())
    return build(n_features, n_hidden, found_in(path.parent, n_features, n_hidden), SHIPPED)


@dataclass(frozen=True)
class PointRow:
    """A critical point of the atlas.

    Attributes:
        label: its name.
        loss (loss): population loss.
        kind: minimum, saddle, or non-smooth where there is no Hessian.
        index: negative eigenvalues of the Hessian; blank where there is none.
        rank: eigenvalues that are not zero; blank where there is no Hessian.
        llc: learning coefficient by theory; blank where there is none.
        gradient_norm: length of the gradient, which rounding alone keeps from zero.
        starts: how many starts of the search led there.
        shape: its geometry in words.
    """

    label: str
    loss: float
    kind: str
    index: int | None
    rank: int | None
    llc: float | None
    gradient_norm: float
    starts: int
    shape: str

    @classmethod
    def of(cls, point: CriticalPoint, starts: int) -> "PointRow":
        return cls(
            point.label, point.loss, point.kind, point.index, point.rank, point.llc,
            point.gradient_norm, starts, described(point.W, point.b),
        )  # fmt: skip


@dataclass(frozen=True)
class PassRow:
    """A transition state and the two phases that it joins.

    Attributes:
        label: name of the transition state.
        loss (loss): its population loss.
        first: phase on the side of the higher loss; empty if it ends at no point of the atlas.
        second: phase on the other side.
        barrier_first (loss): the transition state's loss less that of `first`.
        barrier_second (loss): the transition state's loss less that of `second`.
    """

    label: str
    loss: float
    first: str
    second: str
    barrier_first: float
    barrier_second: float

    @classmethod
    def of(cls, way: Pass) -> "PassRow":
        return cls(way.point.label, way.point.loss, *way.ends, *way.barriers)


SIZES = [
    *((n, 1) for n in range(2, 13)),
    *((n, m) for m in (2, 3, 4) for n in range(m, 13)),
]
"""(n_features, n_hidden) of the atlases in the package, smaller ones first."""


def main() -> None:
    """Search every size of the package again: python -m kgon.landscape.catalogue FOLDER."""
    folder = Path(sys.argv[1])
    for n_features, n_hidden in SIZES:
        print(f"n_features = {n_features}, n_hidden = {n_hidden}", flush=True)
        found = search(n_features, n_hidden, n_starts=N_STARTS, folder=folder)
        files.write_text(folder / file_name(n_features, n_hidden), found.as_json())
        for cached in (found_in, stored, built):
            cached.cache_clear()


if __name__ == "__main__":
    main()
