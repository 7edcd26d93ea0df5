"""Tables: a dataclass for each kind of row. Those of a training run are here, and counts of rows.

The types of a table's columns follow from the dataclass, not from the values, so they are the same
for every run, even if a table is empty. Values that are not finite are left blank; in tables with a
row for each step and member they are NaN.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

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

_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}

_COLUMN = re.compile(r"^ {8}(\w+(?:, \w+)*)(?: \((.+?)\))?: (.+(?:\n {12}.+)*)", re.M)
"""Columns in the docstring of a row: names, unit if there is one, meaning."""


class Column(NamedTuple):
    """A column of a table; `unit` is empty for a name, a count or a number without one."""

    name: str
    type: pa.DataType
    may_be_blank: bool
    unit: str
    meaning: str


@cache
def columns(kind: type, may_be_blank: bool = False) -> tuple[Column, ...]:
    """The columns of a table whose rows are of this dataclass.

    A field of type bool, int, float, str or Literal is a column, blank where it is None; the
    metadata `column` gives it another name. A field that is a dataclass stands for the columns of
    that, all blank where it is None. The docstring explains them: `name (unit): meaning`.
    """
    docstrings = "\n".join(each.__doc__ or "" for each in kind.__mro__)
    explained = {name: (unit, " ".join(text.split()))
                 for names, unit, text in _COLUMN.findall(docstrings)
                 for name in names.split(", ")}  # fmt: skip
    hints = get_type_hints(kind)
    found: list[Column] = []
    for each in fields(kind):
        kinds = [t for t in get_args(hints[each.name]) or (hints[each.name],) if t is not NoneType]
        of: Any = str if get_origin(hints[each.name]) is Literal else kinds[0]
        blank = may_be_blank or NoneType in get_args(hints[each.name])
        if of in _TYPES:
            told = explained.get(each.name, ("", ""))
            found.append(Column(_name(each), _TYPES[of], blank, *told))
        else:
            found += columns(of, blank)
    return tuple(found)


def _name(each: Any) -> str:
    """The name of a field's column."""
    name: str = each.metadata.get("column", each.name)
    return name


def schema(kind: type) -> pa.Schema:
    """The names and types of the columns, and whether they may be blank."""
    return pa.schema([pa.field(c.name, c.type, c.may_be_blank) for c in columns(kind)])


def plain(row: Any) -> dict[str, Any]:
    """The values of a row by column."""
    values: dict[str, Any] = dict.fromkeys(schema(type(row)).names)
    for each in fields(row):
        value = getattr(row, each.name)
        if is_dataclass(value):
            values |= plain(value)
        elif _name(each) in values:
            values[_name(each)] = value
    return values


def table(kind: type, rows: Iterable[Any]) -> pa.Table:
    """The rows, all of this dataclass, as an Arrow table."""
    return pa.Table.from_pylist([plain(row) for row in rows], schema=schema(kind))


@dataclass(frozen=True)
class Row:
    """A row of a table of a training run."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The row with these values by column; None where one is missing or not finite."""
        row = {each.name: values.get(_name(each)) for each in fields(cls)}
        return cls(**{k: finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()})

    @classmethod
    def long_table(
        cls, step: NDArray[Any], members: Sequence[int], columns: Mapping[str, NDArray[Any]]
    ) -> pa.Table:
        """A table with a row for each step and member, from columns (n_records, n_members)."""
        rows = {"step": np.repeat(step, len(members)), "member": np.tile(members, len(step))}
        rows |= {name: column.ravel() for name, column in columns.items()}
        return pa.table(rows, schema=schema(cls))


