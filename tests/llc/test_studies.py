"""Studies of learning coefficients: what their records say, and what they leave out."""

import math
from dataclasses import replace

import pytest
import torch

from kgon.llc.hmc import HMC
from kgon.llc.langevin import SGLD
from kgon.llc.studies import along_training, at_critical_points
from kgon.llc.study_rows import ChainSettings
from kgon.theory.critical import critical_point
from kgon.theory.loss import PopulationLoss

CHAINS = ChainSettings(nbeta=587.0, lr=5e-5, localization=0.1, n_chains=4, n_draws=30, n_burnin=10)


def snapshots(W, b, members):
    return along_training(
        PopulationLoss(), W, b, steps=[100], members=members, points=[critical_point("5", 6)],
        settings=CHAINS, loss="population", seed=0, sampler=SGLD,
    )  # fmt: skip


def test_a_diverged_member_is_left_out_and_changes_no_other():
    point = critical_point("5", 6)
    W, b = point.W.expand(1, 3, 2, 6).clone(), point.b.expand(1, 3, 6).clone()
    W[0, 1, 0, 0] = math.nan
    records = snapshots(W, b, [4, 7, 9])
    assert [(r.step, r.member, r.phase, r.theory) for r in records] == [
        (100, 4, "5", 7.0), (100, 9, "5", 7.0),
    ]  # fmt: skip
    (alone,) = snapshots(W[:, 2:], b[:, 2:], [9])
    assert records[1].estimate.llc == pytest.approx(alone.estimate.llc, rel=1e-12)


def test_another_sampler_than_hmc_has_the_exact_value_beside_it():
    points = [critical_point("5", 6)]
    chains = replace(CHAINS, localization=10.0)
    (record,) = at_critical_points(points, {5000: chains}, loss="population", seed=0, sampler=SGLD)
    hmc = ChainSettings(chains.nbeta, chains.localization)
    (exact,) = at_critical_points(points, {5000: hmc}, loss="population", seed=0, sampler=HMC())
    assert record.exact == exact.estimate.llc and record.exact_verdict == "ok"
    assert record.estimate.llc != record.exact and exact.exact is None


def test_chains_of_float32_estimate_the_same():
    points = [critical_point("5", 6)]
    found = [
        at_critical_points(
            points, {5000: CHAINS}, loss="population", seed=0, sampler=SGLD, dtype=dtype
        )
        for dtype in (torch.float64, torch.float32)
    ]
    double, single = (records[0].estimate for records in found)
    assert abs(double.llc - single.llc) < max(double.stderr, single.stderr)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        replace(CHAINS, lr=0.0)
