"""The phase diagram: a cell is a function of its own settings; interruptions; tables."""

import dataclasses
import json
import math

import pytest
import torch

from kgon.posterior import sample as module
from kgon.posterior.cell import Settings
from kgon.posterior.phase_diagram import PhaseDiagram, PosteriorRow, ShareRow
from kgon.posterior.sample import sample_phase_diagram
from kgon.posterior.transitions import predicted_transitions, sampled_transitions
from kgon.theory.critical import critical_point
from kgon.theory.free_energy import free_energy

SMC = dict(n_particles=64, n_replicates=2, ess=0.5, n_moves=2, n_leapfrog=4, target_acceptance=0.85)
SIZES = [60, 20, 40]


def settings(n_features=6, smc=SMC, **others):
    return Settings(n_features=n_features, smc=smc, **others)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return sample_phase_diagram(tmp_path_factory.mktemp("whole"), SIZES, 2, settings())


@pytest.mark.parametrize("finished", [1, 4])
def test_an_interrupted_diagram_goes_on_to_bit_identical_results(
    whole, tmp_path, monkeypatch, finished
):
    calls = []
    original = module.sample_cell

    def stops(n, dataset, settings):
        if len(calls) == finished:
            raise KeyboardInterrupt
        calls.append((n, dataset))
        return original(n, dataset, settings)

    monkeypatch.setattr(module, "sample_cell", stops)
    with pytest.raises(KeyboardInterrupt):
        sample_phase_diagram(tmp_path, SIZES, 2, settings())
    assert len(list(tmp_path.glob("n*.json"))) == finished

    again = []

    def counts(n, dataset, settings):
        again.append((n, dataset))
        return original(n, dataset, settings)

    monkeypatch.setattr(module, "sample_cell", counts)
    resumed = sample_phase_diagram(tmp_path, SIZES, 2, settings())
    assert resumed == whole
    assert not set(calls) & set(again) and len(again) == 6 - finished


def test_cells_do_not_depend_on_company_or_workers(whole, tmp_path):
    alone = sample_phase_diagram(tmp_path, [40], 1, settings(), workers=2)
    for name in ("posteriors", "shares", "agreement", "llc"):
        mine = [r for r in getattr(whole, name) if (r.n_samples, r.dataset) == (40, 0)]
        assert getattr(alone, name) == mine


def test_another_seed_or_data_set_is_another_posterior(whole, tmp_path):
    other = sample_phase_diagram(tmp_path, [40], 2, settings(seed=1))
    values = [r.log_evidence for r in whole.posteriors if r.n_samples == 40]
    values += [r.log_evidence for r in other.posteriors]
    assert len(set(values)) == 4


def test_cells_of_other_settings_are_refused(tmp_path):
    sample_phase_diagram(tmp_path, [20], 1, settings())
    with pytest.raises(ValueError, match="other settings"):
        sample_phase_diagram(tmp_path, [20], 1, settings(noise_std=0.5))


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        (dict(n_features=5), ["quench", "output", "hull"]),
        (dict(n_features=5, importance=0.7), ["output", "hull"]),
        pytest.param(dict(n_features=4, n_hidden=3), ["quench", "output"], marks=pytest.mark.slow),
        (dict(n_features=6, prior_std=0.5, noise_std=math.sqrt(0.5)), ["quench", "output", "hull"]),
    ],
)
def test_shares_are_probabilities_under_every_rule(tmp_path, options, rules):
    # n = 1 is a data set in which most features never occur.
    diagram = sample_phase_diagram(tmp_path, [1, 50], 1, settings(**options))
    assert diagram.rules == rules
    for rule in rules:
        for by in ("k", "label"):
            total = sum(diagram.share(by, rule).values())
            torch.testing.assert_close(total, torch.ones(2, 1).double(), rtol=0, atol=1e-12)
    for rule in rules[1:]:
        agree = diagram.agreement_with(rule)
        assert bool(((agree >= 0) & (agree <= 1)).all())
    # Replicates are finite, so is every point's evidence; the likelihood is at most 1.
    assert bool((diagram.column("log_evidence") < 0).all())
    json.dumps(dataclasses.asdict(diagram), allow_nan=False)


