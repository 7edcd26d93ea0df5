"""Artifacts by choice: on the server with metadata, and good for kgon llc again."""

import json
import sys

import pyarrow.parquet as pq
import pytest
import wandb
from test_logger import server  # noqa: F401 (a fixture)
from wandb_server import ENTITY

from kgon.cli import main
from kgon.record import run_directory


def kgon(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["kgon", *words])
    main()
    wandb.teardown()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_runs_artifact_is_one_that_llc_takes(server, tmp_path, monkeypatch, wanted):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    tiny = ["members=2", "trainer.max_steps=100", "schedule.n_llc=2", "schedule.n_losses=10",
            "schedule.n_snapshots=5", "runs.figures=false"]  # fmt: skip
    kgon(monkeypatch, "train", f"logger.artifacts={wanted}", *tiny)
    found = {a["type"]: a for a in server.artifacts.values() if a["type"] in ("run", "llc")}
    assert set(found) == ({"run", "llc"} if wanted else set())
    if not wanted:
        return
    for artifact in found.values():
        assert artifact["state"] == "COMMITTED"
        assert json.loads(artifact["metadata"])["final/members"] == 2
    status = json.loads(server.blobs[found["run"]["files"]["status.json"]])
    assert status["state"] == "finished" and status["metrics"]["final/members"] == 2
    chains = ["n_chains=4", "n_draws=40", "n_burnin=20", "discard=null", "snapshots=2"]
    name = f"{found['run']['name']}:latest"
    for i, asked in enumerate((f"{ENTITY}/kgon/{name}", f"kgon/{name}")):
        words = [f"run={asked}", "members=2", "logger.artifacts=true", f"seed={i}"]
        kgon(monkeypatch, "llc", *words, *chains)
    (folder,) = tmp_path.glob("multirun/artifacts/*/*/*")
    assert folder.name == f"{found['run']['name']}-v0"
    assert {file.name for file in folder.iterdir()} == set(found["run"]["files"])
    assert run_directory.load(folder).status["state"] == "finished"
    tables = [a for a in server.artifacts.values() if a["name"].startswith("llc-llc-")]
    assert [table["state"] for table in tables] == ["COMMITTED"] * 2
    assert set(tables[0]["files"]) == {"config.yaml", "estimates.parquet"}
    # A folder is taken as it is, and gives what its artifact gives.
    (original,) = tmp_path.glob("multirun/train-*")
    server.always = "drop"
    kgon(monkeypatch, "llc", f"run={original}", "members=2", "seed=0", "logger=none", *chains)
    server.always = None
    estimates = [
        pq.read_table(path / "estimates.parquet")
        for path in sorted(tmp_path.glob("multirun/llc-*"))
        if "seed: 0" in (path / "config.yaml").read_text()
    ]
    assert len(estimates) == 2 and estimates[0].equals(estimates[1])


def test_an_artifact_that_cannot_be_had_is_one_error(server, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)

    def refused(name):
        wandb.teardown()  # the session, and the key that it has
        with pytest.raises(SystemExit) as end:
            kgon(monkeypatch, "llc", f"run={name}")
        assert end.value.code == 2
        said = capsys.readouterr().err.splitlines()
        (line,) = [line for line in said if not line.startswith("wandb:")]
        assert line.startswith(f"kgon llc: error: run={name}")
        return line

    assert "not found" in refused("kgon/run-train-0:latest")
    assert "not found" in refused("nowhere/kgon/run-train-0:v7")
    assert "[entity/]project/name:alias" in refused("run-train-0:latest")
    assert "[entity/]project/name:alias" in refused("kgon/run-train-0")
    server.run("kgon", "a-run")
    with wandb.init(project="kgon") as run:
        table = wandb.Artifact("llc-of-old", "llc")
        with table.new_file("a.txt") as file:
            file.write("a")
        run.log_artifact(table)
    assert "type llc, not run" in refused("kgon/llc-of-old:v0")
    server.always = 503
    assert "answers 503" in refused("kgon/run-train-0:latest")
    server.always = None
    monkeypatch.delenv("WANDB_API_KEY")
    assert "an API key is needed" in refused("kgon/run-train-0:latest")
    assert not list(tmp_path.glob("multirun/*/*"))
