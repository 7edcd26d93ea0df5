"""A table's types do not depend on its values, and what is counted from members is right."""

import dataclasses
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kgon.files import finite_or_none
from kgon.record import tables
from kgon.record.tables import Member, Phase, Plateau, Transition
from kgon.theory.critical import critical_points

_TYPES = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}


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


@pytest.mark.parametrize("kind", [Member, Plateau, Transition, Phase])
def test_an_empty_table_has_the_columns_and_types_of_the_dataclass(kind, tmp_path):
    pq.write_table(kind.table([]), tmp_path / "empty.parquet")
    schema = pq.read_schema(tmp_path / "empty.parquet")
    assert schema.names == list(kind.columns().values())
    for field in dataclasses.fields(kind):
        hint = getattr(field.type, "__name__", str(field.type)).split(" | ")[0]
        assert schema.field(kind.columns()[field.name]).type == _TYPES[hint]


def test_a_column_without_a_value_keeps_its_type():
    blank = Member.table([member(0)])
    full = Member.table([member(0, llc=7.0, llc_stderr=0.1, llc_verdict="ok", diverged_at=3)])
    assert blank.schema == full.schema
    assert blank["llc"].to_pylist() == [None]


def test_rows_are_read_as_they_were_written():
    written = [member(3, llc=7.0), member(4, phase=None, stages="")]
    assert [Member.of(row) for row in Member.table(written).to_pylist()] == written
    (row,) = Transition.table([Transition("4+", "5", 2)]).to_pylist()
    assert row == {"from": "4+", "to": "5", "members": 2}
    assert Transition.of(row) == Transition("4+", "5", 2)


def test_what_is_not_finite_is_blank():
    assert [finite_or_none(v) for v in (1.5, None, math.nan, math.inf)] == [1.5, None, None, None]
    row = member(0).plain() | {"final_loss": math.nan}
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
