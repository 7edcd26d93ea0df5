"""Artifacts by choice: on the server with metadata, and good for kgon llc again."""

import json

import pyarrow.parquet as pq
import pytest
import wandb
from wandb_server import ENTITY

from kgon.record import run_directory


def test_a_runs_artifact_is_one_that_llc_takes(server, kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kgon("train", "logger.artifacts=true", "members=2", "trainer.max_steps=100",
         "schedule.n_losses=10", "schedule.n_snapshots=5", "runs.figures=false",
         "callbacks=[losses,snapshots,phases,plateaus]")  # fmt: skip
    (found,) = [a for a in server.artifacts.values() if a["type"] == "run"]
    assert found["state"] == "COMMITTED"
    assert json.loads(found["metadata"])["final/members"] == 2
    status = json.loads(server.blobs[found["files"]["status.json"]])
    assert status["state"] == "finished" and status["metrics"]["final/members"] == 2
    chains = ["members=2", "n_chains=4", "n_draws=40", "n_burnin=20", "snapshots=2"]
    # Also without the entity: the key's own.
    done = kgon("llc", f"run=kgon/{found['name']}:latest", "logger.artifacts=true", *chains)
    assert done[0] == 0, done
    (folder,) = tmp_path.glob("multirun/artifacts/*/*/*")
    assert folder.parts[-3:] == (ENTITY, "kgon", f"{found['name']}-v0")
    assert {file.name for file in folder.iterdir()} == {*found["files"], ".artifact"}
    assert run_directory.load(folder).status["state"] == "finished"
    (table,) = [a for a in server.artifacts.values() if a["name"].startswith("llc-llc-")]
    assert table["state"] == "COMMITTED"
    assert set(table["files"]) == {"config.yaml", "estimates.parquet"}
    (llc,) = [run for run in server.runs.values() if run.fields["jobType"] == "llc"]
    assert llc.used == [found["id"]]
    # Recorded offline, it is sent later, from the record.
    words = ["logger.mode=offline", "runs.dir=later", *chains]
    assert kgon("llc", f"run=kgon/{found['name']}:latest", *words)[0] == 0
    assert kgon("sync", "later")[1][-1] == "1 sent"
    assert kgon("sync", "later", "multirun")[1][-1] == "3 already there"
    offline = [run for run in server.runs.values() if run.fields["jobType"] == "llc"][-1]
    assert offline.used == [found["id"]]
    offline.used.clear()
    assert kgon("sync", "later")[1][-1] == "1 sent" and offline.used == [found["id"]]
    # A folder is taken as it is, and gives what its artifact gives.
    (original,) = tmp_path.glob("multirun/train-*")
    assert kgon("llc", f"run={original}", "logger=none", *chains)[0] == 0
    one, other = [pq.read_table(p) for p in tmp_path.glob("multirun/llc-*/estimates.parquet")]
    assert one.equals(other)


def _artifact(name, kind):
    with wandb.init(project="kgon") as run:
        artifact = wandb.Artifact(name, kind)
        with artifact.new_file("a.txt") as file:
            file.write("a")
        run.log_artifact(artifact)


@pytest.mark.slow
def test_an_artifact_that_cannot_be_downloaded_is_one_error(server, kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kgon.tracking.account.ANSWER_SECONDS", 1)
    monkeypatch.setattr("kgon.tracking.artifacts.RETRIES", 1)

    def refused(name):
        status, _, said = kgon("llc", f"run={name}")
        assert status == 2
        (line,) = [line for line in said.splitlines() if not line.startswith("wandb:")]
        assert line.startswith(f"kgon llc: error: run={name}")
        return line

    assert "not found" in refused("kgon/run-train-0:latest")
    assert "not found" in refused("nowhere/kgon/run-train-0:v7")
    assert "[entity/]project/name:alias" in refused("run-train-0:latest")
    _, fine = _artifact("run-train-1", "run"), "kgon/run-train-1:v0"
    server.faults = [("/storage/artifacts", 500)] * 50
    assert "could not download the artifact: " in refused(fine)
    server.faults = []
    assert "[entity/]project/name:alias" in refused("kgon/run-train-0")
    _artifact("llc-of-old", "llc")
    assert "type llc, not run" in refused("kgon/llc-of-old:v0")
    server.always = 503
    assert "Failed to verify credentials" in refused("kgon/run-train-0:latest")
    server.release()
    monkeypatch.delenv("WANDB_API_KEY")
    assert "no W&B API key is configured" in refused("kgon/run-train-0:latest")
    assert not list(tmp_path.glob("multirun/*/*"))