@dataclass(frozen=True)
class Member(Row):
    """The final results of a member; blank if the callback that records a result did not run.

    Columns:
        member: number of the member.
        state: finished or diverged.
        diverged_at (SGD steps): step at which it diverged; blank if it did not.
        final_loss (loss): expected loss at the last step.
        loss_stderr (loss): standard error of a final loss without a closed form, which is an
            estimate on other inputs than those of the table loss, the same for all members.
        phase: phase at the last step, by geometry.
        n_transitions: passages between stages; blank if no critical levels are known.
        stages: critical levels at which it had plateaus, `4++- -> 4+ -> 5`.
        llc: last estimate of the learning coefficient.
        llc_stderr: its total error.
        llc_verdict: its verdict: ok, unconverged, escaped, biased, diverged or unchecked.
        features_represented: features whose column of W is longer than 1/2.
        dimensionality: mean over these of the fraction of a hidden dimension that each has.
        interference: mean over these of the squared projections of other columns.
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
class Loss(Row):
    """The losses of a member at a step.

    Columns:
        step (SGD steps): step of training.
        member: number of the member.
        loss (loss): expected loss, E |x - f(x)|^2, summed over features; NaN once it diverged.
        train_loss (loss): loss on the member's own data set; NaN if inputs are fresh at every step.
    """

    step: int
    member: int
    loss: float
    train_loss: float


@dataclass(frozen=True)
class Snapshot(Row):
    """The phase of a member at a step at which its parameters were recorded.

    Columns:
        step (SGD steps): step of training.
        member: number of the member.
        phase: its phase, by geometry.
    """

    step: int
    member: int
    phase: str


@dataclass(frozen=True)
class Plateau(Row):
    """An interval of steps on which a member's loss hardly moves.

    Columns:
        member: number of the member.
        start (SGD steps): first step of the plateau.
        end (SGD steps): last step of the plateau.
        loss (loss): mean expected loss on it.
        nearest: critical point whose loss is nearest; blank if none is known.
        distance (loss): its distance in loss.
    """

    member: int
    start: int
    end: int
    loss: float
    nearest: str | None
    distance: float | None


@dataclass(frozen=True)
class Transition(Row):
    """A passage from one stage to the next.

    Columns:
        from_: critical level of the earlier stage.
        to: critical level of the later stage.
        members: how many members of the run made the passage.
    """

    from_: str = field(metadata={"column": "from"})
    to: str
    members: int


@dataclass(frozen=True)
class LLCEstimate(Row):
    """An estimate of the learning coefficient at a member's parameters at a step.

    Columns:
        step (SGD steps): step of training.
        member: number of the member.
        mean: the estimate, nbeta (E[L] - L(w*)), mean over all draws.
        stderr: its total error, of the finite number of draws and of the step size.
        bias: the most that the step size may have shifted the estimate; 0 for HMC.
        variance: nbeta^2 Var L, which estimates the same coefficient without L(w*).
        variance_error: its total error.
        rhat: rank-normalised split R-hat, the larger of those of the loss and of |w - w*|^2.
        ess: bulk effective number of draws, all chains together.
        below: share of draws below L(w*) by more than chance explains.
        acceptance: mean Metropolis acceptance; NaN for samplers without one.
        reason: what the verdict rests on; empty if it is ok.
        verdict: ok, unconverged, escaped, biased, diverged or unchecked.
    """

    step: int
    member: int
    mean: float
    stderr: float
    bias: float
    variance: float
    variance_error: float
    rhat: float
    ess: float
    below: float
    acceptance: float
    reason: str
    verdict: str


RECORDED: dict[str, type[Row]] = {
    "members": Member,
    "loss": Loss,
    "snapshots": Snapshot,
    "plateaus": Plateau,
    "transitions": Transition,
    "llc": LLCEstimate,
}
"""The tables of a training run's folder, by file name, and their rows."""


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


def own_table(
    step: NDArray[Any], members: Sequence[int], columns: Mapping[str, Tensor]
) -> pa.Table:
    """A table of a callback of a user's own, with a row for each step and member.

    A column (n_records, n_members, ...) with more axes becomes one for each entry: W_0_1.
    """
    rows: dict[str, Any] = {
        "step": np.repeat(step, len(members)), "member": np.tile(members, len(step))
    }  # fmt: skip
    for name, column in columns.items():
        values = column.flatten(0, 1).numpy()
        for place in np.ndindex(*values.shape[1:]):
            rows["_".join([name, *map(str, place)])] = values[:, *place]
    return pa.table(rows)


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
