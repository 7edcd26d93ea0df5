"""docs/sweep.yaml by a real agent: each of its runs is one of kgon's, with the metric."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_artifacts import kgon
from test_logger import server  # noqa: F401 (a fixture)

from kgon.record import run_directory
from kgon.tracking import files

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


def test_an_agents_runs_are_kgons_and_tell_the_metric(server, tmp_path):  # noqa: F811
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


def test_a_point_that_is_finished_tells_a_sweep_its_numbers(server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    kgon(monkeypatch, "train", *QUICK)
    (one,) = server.runs.values()
    n_rows = len(one.rows())
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_RUN_ID", "named-by-the-agent")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    kgon(monkeypatch, "train", *QUICK)
    told = server.runs["elsewhere", "named-by-the-agent"]
    assert (told.state, told.fields["sweep"]) == ("finished", "sweep0")
    assert told.summary["final/loss"] == one.summary["final/loss"]
    assert told.config["optimizer"] == one.config["optimizer"]
    assert len(server.runs) == 2 and len(one.rows()) == n_rows
    # Nor does what waits offline for another run get lost.
    monkeypatch.setenv("WANDB_RUN_ID", "named-later")
    (wandb_dir,) = tmp_path.glob("multirun/*/wandb")
    for mode in ("offline", "online"):
        kgon(monkeypatch, "train", *QUICK, f"logger.mode={mode}")
        monkeypatch.setenv("WANDB_RUN_ID", "named-last")
    assert {f.run_id for f in files.fragments(wandb_dir)} == {
        one.name, "named-by-the-agent", "named-later", "named-last",
    }  # fmt: skip


def test_a_multirun_inside_an_agent_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    with pytest.raises(SystemExit) as end:
        kgon(monkeypatch, "train", "-m", "seed=1,2")
    assert end.value.code == 2 and "expects one run" in capsys.readouterr().err
