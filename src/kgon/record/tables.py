"""The tables of a training run: a dataclass for each kind of row, and counts of rows.

The types of a table's columns follow from the dataclass, not from the values, so they are the same
for every run, even if a table is empty. Values that are not finite are left blank.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

import numpy as np
import pyarrow as pa

from kgon.files import finite_or_none
from kgon.theory.critical import CriticalPoint

ARROW = " -> "
"""Between the stages of a member, in the column `stages`."""

LEVEL_TOLERANCE = 2e-3
"""Largest distance in loss between a stage of a member and a critical level. At n_features = 6
neighbouring levels are 0.007 apart, and members trained on 1000 samples settle within 0.001 of
one."""

_MIXED = ("other", "unknown")
"""Groups of members that are in no phase, or whose phase is not known."""

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True)
class Row:
    """A row of a table. Fields have type int, float or str, or one of these and None.

    A column has the name of its field, without an underscore at the end.
    """

    @classmethod
    def columns(cls) -> dict[str, str]:
        """The columns' names by field."""
        return {f.name: f.name.rstrip("_") for f in fields(cls)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The row with these values by column; None where one is missing or not finite."""
        row = {name: values.get(column) for name, column in cls.columns().items()}
        return cls(**{k: finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()})

    def plain(self) -> dict[str, Any]:
        """The values by column."""
        return {column: getattr(self, name) for name, column in self.columns().items()}

    @classmethod
    def table(cls, rows: Iterable[Self]) -> pa.Table:
        """The rows as an Arrow table."""
        schema = []
        for name, hint in get_type_hints(cls).items():
            (kind,) = [t for t in get_args(hint) or (hint,) if t is not NoneType]
            schema.append((cls.columns()[name], _TYPES[kind]))
        return pa.Table.from_pylist([row.plain() for row in rows], schema=pa.schema(schema))


@dataclass(frozen=True)
class Member(Row):
    """The final results of a member; None if the callback that records a result did not run.

    `stages` are the critical levels at which it had plateaus, "4++- -> 4+ -> 5", and
    `n_transitions` the passages between them, None if no levels are known. `loss_stderr` is the
    standard error of a final loss without a closed form: an estimate on other inputs than those of
    the table `loss`, the same for all members. The last three columns are from `theory.geometry`.
    """

    member: int
    state: str
    diverged_at: int | None
    final_loss: float | None
    loss_stderr: float | None
    phase: str | None
    n_transitions: int | None
    stages: str
    llc: float | None
    llc_stderr: float | None
    llc_verdict: str | None
    features_represented: float | None
    dimensionality: float | None
    interference: float | None

    @property
    def group(self) -> str:
        """The group in which it is counted: its phase, `diverged` or `unknown`."""
        return "diverged" if self.state == "diverged" else self.phase or "unknown"


@dataclass(frozen=True)
class Plateau(Row):
    """Steps `start` to `end`, on which a member's loss hardly moves; its mean there.

    `nearest` is the label of the critical point whose loss is nearest, at this distance; None where
    none is known.
    """

    member: int
    start: int
    end: int
    loss: float
    nearest: str | None
    distance: float | None


@dataclass(frozen=True)
class Transition(Row):
    """How many members passed from one stage to the next."""

    from_: str
    to: str
    members: int


@dataclass(frozen=True)
class Phase(Row):
    """The members that end in a phase, with their mean final loss, and theory where it is known.

    `llc` is the mean over the `llc_ok` members whose estimate has the verdict ok, of `llc_tried`,
    and `llc_stderr` its standard error over members. Members that are in no phase, `other` and
    `unknown`, are at different levels: there is a range of losses, but no mean of anything, unless
    it is one member.
    """

    phase: str
    members: int
    loss: float | None
    loss_least: float | None
    loss_most: float | None
    theory_loss: float | None
    llc: float | None
    llc_stderr: float | None
    llc_ok: int
    llc_tried: int
    theory_llc: float | None


def stages(plateaus: Iterable[Plateau], member: int) -> list[Plateau]:
    """The stages of a member: its plateaus within LEVEL_TOLERANCE of a critical level.

    Consecutive plateaus at the same level are one stage, the first of them.
    """
    passed: list[Plateau] = []
    for plateau in plateaus:
        near = plateau.distance is not None and plateau.distance <= LEVEL_TOLERANCE
        new = not passed or passed[-1].nearest != plateau.nearest
        if plateau.member == member and near and new:
            passed.append(plateau)
    return passed


def transitions(members: Iterable[Member]) -> list[Transition]:
    """The transitions from one stage to the next, the most frequent first."""
    seen = Counter(pair for m in members for pair in pairwise(m.stages.split(ARROW)))
    return [Transition(before, after, count) for (before, after), count in seen.most_common()]


def phases(members: Iterable[Member], points: Iterable[CriticalPoint]) -> list[Phase]:
    """The final phases in order of mean loss, then `other` and `diverged`."""
    theory = {point.label: point for point in points}
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[member.group].append(member)
    found = [_phase(label, group, theory.get(label)) for label, group in groups.items()]

    def place(row: Phase) -> tuple[bool, bool, float]:
        no_loss = row.loss_least is None
        return row.phase in (*_MIXED, "diverged"), no_loss, row.loss or row.loss_least or 0.0

    return sorted(found, key=place)


def _phase(label: str, members: Sequence[Member], point: CriticalPoint | None) -> Phase:
    losses = [m.final_loss for m in members if m.final_loss is not None]
    estimates = [m for m in members if m.llc is not None]
    ok = [m.llc for m in estimates if m.llc is not None and m.llc_verdict == "ok"]
    one_level = label not in _MIXED or len(members) == 1
    return Phase(
        phase=label,
        members=len(members),
        loss=float(np.mean(losses)) if losses and one_level else None,
        loss_least=min(losses, default=None),
        loss_most=max(losses, default=None),
        theory_loss=None if point is None else point.loss,
        llc=float(np.mean(ok)) if ok and one_level else None,
        llc_stderr=float(np.std(ok, ddof=1) / len(ok) ** 0.5)
        if len(ok) > 1 and one_level
        else None,
        llc_ok=len(ok),
        llc_tried=len(estimates),
        theory_llc=None if point is None else point.llc,
    )
