"""kgon posterior from the command line: what it leaves, what it refuses, how it ends."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from matplotlib.lines import Line2D
from small_job import read

from kgon.cli import main
from kgon.cli.posterior import TABLES
from kgon.figures import posterior as posterior_figures
from kgon.posterior import cell, sample
from kgon.posterior.nuts import NUTS
from kgon.posterior.phase_diagram import PhaseDiagram
from kgon.record import run_directory
from kgon.theory.critical import critical_point
from kgon.theory.loss import EmpiricalLoss

TINY = ["n_samples=[20,40,80]", "n_datasets=2", "smc.n_particles=32", "smc.n_replicates=2",
        "smc.n_moves=1", "smc.n_leapfrog=3", "smc.ess=0.3"]  # fmt: skip


@pytest.fixture(scope="module")
def job(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("posterior")
    done = zygote.run(folder, "posterior", *TINY, COLUMNS="140")
    assert done.status == 0, done.output
    (path,) = run_directory.find([folder / "multirun"])
    return folder, run_directory.load(path), done.output


@pytest.mark.parametrize(("n_hidden", "n_features"), [(1, 4), (3, 5)])
def test_other_sizes_than_the_papers_are_counted_by_what_is_on(
    zygote, tmp_path, n_hidden, n_features
):
    sizes = [f"model.n_hidden={n_hidden}", f"model.n_features={n_features}"]
    done = zygote.run(tmp_path, "posterior", *TINY, *sizes, "n_datasets=1", COLUMNS="140")
    assert done.status == 0, done.output
    (path,) = run_directory.find([tmp_path / "multirun"])
    rows = pq.read_table(run_directory.load(path).path / "shares.parquet").to_pylist()
    by_output = [row for row in rows if row["rule"] == "output" and row["by"] == "label"]
    assert by_output and not any("-" in row["phase"] for row in by_output)
    # n = 20: most draws have few of their features on.
    assert any(int(row["phase"][0]) < 4 for row in by_output)


def test_a_job_leaves_tables_figures_and_a_status(job):
    _, run, printed = job
    assert run.status["state"] == "finished" and run.config["command"] == "posterior"
    assert run.path.name.startswith("posterior-")
    tables = read(run.path, TABLES)
    assert set(tables) == {
        "posteriors", "shares", "agreement", "llc", "transitions", "predictions",
    }  # fmt: skip
    places = [(n, d) for n in (20, 40, 80) for d in (0, 1)]
    assert [(r["n_samples"], r["dataset"]) for r in tables["posteriors"]] == places
    for n, d in places:
        shares = [
            r["share"]
            for r in tables["shares"]
            if (r["n_samples"], r["dataset"], r["rule"], r["by"]) == (n, d, "hull", "k")
        ]
        assert sum(shares) == pytest.approx(1)
    for name in ("posterior_phases", "log_evidence", "llc"):
        assert (run.path / "figures" / f"{name}.png").stat().st_size > 1000
        assert (run.path / "figures" / f"{name}.svg").stat().st_size > 1000
    # The predictions of eq. (9) for both conventions stand beside what was measured.
    for word in ("601", "1316", "381", "Bayesian transitions", "LLC within a phase"):
        assert word in printed


def test_a_job_leaves_a_finished_wandb_run(job):
    folder, _, _ = job
    (path,) = folder.glob("multirun/*/wandb/offline-run-*")
    done = subprocess.run(
        [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", "--summary", path],
        capture_output=True,
        text=True,
        check=True,
    )
    tracked = json.loads(done.stdout)
    assert tracked["exit_code"] == 0
    assert tracked["config"]["n_samples"] == [20, 40, 80]
    summary = tracked["summary"]
    agreement = {"agreement/output", "agreement/hull"}
    assert {"log_evidence/80", "figures/posterior_phases", *agreement} <= summary.keys()
    assert any(key.startswith("share/") for key in summary)


def test_the_same_job_again_does_nothing_and_says_so(zygote, job):
    folder, run, _ = job
    kept = [run.path / "status.json", *run.path.glob("*.parquet"), *run.path.glob("points/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert "has finished before" in zygote.run(folder, "posterior", *TINY).output
    assert before == {path: path.stat().st_mtime_ns for path in kept}


def in_process(monkeypatch, folder, *words):
    monkeypatch.chdir(folder)
    # Where a word is said twice the last counts.
    monkeypatch.setattr(sys, "argv", ["kgon", "posterior", *TINY, "logger=none", *words])
    main()


def test_a_killed_job_goes_on_and_ends_as_if_nothing_had_happened(job, tmp_path, monkeypatch):
    original, calls = sample.sample_cell, []

    def stops(*place):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(place)
        return original(*place)

    monkeypatch.setattr(sample, "sample_cell", stops)
    with pytest.raises(SystemExit) as end:
        in_process(monkeypatch, tmp_path, "runs.workers=1")
    assert end.value.code == 130
    (path,) = run_directory.find([tmp_path / "multirun"])
    assert run_directory.load(path).status["state"] == "interrupted"
    monkeypatch.setattr(sample, "sample_cell", original)
    in_process(monkeypatch, tmp_path, "runs.workers=1")
    _, whole, _ = job
    assert path.name == whole.path.name
    for table in whole.path.glob("*.parquet"):
        assert pq.read_table(path / table.name).equals(pq.read_table(table))


def test_importance_weights_have_no_theory_and_say_so(tmp_path, monkeypatch, capsys):
    in_process(monkeypatch, tmp_path, "model.importance=0.8", "model.n_features=5")
    assert "without theory" in capsys.readouterr().out
    (path,) = run_directory.find([tmp_path / "multirun"])
    assert read(path, TABLES)["predictions"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n_samples=600"], "n_samples must be a list of whole numbers >= 1"),
        (["n_samples=[100,0]"], "got [100, 0]"),
        (["n_samples=[100,abc]"], "n_samples must be a list"),
        (["n_datasets=0"], "n_datasets must be a whole number >= 1, got 0"),
        (["noise_std=0"], "noise_std must be positive and finite, got 0"),
        (["smc.n_particles=1"], "smc.n_particles must be a whole number >= 2, got 1"),
        (["n_particles=100"], "did you mean smc.n_particles"),
        (["model.n_features=0"], "model.n_features must be a whole number >= 1, got 0"),
        (["pair=[5,5]"], "pair must be two different numbers"),
        (["runs.workers=0"], "runs.workers must be a whole number >= 1"),
        (["nuts.run=true", "nuts.start=9"], "nuts.start must be prior or a label"),
        (["nuts.run=true", "nuts.start=[6,9]"], "nuts.start must be prior or a label"),
        (["nuts.run=true", "nuts.start=[6,6]"], "a list of different ones"),
        (["nuts.run=true", "nuts.start=[]"], "nuts.start must be one start"),
        (["nuts.run=true", "nuts.n_draws=3"], "nuts.n_draws must be a whole number >= 4"),
        (["nuts.run=true", "model.importance=0.5"], "model.importance must be null"),
        (["seed=one"], "seed must be a number"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kgon", "posterior", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nuts_without_numpyro_names_the_extra(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numpyro" else find(name, *a)
    )
    with pytest.raises(SystemExit):
        in_process(monkeypatch, tmp_path, "nuts.run=true")
    complaint = capsys.readouterr().err
    assert "kgon[nuts]" in complaint and len(complaint.strip().splitlines()) == 1


@pytest.mark.slow
def test_nuts_runs_beside(tmp_path, monkeypatch, capsys):
    pytest.importorskip("numpyro")
    in_process(monkeypatch, tmp_path, "n_samples=[20]", "n_datasets=1", "nuts.run=true",
               "nuts.n_warmup=20", "nuts.n_draws=10")  # fmt: skip
    (path,) = run_directory.find([tmp_path / "multirun"])
    (row,) = read(path, TABLES)["chains"]
    assert row["start"] == "prior" and row["leapfrogs"] > 0
    assert "NUTS, prior" in capsys.readouterr().out


def standing_chains(x, *, start, n_chains, n_draws, **_):
    """A sampler whose chains never leave a critical point; those from the prior are on a 4-gon, but
    the first, which goes to a 5-gon half way."""
    W, b = start or (critical_point("4", 6).W, critical_point("4", 6).b)
    W, b = W.expand(n_draws, n_chains, 2, 6).clone(), b.expand(n_draws, n_chains, 6).clone()
    if start is None:
        W[n_draws // 2 :, 0] = critical_point("5", 6).W
        b[n_draws // 2 :, 0] = critical_point("5", 6).b
    return NUTS(W, b, EmpiricalLoss(x)(W, b), rhat=1.0, ess=9.0, divergences=0, leapfrogs=1)


def test_the_experiment_on_starts_shows_each_start_beside_smc(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: "here" if name == "numpyro" else find(name)
    )
    monkeypatch.setattr(cell, "sample_nuts", standing_chains)
    in_process(monkeypatch, tmp_path, "experiment=nuts_start", "nuts.n_draws=10")
    (path,) = run_directory.find([tmp_path / "multirun"])
    tables = read(path, TABLES)
    chains = tables["chains"]
    assert [(r["n_samples"], r["dataset"], r["start"], r["passages"]) for r in chains] == [
        (n, d, start, start == "prior")
        for n in (20, 40, 80)
        for d in (0, 1)
        for start in ("prior", "4", "5", "6")
    ]
    shares = tables["shares"]
    found = {
        (r["start"], r["phase"]): r["share"]
        for r in shares
        if (r["sampler"], r["rule"], r["by"], r["n_samples"], r["dataset"])
        == ("nuts", "quench", "k", 40, 1)
    }
    # Eight chains of ten draws: five draws of one chain are on a 5-gon.
    expected = {("prior", "4"): 75 / 80, ("prior", "5"): 5 / 80}
    assert found == pytest.approx(expected | {(k, k): 1.0 for k in "456"})
    smc = [r for r in shares if r["sampler"] == "smc" and r["rule"] == "quench" and r["by"] == "k"]
    assert {r["start"] for r in smc} == {None}
    assert sum(r["share"] for r in smc) == pytest.approx(6)
    printed = capsys.readouterr().out
    for start in ("prior", "4", "5", "6"):
        assert f"NUTS, {start}" in printed
    assert (path / "figures" / "starts.svg").stat().st_size > 1000
    # Curves against n of what chains have: those from 6 are at 1, those of others at 0.
    figure = posterior_figures.starts(PhaseDiagram.from_rows(tables, n_draws=64))
    lines = {a.get_gid(): a.get_ydata() for a in figure.findobj(Line2D) if a.get_gid()}
    assert lines["mean-6-6"].tolist() == [1.0] * 3
    assert lines["mean-prior-5"].tolist() == pytest.approx([5 / 80] * 3)
