"""Sweeps on this machine: what fails costs no other, nothing is done twice, nothing is lost."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from small_job import JOB, results, until

from kgon.record import run_directory, sweeps

pytestmark = pytest.mark.slow

SHORT = (*JOB, "trainer.max_steps=400")
FAULT = "+callbacks.fault._target_=faults.Fault"


def standing(zygote, folder, *words, status=None):
    listing = zygote.run(folder, "runs", "--json", *words)
    if status is not None:
        assert listing.status == status, listing.output
    return json.loads(listing.output)


def states(rows):
    """The state of each run by the kind of its fault."""
    word = "+callbacks.fault.kind="
    return {w.removeprefix(word): r["state"] for r in rows for w in r["overrides"] if word in w}


def test_a_job_that_fails_or_exits_costs_no_other_and_shows(zygote, tmp_path):
    kinds = "+callbacks.fault.kind=raise,exit,none"
    sweep = zygote.run(tmp_path, "train", "-m", *SHORT, FAULT, "+callbacks.fault.at=100", kinds)
    assert sweep.status == 1
    assert "1 finished, 2 failed" in sweep.output
    assert "RuntimeError: something went wrong" in sweep.output
    rows = standing(zygote, tmp_path, status=1)
    assert states(rows) == {"raise": "failed", "exit": "failed", "none": "finished"}
    errors = {row["error"] for row in rows}
    assert errors == {
        None, "RuntimeError: something went wrong", "RuntimeError: the job exited with status 7",
    }  # fmt: skip
    assert len(standing(zygote, tmp_path, "--state", "failed", status=1)) == 2
    assert len(standing(zygote, tmp_path, "--where", "+callbacks.fault.kind=none", status=0)) == 1
    assert len(standing(zygote, tmp_path, "--sweep", "last", status=1)) == 3
    (failed,) = [r for r in rows if "+callbacks.fault.kind=raise" in r["overrides"]]
    path = tmp_path / "multirun" / failed["run"]
    assert "faults.py" in (path / "error.txt").read_text()
    before = (path / "status.json").read_bytes()
    # Failed points are tried again only if asked for; an unknown word is refused.
    again = zygote.run(tmp_path, "train", "-m", *SHORT, FAULT, "+callbacks.fault.at=100", kinds)
    assert again.status == 1 and (path / "status.json").read_bytes() == before
    retry = zygote.run(
        tmp_path, "train", "-m", *SHORT, FAULT, "+callbacks.fault.at=100", kinds,
        "runs.retry=failed",
    )  # fmt: skip
    assert retry.status == 1 and (path / "status.json").read_bytes() != before
    assert zygote.run(tmp_path, "train", *SHORT, "runs.retry=always").status == 2


def test_a_process_that_dies_costs_no_other_under_joblib(zygote, tmp_path):
    sweep = zygote.run(
        tmp_path, "train", "-m", *JOB, FAULT, "+callbacks.fault.seconds=0.01",
        "+callbacks.fault.kind=kill,none,vanish", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert sweep.status == 1, sweep.output
    words = ["-m", *JOB, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1.5"]
    assert "n_jobs=1.5: Value '1.5'" in zygote.run(tmp_path, "train", *words).output
    rows = standing(zygote, tmp_path, status=1)
    assert states(rows) == {"kill": "failed", "none": "finished", "vanish": "failed"}
    assert "process was killed" in " ".join(row["error"] or "" for row in rows)
    (finished,) = (row for row in rows if row["state"] == "finished")
    zygote.run(tmp_path / "alone", "train", *JOB)
    (path,) = run_directory.find([tmp_path / "alone" / "multirun"])
    assert results(tmp_path / "multirun" / finished["run"]) == results(path)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_jobs_under_joblib_save_and_end_with_their_launcher(zygote, tmp_path, signum):
    words = (
        "train", "-m", *JOB, FAULT, "+callbacks.fault.seconds=1", "seed=1,2,3,4",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "callbacks.checkpoint.every_seconds=1000000",
    )  # fmt: skip
    sweep = zygote.start(tmp_path, *words)
    metrics = "multirun/*/metrics.jsonl"
    until(
        lambda: [len(f.read_text().splitlines()) > 3 for f in tmp_path.glob(metrics)] == [True] * 2,
        "two train",
    )
    os.kill(sweep.pid, signum)
    until(lambda: "running" not in [r["state"] for r in standing(zygote, tmp_path)], "they ended")
    rows = standing(zygote, tmp_path)
    assert sum(row["state"] == "interrupted" and row["progress"] > 0 for row in rows) == 2
    assert len(list(tmp_path.glob("multirun/*/checkpoints/last.ckpt"))) == 2
    until(lambda: not _processes(sweep.pid), "the processes have ended")


def _processes(group):
    """The processes of a group."""
    listing = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return [pid for pid, pgid, state in rows if int(pgid) == group and state[0] != "Z"]


@pytest.mark.parametrize("launcher", ["basic", "packed"])
def test_a_sweep_killed_at_random_moments_ends_equal(zygote, tmp_path, launcher):
    words = ("train", "-m", *JOB, "seed=1,2,3", f"hydra/launcher={launcher}")
    whole = zygote.run(tmp_path / "whole", *words)
    assert whole.status == 0, whole.output
    rng = np.random.default_rng(0)
    for _ in range(4):
        sweep = zygote.start(tmp_path / "torn", *words)
        time.sleep(rng.uniform(0.5, 4))
        sweep.kill(signal.SIGKILL)
        sweep.wait()
    done = zygote.run(tmp_path / "torn", *words)
    assert done.status == 0, done.output
    assert "3 finished" in done.output
    for path in run_directory.find([tmp_path / "whole" / "multirun"]):
        assert results(tmp_path / "torn" / "multirun" / path.name) == results(path)


def test_a_sweeps_points_are_pending_until_their_turn_and_can_be_followed(zygote, tmp_path):
    sweep = zygote.start(
        tmp_path, "train", "-m", *SHORT, FAULT, "+callbacks.fault.seconds=0.05", "seed=1,2"
    )
    until(lambda: len(list(tmp_path.glob("multirun/*/status.json"))) == 2, "both are announced")
    until(lambda: "running" in {r["state"] for r in standing(zygote, tmp_path)}, "one runs")
    rows = standing(zygote, tmp_path)
    assert sorted(row["state"] for row in rows) == ["pending", "running"]
    followed = zygote.run(tmp_path, "runs", "--follow")
    assert followed.status == 0
    assert sweep.wait() == 0
    assert [row["state"] for row in standing(zygote, tmp_path)] == ["finished"] * 2


def test_the_same_words_in_any_order_are_the_same_sweep():
    words = ["seed=1,2", "optimizer.lr=0.1", "logger=none", "runs.retry=failed"]
    assert sweeps.name("train", words) == sweeps.name("train", words[1::-1])
    assert sweeps.name("train", words) != sweeps.name("train", words[:1])
    assert sweeps.name("train", words) != sweeps.name("llc", words)


def test_a_search_whose_trials_all_diverge_ends_in_one_line(zygote, tmp_path):
    if not os.environ.get("KGON_REQUIRE_ALL"):
        pytest.importorskip("optuna")
    interval = 'hydra.sweeper.params={optimizer.lr: "interval(1e8,1e9)"}'
    words = ("train", "-m", "experiment=tune_lr", *SHORT, interval, "hydra.sweeper.n_trials=2")
    search = zygote.run(tmp_path, *words)
    assert search.status == 2, search.output
    assert "no trial of the search has a result: all jobs failed" in search.output
    assert "Traceback" not in search.output and "2 failed" in search.output


def test_optuna_finds_its_way(zygote, tmp_path):
    if not os.environ.get("KGON_REQUIRE_ALL"):
        pytest.importorskip("optuna")
    sweep = zygote.run(
        tmp_path, "train", "-m", "experiment=tune_lr", *SHORT, "hydra.sweeper.n_trials=3",
        "members=4",
    )  # fmt: skip
    assert sweep.status == 0, sweep.output
    rows = standing(zygote, tmp_path, status=0)
    assert [row["state"] for row in rows] == ["finished"] * 3
    assert len({tuple(row["overrides"]) for row in rows}) == 3
    assert (tmp_path / "multirun" / "optimization_results.yaml").exists()
