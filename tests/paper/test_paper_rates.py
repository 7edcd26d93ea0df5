"""Rates of leaving a phase: fits, and members that leave."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kgon.paper.ensemble import Ensemble
from kgon.paper.rates import fall, langevin_rows, leaving, sgd_rows
from kgon.paper.rows import NOT, UNPUBLISHED
from kgon.record.run_directory import Run


def test_the_fall_of_an_exponential_is_its_rate_and_its_error_that_of_counts():
    x, counts = [1.0, 2.0, 4.0], [400, 100, 25]
    slope, error, start = fall(x, [5 * math.exp(-0.3 * v) for v in x], counts)
    assert slope == pytest.approx(0.3) and start == pytest.approx(math.log(5))
    mean = np.average(x, weights=counts)
    assert error == pytest.approx(1 / math.sqrt(np.dot(counts, (np.array(x) - mean) ** 2)))


def escape(barriers, n, ratio, end="7", predicted=0.01):
    """A row of a table of escapes: n escapes, at this ratio to the prediction."""
    measured = ratio * predicted
    return {"start": "7d2a", "end": end, "temperature": 0.001, "barrier": 0.001 * barriers,
            "predicted": predicted, "measured": measured, "error": measured / math.sqrt(n),
            "n_escapes": n}  # fmt: skip


def test_rates_are_compared_with_the_law_and_never_count_as_the_papers():
    table = [escape(3, 100, 0.5), escape(4, 100, 1.1), escape(5, 25, 1.0, "6+")]
    table.append(escape(math.nan, 4, 1.0, "6") | {"predicted": 0.0})
    low, high, _, other, unknown = langevin_rows(table)
    assert (low.value, low.stderr) == pytest.approx((0.5, 0.05))
    assert low.agreement == NOT and high.agreement != NOT
    assert low.verdict == high.verdict == UNPUBLISHED
    # 25 escapes at the predicted rate: the time in the phase is 2500, 25 were to be expected.
    assert (other.value, other.stderr) == pytest.approx((1.0, 0.2))
    assert unknown.text == "4 of 229" and "4 to 6" in unknown.remark


def ensemble(phases, lr=0.1, batch_size=2):
    """Members by their phases at steps 0, 10, 20, ..."""
    n, steps = len(phases), len(phases[0])
    table = pa.table({"step": np.repeat(10 * np.arange(steps), n), "member": [*range(n)] * steps,
                      "phase": [phases[m][s] for s in range(steps) for m in range(n)]})  # fmt: skip
    config = {"model": {"init": {"label": "a"}}, "optimizer": {"lr": lr}, "batch_size": batch_size}
    members = [{"member": m} for m in range(n)]
    return Ensemble(Run(Path("run"), config, {}, members, None, table, [], None))


def test_a_member_has_left_when_it_is_in_another_phase():
    left = leaving(ensemble([["a", "a", "other", "b", "a"], ["a", "other", "a", "other", "other"]]))
    # The first was in its phase until between steps 10 and 30, the second to the end at 40.
    assert left.ends == {"b": 1} and left.left == 1 and left.ratio == 20
    assert left.rate == pytest.approx(1 / ((20 + 40) * 0.1))
    # One that was never seen in its phase was there from step 0 until between 0 and 20.
    unseen = leaving(ensemble([["other", "other", "b"]]))
    assert unseen.rate == pytest.approx(1 / (10 * 0.1))


def test_rates_at_one_ratio_are_compared_with_the_errors_of_counts():
    gone = [["a", "b", "b", "b"]] * 25
    runs = [leaving(ensemble(gone, lr, batch)) for lr, batch in ((0.05, 1), (0.1, 2))]
    row = sgd_rows(runs)[0]
    # The same number of steps is twice the time at twice the learning rate.
    assert (row.value, row.stderr) == pytest.approx((0.5, 0.5 * math.sqrt(2 / 25)))
