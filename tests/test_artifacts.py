"""Artifacts by choice: on the server with metadata, and good for kgon llc again."""

import json
import sys

import pytest
import wandb
from test_tracking import server  # noqa: F401 (a fixture)

from kgon.cli import main


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
    for name, path in found["run"]["files"].items():
        (tmp_path / "downloaded").mkdir(exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(server.blobs[path])
    chains = ["n_chains=4", "n_draws=40", "n_burnin=20", "discard=null", "snapshots=2"]
    kgon(monkeypatch, "llc", "run=downloaded", "members=2", "logger.artifacts=true", *chains)
    (table,) = [a for a in server.artifacts.values() if a["name"].startswith("llc-llc-")]
    assert table["state"] == "COMMITTED"
    assert set(table["files"]) == {"config.yaml", "estimates.parquet"}
