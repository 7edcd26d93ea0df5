"""Transitions along edges of the atlas's graph, and how close to the pass; three dimensions."""

import math

import numpy as np
import pytest

from kgon.paper import passes, three_dimensions
from kgon.posterior.phase_diagram import PhaseDiagram, PosteriorRow, ShareRow
from kgon.theory.atlas import built
from kgon.theory.free_energy import critical_sample_size


def crossing(member, start, end, way="", distance=None):
    return {"member": member, "start": start, "end": end, "left": 100, "arrived": 300, "way": way,
            "distance": distance, "nearest": 100 if way else None}  # fmt: skip


FOUND = {
    "members": 5,
    "snapshots": 100,
    "crossings": [
        crossing(0, "4+", "5", "4d2a+", 0.05),
        crossing(1, "4+", "5", "4d2a+", 0.07),
        crossing(2, "4+", "5", "4d2a+", 0.13),
        crossing(3, "4+-", "4"),
        crossing(4, "4-", "4"),
    ],
    "edges": [{"way": "4d2a+", "from": "4+", "to": "5", "loss": 0.1044, "growth": 50.0,
               "phases": {"4+": [0.16, 0.1042], "5": [0.6, 0.0687]}, "paths": [],
               "staying": [0.1, 0.07]}],
    "descents": {"4+": {"4+": 100}, "4+-": {"4": 40, "4+": 60}, "4-": {"4-": 100}},
}  # fmt: skip


def test_close_is_within_half_of_the_distance_of_the_phase_that_is_left():
    total, along, saddles, close = passes.rows(FOUND)
    assert total.value == 5 and along.text == "3 of 5"
    assert saddles.text == "1 of 2"  # of 4+- and 4-, the first only has a + and a -
    assert close.value == pytest.approx(2 / 3)
    assert "4.0 (median) e-folding times" in close.remark
    assert "of 2 runs that stay in 4+ 1 come as close" in close.remark


def test_the_table_has_a_line_for_each_kind():
    header, body = passes.table(FOUND)[1:]
    assert all(len(line) == len(header) for line in body)
    assert body[0][:3] == ["4+ → 5", "3", "4d2a+"] and "2 of 3" in body[0]
    assert body[1] == ["4+- → 4", "1", "none", *["-"] * 5, "40 of 100"]


def test_a_stay_begins_at_its_first_label():
    labels = np.array(["5", "other", "4+", "other", "4+", "4+"])
    assert passes._since(labels, "4+") == 2 and passes._since(labels[:1], "5") == 0


def diagram():
    """Odds of 7 against 6 that pass through 1 at n = 250."""
    blank = dict.fromkeys(("log_evidence", "log_evidence_stderr", "mean_loss", "mean_loss_stderr",
                           "rhat", "acceptance", "n_rungs"))  # fmt: skip
    rows, shares = [], []
    for n in (200, 300):
        place = {"n_samples": n, "dataset": 0}
        rows.append(PosteriorRow(**place, verdict="ok", **blank))
        p = 1 / (1 + math.exp((250 - n) / 50))
        for family, label, share in (("6", "2x2x2", 1 - p), ("7", "7d3a", p)):
            more = {"rule": "quench", "share": share, "stderr": None}
            shares += [ShareRow(**place, **more, by=by, phase=phase)
                       for by, phase in (("k", family), ("label", label))]  # fmt: skip
    return PhaseDiagram(rows, shares, [], [], [], n_draws=10**9)


def test_the_crossing_in_three_dimensions_stands_beside_that_of_free_energies():
    measured, predicted, checked = three_dimensions.rows(diagram())[0]
    assert measured.value == pytest.approx(250) and measured.stderr is None
    points = (built(7, 3)[label] for label in ("2x2x2", "7d3a"))
    assert predicted.value == critical_sample_size(*points, halved=True)
    assert checked.text == "2 of 2"
