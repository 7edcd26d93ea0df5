"""The examples run, and what they watch is what they say."""

import importlib
import math
from pathlib import Path

import pytest
from devinterp.optim import SGMCMC

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

SHORT = dict(n_chains=2, n_draws=4, n_burnin=1, sampler=SGMCMC.sgld, lr=1e-6)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.mark.parametrize("name", ["digits", "modular_addition", "induction"])
def test_an_example_runs(name, example, tmp_path, capsys):
    figure = tmp_path / "figure.png"
    llc, *losses = example(name).main(steps=20, every=20, figure=figure, **SHORT)
    assert [row["step"] for row in llc.rows] == [0, 20]
    assert all(math.isfinite(row["mean"]) for row in llc.rows)
    for each in losses:
        assert [row["step"] for row in each.rows] == [0, 10, 20]
    train = losses[0].rows
    assert train[-1]["loss"] < train[0]["loss"]
    assert figure.stat().st_size > 0 and "verdict" in capsys.readouterr().out


@pytest.mark.slow
def test_an_examples_estimate_is_devinterps(example):
    compare = example("against_devinterp").main
    ((mine, theirs, error),) = compare(["digits"], n_chains=6, n_draws=100, n_burnin=50).values()
    # Student's factor for the standard error of few chains: 4.8 at five degrees of freedom.
    assert abs(mine - theirs) < 4.8 * error
