"""docs/sweep.yaml by a real agent: each of its runs is one of kgon's, with the metric."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kgon.record import run_directory
from kgon.tracking.outbox import Outbox

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "docs" / "sweep.yaml"
QUICK = ["members=2", "trainer.max_steps=100", "schedule.n_llc=2", "schedule.n_losses=5",
         "schedule.n_snapshots=3", "callbacks.llc.n_draws=20", "callbacks.llc.n_burnin=5",
         "runs.figures=false"]  # fmt: skip


def wandb(folder, *words):
    """The client's command line, in a process of its own; what it said."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *words],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_agents_runs_are_kgons_and_tell_the_metric(server, tmp_path):
    recipe = yaml.safe_load(RECIPE.read_text())
    at = recipe["command"].index("${args_no_hyphens}")
    recipe["command"][at:at] = QUICK
    (tmp_path / "sweep.yaml").write_text(yaml.dump(recipe))
    said = wandb(tmp_path, "sweep", "sweep.yaml")
    (sweep,) = server.sweeps.values()
    path = f"tester/{recipe['project']}/{sweep['name']}"
    assert f"wandb agent {path}" in said

    sweep["overrides"] = [{}, {"optimizer.lr": 1e6}]  # the second diverges
    said = wandb(tmp_path, "agent", "--count", "2", path)
    assert {name for _, name in server.runs} == set(sweep["runs"]) and len(sweep["runs"]) == 2, said
    good, bad = (server.run(recipe["project"], name) for name in sweep["runs"])
    assert (good.state, bad.state, bad.exit_code) == ("finished", "failed", 1)
    for run in (good, bad):
        assert run.fields["sweep"] == run.fields["groupName"] == sweep["name"]
        assert run.fields["jobType"] == "train"
        settings = {key: entry["value"] for key, entry in run.config.items() if key != "_wandb"}
        for name in recipe["parameters"]:
            key, _, below = name.partition(".")
            used = settings[key][below] if below else settings[key]
            assert used == settings[name]
    directory = tmp_path / "multirun" / good.fields["displayName"]
    key = recipe["metric"]["name"]
    assert good.summary[key] == run_directory.load(directory).status["metrics"][key]
    steps = [row["trainer/global_step"] for row in good.metrics() if "loss/mean" in row]
    assert (steps[0], steps[-1]) == (0, 100)


def test_a_finished_point_gives_a_sweep_its_record(server, kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kgon("train", *QUICK)
    (one,) = server.runs.values()
    rows = one.metrics()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_RUN_ID", "named-by-the-agent")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    kgon("train", *QUICK)
    shown = server.runs["elsewhere", "named-by-the-agent"]
    assert (shown.state, shown.fields["sweep"]) == ("finished", "sweep0")
    assert shown.summary["final/loss"] == one.summary["final/loss"]
    assert shown.config["optimizer"] == one.config["optimizer"]
    assert [row.get("loss/mean") for row in shown.metrics()] == [
        row.get("loss/mean") for row in rows
    ]
    assert len(server.runs) == 2 and one.metrics() == rows
    # What was recorded offline for one run stays when another shows the folder.
    monkeypatch.setenv("WANDB_RUN_ID", "named-later")
    kgon("train", *QUICK, "logger.mode=offline")
    (folder,) = tmp_path.glob("multirun/train-*")
    names = {init["id"] for init in Outbox(folder).runs()}
    assert names == {one.name, "named-by-the-agent", "named-later"}


def test_a_multirun_inside_an_agent_is_refused(kgon, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    status, _, said = kgon("train", "-m", "seed=1,2")
    assert status == 2 and "expects one run" in said
