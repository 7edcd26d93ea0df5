"""Rows about crossings of the posterior: their errors, and what few replicates cannot say."""

import math

import pytest

from kgon.paper.bayes import figure_2, population_crossing
from kgon.posterior.phase_diagram import PhaseDiagram, PosteriorRow, ShareRow


def population(*crossings):
    row, _ = population_crossing(
        {"crossings": crossings, "sizes": [], "shares": {}, "n_particles": 1024}
    )
    return row


def test_the_error_over_four_replicates_has_students_factor():
    row = population(510.0, 514.0, 518.0, 522.0)
    sd = math.sqrt((36 + 4 + 4 + 36) / 3)
    # The 97.5% quantile of Student's t with three degrees of freedom.
    assert row.stderr == pytest.approx(sd / 2 * 3.18245 / 2, rel=1e-5)
    assert "4 of 4 replicates" in row.remark and "from these 4" in row.remark


def test_one_crossing_has_no_error_and_says_so():
    row = population(510.0, None)
    assert row.value == 510 and row.stderr is None
    assert "1 of 2 replicates" in row.remark and "no error" in row.remark
    none = population(None, None)
    assert math.isnan(none.value) and none.stderr is None and "0 of 2" in none.remark


def diagram(*crossings):
    """Log odds of 6 against 5 are linear in n, and pass 0 at these n."""
    blank = dict.fromkeys(("log_evidence", "log_evidence_stderr", "mean_loss", "mean_loss_stderr",
                           "rhat", "acceptance", "n_rungs"))  # fmt: skip
    rows, shares = [], []
    for n in (400, 600, 800):
        for d, at in enumerate(crossings):
            place = {"n_samples": n, "dataset": d}
            rows.append(PosteriorRow(**place, verdict="ok", **blank))
            p = 1 / (1 + math.exp((at - n) / 100))
            shares += [ShareRow(**place, rule="quench", by="k", phase=k, share=s, stderr=None)
                       for k, s in (("5", 1 - p), ("6", p))]  # fmt: skip
    return PhaseDiagram(rows, shares, [], [], [], n_draws=10**9)


@pytest.mark.parametrize(
    ("crossings", "error", "words"),
    [
        ((500.0, 700.0), 100 * 12.7062 / 2, "2 of 2 data sets cross, sd 141"),
        ((500.0, 900.0), None, "1 of 2 data sets cross: one crossing has no error"),
    ],
)
def test_the_error_over_data_sets(crossings, error, words):
    row = figure_2(diagram(*crossings), 5, math.sqrt(0.5), ("4", "5"))[0][0]
    assert row.stderr is None and "0 of 2" in row.remark
    row = figure_2(diagram(*crossings), 6, math.sqrt(0.5), ("5", "6"))[0][0]
    assert row.stderr == (None if error is None else pytest.approx(error, rel=1e-4))
    assert words in row.remark
