"""Transitions and their antecedents."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kgon.data import SingleFeature
from kgon.paper import dynamics
from kgon.paper.antecedents import (
    ANTECEDENT,
    INCONCLUSIVE,
    NONE,
    antecedent_rows,
    antecedents,
)
from kgon.paper.ensemble import Ensemble
from kgon.posterior.transitions import SampledTransition
from kgon.record.run_directory import Run
from kgon.theory.critical import critical_point

STEP = [10, 20, 30, 40, 50, 60]


def ensemble(paths, llc, lr=0.01):
    """Members that rest on the levels of their path, for equal times; llc (steps, members)."""
    plateaus, n = [], len(paths)
    for member, path in enumerate(paths):
        length = 60 // len(path)
        plateaus += [
            {"member": member, "start": i * length, "end": (i + 1) * length - 1, "distance": 1e-4,
             "nearest": label, "loss": critical_point(label, 6).loss}
            for i, label in enumerate(path)
        ]  # fmt: skip
    table = pa.table({"step": np.repeat(STEP, n), "member": np.tile(range(n), len(STEP)),
                      "mean": np.asarray(llc, dtype=float).ravel()})  # fmt: skip
    config = {"model": {"n_features": 6, "n_hidden": 2, "optimizer": {"lr": lr}},
              "trainer": {"max_steps": 60}, "datamodule": {"batch_size": 20}}  # fmt: skip
    members = [{"member": m, "phase": path[-1], "final_loss": 0.1} for m, path in enumerate(paths)]
    return Ensemble(Run(Path("run"), config, {}, members, None, None, plateaus, table))


def crossing(alpha, beta, crossed):
    return SampledTransition(by="label", alpha=alpha, beta=beta, crossed=crossed, crossing=300.0,
                             n_crossed=1, crossing_error=None, crossing_sd=None,
                             log_odds_first=1.0, log_odds_last=2.0,
                             largest_share_from=1.0, largest_share_to=1.0)  # fmt: skip


def antecedent(llc, posterior=()):
    (row,) = antecedents(ensemble([("4+", "5")] * len(llc[0]), llc), posterior)
    return row


RISING = [[4, 4.1, 3.9]] * 2 + [[5, 4.8, 5.1]] + [[7, 7.2, 6.9]] * 3
FALLING = RISING[::-1]
LEVEL = [[5, 4, 6]] * 3 + [[4.5, 5.0, 5.6]] * 3


@pytest.mark.parametrize("n_features", [6, 7])  # with six features the phases are the k-gons
def test_the_points_are_those_that_name_the_stages_of_runs(n_features):
    config = {"model": {"n_features": n_features, "n_hidden": 2}}
    points = Ensemble(Run(Path("run"), config, {}, [], None, None, [], None)).points
    assert list(points) == SingleFeature(n_features).critical_points(2, None)


def test_a_transition_is_counted_with_its_changes():
    row = antecedent(RISING)
    assert (row.alpha, row.beta, row.members, row.paired) == ("4+", "5", 3, 3)
    assert row.delta_loss == pytest.approx(-0.0354231, abs=1e-6)
    assert row.delta_llc_theory == -1
    # The steps 10 and 20 are in the first stage, 30 .. 50 in the second; 60 is after its end.
    after, before = np.mean(np.array(RISING)[2:5], 0), np.mean(np.array(RISING)[:2], 0)
    assert row.delta_llc_estimate == pytest.approx(float((after - before).mean()))


@pytest.mark.parametrize(
    ("llc", "crossed", "verdict"),
    [(RISING, None, ANTECEDENT), (FALLING, None, NONE), (LEVEL, None, INCONCLUSIVE),
     (FALLING, 1.0, ANTECEDENT), (FALLING, 0.5, ANTECEDENT), (FALLING, 0.4, NONE),
     ([[math.nan] * 3] * 6, None, INCONCLUSIVE)],
)  # fmt: skip
def test_the_verdict_of_the_hypothesis(llc, crossed, verdict):
    posterior = [] if crossed is None else [crossing("4+", "5", crossed)]
    assert antecedent(llc, posterior).verdict == verdict


def test_a_transition_without_antecedent_is_shown_as_not_reproduced():
    table = antecedents(ensemble([("4+", "5")] * 3, FALLING), [])
    claim = antecedent_rows(table, 3)[0]
    assert claim.verdict == "not reproduced"
    assert "4+ → 5" in claim.text


def test_five_to_six_in_training_contradicts_the_paper():
    table = antecedents(ensemble([("5", "6")] * 3, RISING), [])
    row = next(r for r in antecedent_rows(table, 3) if "5 → 6" in r.quantity)
    assert row.verdict == "not reproduced"


def test_the_first_transition_is_the_end_of_the_first_plateau():
    row = dynamics.first_transition(ensemble([("4+", "5"), ("4",), ("4+-", "4")], LEVEL))
    assert (row.members, row.left) == (3, 2)
    assert row.median == pytest.approx(29 * 0.01)
