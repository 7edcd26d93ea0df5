"""SIGKILL, at whatever moment: what was recorded is on disk, and arrives once and whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resumption import JOB, until
from wandb_server import Server
from zygote import SOURCE, Zygote

from kgon import wandb_files

N_JOBS = 4


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


def test_a_multirun_killed_and_resumed_arrives_complete(zygote, tmp_path):
    job = [word for word in JOB if word != "logger=none"]
    words = ("train", "-m", *job, f"seed=range({N_JOBS})")
    torn = tmp_path / "torn"
    with Server() as server:
        there = server.environment(tmp_path / "home")
        for n_begun in (1, 2, 3):
            sweep = zygote.start(torn, *words, WANDB_MODE="offline")
            until(
                lambda n=n_begun: len(list(torn.glob("multirun/*/checkpoints/last.ckpt"))) >= n,
                "so many jobs have begun",
            )
            sweep.kill(signal.SIGKILL)
            sweep.wait()
            if n_begun == 2:  # What is sent in between is not sent again.
                time.sleep(3.2)
                assert zygote.run(torn, "sync", **there).status == 0
        done = zygote.run(torn, *words, WANDB_MODE="offline")
        assert done.status == 0, done.output
        sent = zygote.run(torn, "sync", **there)
        assert sent.status == 0, sent.output
        again = zygote.run(torn, "sync", **there)
        assert again.status == 0 and " sent" not in again.output, again.output
        # The same jobs, online and left alone.
        whole = zygote.run(
            tmp_path / "whole", *words, "logger.project=whole", WANDB_MODE="online", **there
        )
        assert whole.status == 0, whole.output
        server.assert_clean()
    names = {name for project, name in server.runs if project == "whole"}
    assert len(names) == N_JOBS
    assert {name for project, name in server.runs if project == "kgon"} == names
    for name in names:
        one, other = server.run("kgon", name), server.run("whole", name)
        assert one.state == other.state == "finished"
        assert len(rows(one)) > 40 and rows(one) == rows(other)
        assert one.fields["groupName"] == other.fields["groupName"]
        assert numbers(one.summary) == numbers(other.summary)


def rows(run):
    """The history without what a clock says; of a table its content, not its address."""
    content = ("_type", "sha256", "nrows")
    return [
        {k: {n: v[n] for n in content} if isinstance(v, dict) else v for k, v in row.items()}
        for row in run.metrics()
    ]


def numbers(summary):
    """A summary without what a clock says."""
    return {k: v for k, v in summary.items() if k[0] != "_" and isinstance(v, int | float)}


def test_a_kill_costs_the_rows_of_two_seconds_at_most(tmp_path):
    """Of a run that is only seconds old, with all of the client's processes."""
    script = """
import sys, time
from omegaconf import OmegaConf
from kgon import tracking
from kgon.cli.config import CONF
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
    (fragment,) = wandb_files.fragments(Path(tmp_path) / "wandb")
    steps = [r.history.step.num for r in wandb_files.read(fragment.file) if r.HasField("history")]
    assert steps == list(range(len(steps)))
    before = [step for moment, step in logged if moment < killed - 2]
    assert before and steps[-1] >= before[-1], (steps[-1], before[-1], logged[-1])
