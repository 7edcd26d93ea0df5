"""The rules of the verdicts."""

import math

import pytest

from kgon.paper.rows import NOT, REMARK, REPRODUCED, UNPUBLISHED, Published, Row, share_stderr


def published(value, marks=("P",), **more):
    return Published(value, marks, "somewhere", **more)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.068735, REPRODUCED), (0.068744, REPRODUCED), (0.068746, NOT), (0.068734, NOT)],
)
def test_a_computed_number_must_round_to_the_published_digits(value, verdict):
    assert Row("L(5)", value, published(0.06874, digits=5)).verdict == verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (11.9, REPRODUCED),
        (8.1, REPRODUCED),
        (12.1, REMARK),
        (12.9, REMARK),
        (13.1, NOT),
        (6.9, NOT),
    ],
)
def test_a_measured_number_is_judged_in_joint_standard_errors(value, verdict):
    row = Row("x", value, published(10.0, spread=0.6), stderr=0.8)
    assert row.standard_errors == pytest.approx(value - 10)
    assert row.verdict == verdict


def test_rounding_of_the_published_number_is_an_error_too():
    row = Row("x", 10.0, published(9.0, digits=0), stderr=0.0)
    assert row.standard_errors == pytest.approx(math.sqrt(12))


@pytest.mark.parametrize(
    ("value", "difference", "verdict"),
    [
        (650, 0, REPRODUCED),
        (720, 20, REPRODUCED),
        (725, 25, REMARK),
        (735, 35, NOT),
        (580, -20, REPRODUCED),
    ],
)
def test_an_interval_is_as_far_as_its_nearer_end(value, difference, verdict):
    row = Row("n", value, published((600.0, 700.0)), stderr=10.0)
    assert row.difference == difference
    assert row.verdict == verdict


def test_a_statement_is_true_or_not():
    assert Row("q", True, published(True)).verdict == REPRODUCED
    assert Row("q", False, published(True)).verdict == NOT


def test_what_rests_on_an_inference_or_a_remark_is_never_without_remark():
    assert Row("x", 1.0, published(1.0, ("P", "I"))).verdict == REMARK
    assert Row("x", 1.0, published(1.0, ("R", "proposal"))).verdict == REMARK
    assert Row("x", 1.0, published(1.0), remark="known").verdict == REMARK
    # A remark excuses nothing.
    assert Row("x", 2.0, published(1.0), remark="known").verdict == NOT


def test_a_derivation_outside_the_paper_is_no_published_number():
    good, bad = (Row("x", value, published(1.0, ("D",))) for value in (1.0, 2.0))
    assert good.verdict == bad.verdict == UNPUBLISHED
    assert good.agreement == REPRODUCED and bad.agreement == NOT
    assert Row("x", 1.0).verdict == UNPUBLISHED


@pytest.mark.parametrize("value", [None, math.nan])
def test_no_number_is_not_reproduced(value):
    row = Row("n", value, published(600.0), stderr=1.0)
    assert row.verdict == NOT
    assert row.shown == "-" and row.plain()["kgon"] is None


def test_an_unknown_mark_is_refused():
    with pytest.raises(ValueError, match="marks must be some of P, R, A, D, I, proposal"):
        published(1.0, ("X",))


def test_the_error_of_a_share_of_none_is_not_zero():
    assert share_stderr(0, 100) == pytest.approx(math.sqrt(0.005 * 0.995 / 100))
    assert share_stderr(50, 100) == pytest.approx(0.05)