def made_up(n, odds):
    """A diagram whose two phases have the given log odds, (n_sizes, n_datasets)."""
    rows, shares = [], []
    blank = dict.fromkeys(("log_evidence", "log_evidence_stderr", "mean_loss", "mean_loss_stderr",
                           "rhat", "acceptance", "n_rungs"))  # fmt: skip
    for size, row in zip(n, odds, strict=True):
        for d, value in enumerate(row):
            place = {"n_samples": size, "dataset": d}
            rows.append(PosteriorRow(**place, verdict="ok", **blank))
            p = 1 / (1 + math.exp(-value))
            shares += [
                ShareRow(**place, rule="quench", by=by, phase=phase, share=share, stderr=None)
                for phase, share in (("5", 1 - p), ("6", p))
                for by in ("k", "label")
            ]
    return PhaseDiagram(rows, shares, [], [], [], n_draws=10**9)


def test_the_crossing_is_where_the_odds_pass_through_one():
    # Odds linear in n: 5 and 6 are equally likely at n = 500 and 700 exactly; the third stays.
    n = [200, 400, 600, 800]
    odds = [[(size - 500) / 100, (size - 700) / 100, -1.0] for size in n]
    found = {(t.by, t.alpha, t.beta): t for t in sampled_transitions(made_up(n, odds))}
    there, back = found["k", "5", "6"], found["k", "6", "5"]
    assert there.crossed == pytest.approx(2 / 3)
    assert there.crossing == pytest.approx(600, rel=1e-9)
    assert there.crossing_sd == pytest.approx(math.sqrt(2) * 100, rel=1e-9)
    assert there.n_crossed == 2
    assert there.crossing_error == pytest.approx(100 * 12.7062 / 2, rel=1e-4)
    assert there.log_odds_last == pytest.approx((3 + 1 - 1) / 3, rel=1e-6)
    assert there.notable
    assert back.crossed == 0 and back.crossing is None and not back.notable
    (once,) = (
        t
        for t in sampled_transitions(made_up(n, [row[:1] for row in odds]))
        if (t.by, t.alpha, t.beta) == ("k", "5", "6")
    )
    assert once.n_crossed == 1 and once.crossing == pytest.approx(500, rel=1e-9)
    assert once.crossing_error is None and once.crossing_sd is None


def test_free_energies_are_equal_at_every_predicted_crossing():
    found = predicted_transitions(6, llc={"4+": 5.0})
    assert {("5", "6", ""), ("4+", "5", "4+: 5")} <= {(t.alpha, t.beta, t.llc) for t in found}
    for transition in found:
        assert transition.delta_loss < 0 < transition.delta_llc
        llc = {"4+": 5.0} if transition.llc else None
        for n, halved in ((transition.full, False), (transition.halved, True)):
            if n is not None:
                before, after = (
                    free_energy(critical_point(label, 6), n, halved=halved, llc=llc)
                    for label in (transition.alpha, transition.beta)
                )
                assert before == pytest.approx(after, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_samples=600), "n_samples must be a list"),
        (dict(n_samples=[]), "n_samples must be a list"),
        (dict(n_samples=[0, 5]), r"got \[0, 5\]"),
        (dict(n_samples=[1.5]), "whole numbers"),
        (dict(n_samples=[5, 5]), "twice"),
        (dict(n_datasets=0), "n_datasets must be a whole number >= 1, got 0"),
        (dict(noise_std=0.0), "noise_std must be positive and finite, got 0.0"),
        (dict(prior_std=-1.0), "prior_std must be positive"),
        (dict(smc=SMC | dict(n_particles=1)), "n_particles must be a whole number >= 2, got 1"),
        (dict(smc=SMC | dict(ess=1.0)), "smc.ess must lie in"),
        (dict(importance=[1.0]), "importance"),
        (dict(workers=0), "workers must be"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, change, message):
    sizes = {"n_samples": [5], "n_datasets": 1, "workers": 1}
    sizes |= {name: value for name, value in change.items() if name in sizes}
    others = {name: value for name, value in change.items() if name not in sizes}
    with pytest.raises(ValueError, match=message):
        sample_phase_diagram(tmp_path / "cells", settings=settings(**others), **sizes)
    assert not (tmp_path / "cells").exists()
