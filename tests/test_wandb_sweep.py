"""docs/sweep.yaml by a real agent: each of its runs is one of kgon's, with the number searched for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_tracking import server  # noqa: F401 (a fixture)

from kgon import runs
from kgon.cli import main

RECIPE = Path(__file__).parents[1] / "docs" / "sweep.yaml"
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


def test_an_agents_runs_are_kgons_and_tell_the_metric(server, tmp_path):  # noqa: F811
    recipe = yaml.safe_load(RECIPE.read_text())
    at = recipe["command"].index("${args_no_hyphens}")
    recipe["command"][at:at] = QUICK
    (tmp_path / "sweep.yaml").write_text(yaml.dump(recipe))
    said = wandb(tmp_path, "sweep", "sweep.yaml")
    (sweep,) = server.sweeps.values()
    path = f"tester/{recipe['project']}/{sweep['name']}"
    assert f"wandb agent {path}" in said

    # A point that diverges, and the first one again, which is finished by then.
    first = {"optimizer.lr": 0.01, "batch_size": 20}
    sweep["overrides"] = [first, {"optimizer.lr": 1e6}, first, {}]
    said = wandb(tmp_path, "agent", "--count", "4", path)
    assert {name for _, name in server.runs} == set(sweep["runs"]) and len(sweep["runs"]) == 4, said
    good, bad, again, drawn = (server.run(recipe["project"], name) for name in sweep["runs"])
    assert [run.state for run in (good, bad, again, drawn)] == [
        "finished", "failed", "finished", "finished",
    ]  # fmt: skip
    assert (bad.exit_code, len(list(tmp_path.glob("multirun/train-*")))) == (1, 3)
    for run in (good, bad, again, drawn):
        assert run.fields["sweep"] == run.fields["groupName"] == sweep["name"]
        assert run.fields["jobType"] == "train"
        settings = {key: entry["value"] for key, entry in run.config.items() if key != "_wandb"}
        for name in recipe["parameters"]:
            key, _, below = name.partition(".")
            asked = settings[key][below] if below else settings[key]
            assert asked == settings[name]
    key = recipe["metric"]["name"]
    for run in (good, again, drawn):
        directory = tmp_path / "multirun" / run.fields["displayName"]
        assert run.summary[key] == runs.load(directory).status["metrics"][key]
    assert len(good.metrics()) >= 5
    assert "final/loss" in again.summary and again.summary["final/loss"] == good.summary["final/loss"]
    low, high = (recipe["parameters"]["optimizer.lr"][end] for end in ("min", "max"))
    assert low <= drawn.config["optimizer"]["value"]["lr"] <= high


def test_a_multirun_inside_an_agent_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setattr(sys, "argv", ["kgon", "train", "-m", "seed=1,2"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "waits for one run" in capsys.readouterr().err
