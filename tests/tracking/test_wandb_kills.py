"""SIGKILL, at whatever moment: what was recorded is on disk, and arrives once and whole."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from small_job import JOB, until
from wandb_server import Server
from zygote import SOURCE

from kgon.record import run_directory
from kgon.tracking import files

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
                time.sleep(3.2)
                assert zygote.run(torn, "sync", **there).status == 0
        done = zygote.run(torn, *words, WANDB_MODE="offline")
        assert done.status == 0, done.output
        sent = zygote.run(torn, "sync", **there)
        assert sent.status == 0, sent.output
        again = zygote.run(torn, "sync", **there)
        assert again.status == 0 and " sent" not in again.output, again.output
        server.assert_clean()
    assert len(server.runs) == N_JOBS
    for (_, name), run in server.runs.items():
        record = run_directory.load(torn / "multirun" / name)
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


def test_a_kill_costs_the_rows_of_two_seconds_at_most(tmp_path):
    """Of a run that is only seconds old, with all of the client's processes."""
    script = """
import sys, time
from omegaconf import OmegaConf
from kgon import tracking
from kgon.launch.options import CONF
settings = OmegaConf.to_container(OmegaConf.load(CONF / "logger" / "wandb.yaml").settings)
log = tracking.wandb_logger(sys.argv[1], "offline", settings, False, id="job", project="kgon")
for step in range(10_000):
    log.log_metrics({"loss": 1.0}, step=step)
    print(step, flush=True)
    time.sleep(0.01)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    logged = []
    for line in process.stdout:
        logged.append((time.monotonic(), int(line)))
        if logged[-1][0] > logged[0][0] + 4:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    killed = time.monotonic()
    (fragment,) = files.fragments(Path(tmp_path) / "wandb")
    steps = [r.history.step.num for r in files.read(fragment.file) if r.HasField("history")]
    assert steps == list(range(len(steps)))
    before = [step for moment, step in logged if moment < killed - 2]
    assert before and steps[-1] >= before[-1], (steps[-1], before[-1], logged[-1])
