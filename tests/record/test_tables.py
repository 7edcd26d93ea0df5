"""A table's types do not depend on its values, and what is counted from members is right."""

import math
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kgon.cli.columns import TABLES
from kgon.files import finite_or_none
from kgon.record import tables
from kgon.record.tables import RECORDED, Member, Plateau, Transition, table
from kgon.theory.critical import critical_points


def member(number, phase="5", stages="4+ -> 5", **rest):
    return Member(
        **{
            "member": number,
            "state": "finished",
            "diverged_at": None,
            "final_loss": 0.07,
            "loss_stderr": None,
            "phase": phase,
            "n_transitions": stages.count("->"),
            "stages": stages,
            "llc": None,
            "llc_stderr": None,
            "llc_verdict": None,
            "features_represented": None,
            "dimensionality": None,
            "interference": None,
        }
        | rest
    )


@dataclass
class Inner:
    """What a row holds.

    Attributes:
        x, y (loss): where
            it is.
    """

    x: float
    y: int | None


@dataclass
class Outer:
    """A row.

    Attributes:
        good: whether it is.
    """

    good: bool
    word: Literal["one", "two"]
    inner: Inner
    from_: str | None = field(default=None, metadata={"column": "from"})
    other: "Other | None" = None


@dataclass
class Other:
    number: int


COLUMNS = [
    ("good", pa.bool_(), False), ("word", pa.string(), False), ("x", pa.float64(), False),
    ("y", pa.int64(), True), ("from", pa.string(), True), ("number", pa.int64(), True),
]  # fmt: skip


def test_columns_are_those_of_the_dataclass_whatever_the_values(tmp_path):
    rows = [Outer(True, "one", Inner(1, None)), Outer(False, "two", Inner(2, 3), "a", Other(4))]
    for some in ([], rows[:1], rows[1:], rows):
        pq.write_table(table(Outer, some), tmp_path / "rows.parquet")
        read = pq.read_table(tmp_path / "rows.parquet")
        assert [(f.name, f.type, f.nullable) for f in read.schema] == COLUMNS
        assert read.to_pylist() == [tables.plain(row) for row in some]
    assert read["number"].to_pylist() == [None, 4] and read["x"].to_pylist() == [1.0, 2.0]
    told = {column.name: (column.unit, column.meaning) for column in tables.columns(Outer)}
    assert told["x"] == told["y"] == ("loss", "where it is.")
    assert told["good"] == ("", "whether it is.")


@pytest.mark.parametrize("kind", [k for own in (RECORDED, *TABLES.values()) for k in own.values()])
def test_a_tables_columns_have_names_of_their_own(kind):
    names = tables.schema(kind).names
    assert len(names) == len(set(names)) > 1


def test_a_column_without_a_value_keeps_its_type():
    blank = table(Member, [member(0)])
    full = table(Member, [member(0, llc=7.0, llc_stderr=0.1, llc_verdict="ok", diverged_at=3)])
    assert blank.schema == full.schema
    assert blank["llc"].to_pylist() == [None]


def test_rows_are_read_as_they_were_written():
    written = [member(3, llc=7.0), member(4, phase=None, stages="")]
    assert [Member.of(row) for row in table(Member, written).to_pylist()] == written
    (row,) = table(Transition, [Transition("4+", "5", 2)]).to_pylist()
    assert row == {"from": "4+", "to": "5", "members": 2}
    assert Transition.of(row) == Transition("4+", "5", 2)


def test_what_is_not_finite_is_blank():
    assert [finite_or_none(v) for v in (1.5, None, math.nan, math.inf)] == [1.5, None, None, None]
    row = tables.plain(member(0)) | {"final_loss": math.nan}
    assert Member.of(row).final_loss is None


def test_stages_are_plateaus_near_a_level_without_repetitions():
    def plateau(start, nearest, distance, of=0):
        return Plateau(of, start, start + 10, 0.1, nearest, distance)

    far = 2 * tables.LEVEL_TOLERANCE
    passed = tables.stages(
        [
            plateau(0, "4-", 0.0),
            plateau(20, "4", far),
            plateau(40, "4+", 0.0, of=1),
            plateau(60, "4-", 0.0),
            plateau(80, "5", 0.0),
            plateau(100, None, None),
            plateau(120, "4-", 0.0),
        ],
        0,
    )
    assert [(p.start, p.nearest) for p in passed] == [(0, "4-"), (80, "5"), (120, "4-")]


def test_transitions_are_counted_over_members():
    members = [
        member(0),
        member(1, stages="4- -> 4+ -> 5"),
        member(2, stages="5"),
        member(3, stages=""),
    ]
    found = tables.transitions(members)
    assert found == [Transition("4+", "5", 2), Transition("4-", "4+", 1)]


def test_members_of_no_phase_have_a_range_of_losses_and_no_means():
    for group in ("other", None):
        members = [
            member(i, phase=group, final_loss=loss, llc=5.0, llc_verdict="ok")
            for i, loss in enumerate([0.01, 0.07])
        ]
        (row,) = tables.phases(members, [])
        assert (row.loss_least, row.loss_most) == (0.01, 0.07)
        assert row.loss is None and row.llc is None and row.llc_stderr is None
        assert (row.llc_ok, row.llc_tried) == (2, 2)


def test_phases_average_losses_and_trusted_estimates():
    members = [
        member(0, final_loss=0.068, llc=7.0, llc_verdict="ok"),
        member(1, final_loss=0.070, llc=8.0, llc_verdict="ok"),
        member(2, final_loss=0.069, llc=90.0, llc_verdict="escaped"),
        member(3, phase="other", final_loss=0.01),
        member(4, state="diverged", phase=None, final_loss=None),
    ]
    five, other, diverged = tables.phases(members, critical_points(6))
    known = next(p for p in critical_points(6) if p.label == "5")
    assert (five.phase, five.members, five.llc_ok, five.llc_tried) == ("5", 3, 2, 3)
    assert (five.theory_loss, five.theory_llc) == (known.loss, known.llc)
    assert five.loss == pytest.approx(0.069) and five.llc == 7.5
    assert five.llc_stderr == pytest.approx(0.5)  # 0.7071 / sqrt(2)
    assert {other.phase, diverged.phase} == {"other", "diverged"}
    assert diverged.loss is None and diverged.theory_loss is None
