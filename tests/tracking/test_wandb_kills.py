"""SIGKILL, at whatever moment: what was recorded is on disk, and arrives once and whole."""

import signal
from collections import defaultdict

import numpy as np
import pytest
from small_job import JOB, until
from wandb_server import Server

from kgon.record import run_directory
from kgon.record.metrics_file import MetricsFile

pytestmark = pytest.mark.slow

N_JOBS = 4


def test_a_multirun_killed_and_resumed_arrives_complete(zygote, tmp_path):
    job = [word for word in JOB if word != "logger=none"]
    words = ("train", "-m", *job, f"seed=range({N_JOBS})")
    torn = tmp_path / "torn"
    with Server() as server:
        there = server.environment(tmp_path / "home")
        for n_begun in (1, 3):
            sweep = zygote.start(torn, *words, WANDB_MODE="offline")
            until(
                lambda n=n_begun: len(list(torn.glob("multirun/*/checkpoints/last.ckpt"))) >= n,
                "so many jobs have begun",
            )
            sweep.kill(signal.SIGKILL)
            sweep.wait()
            if n_begun == 3:  # What is sent in between is not sent again.
                sent = zygote.run(torn, "sync", **there)
                assert sent.status == 0, sent.output
        done = zygote.run(torn, *words, WANDB_MODE="offline")
        assert done.status == 0, done.output
        sent = zygote.run(torn, "sync", **there)
        assert sent.status == 0, sent.output
        again = zygote.run(torn, "sync", **there)
        assert again.status == 0 and " sent" not in again.output, again.output
        server.assert_clean()
    assert len(server.runs) == N_JOBS
    for run in server.runs.values():
        record = run_directory.load(torn / "multirun" / run.fields["displayName"])
        rows = [row for row in MetricsFile(record.path).rows() if "loss/mean" in row.metrics]
        assert run.state == record.status["state"] == "finished"
        assert {key: run.summary[key] for key in record.status["metrics"]} == record.status[
            "metrics"
        ]
        steps = [row["_step"] for row in run.rows()]
        assert steps == sorted(set(steps))
        seen = {row["_step"]: row["loss/mean"] for row in run.rows() if "loss/mean" in row}
        loss = defaultdict(list)
        for row in record.loss.to_pylist():
            loss[row["step"]].append(row["loss"])
        assert seen.keys() == loss.keys() and len(seen) > 40
        assert seen == pytest.approx({step: np.mean(v) for step, v in loss.items()}, rel=1e-12)
        assert seen == {row.step: row.metrics["loss/mean"] for row in rows}
