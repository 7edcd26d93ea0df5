"""Sweeps on a real Slurm: faults, preemption, requeues, time limits, a lost node, a lost login."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing
from small_job import JOB, results, until
from zygote import SOURCE

from kgon.record import run_directory

pytestmark = pytest.mark.slow

TESTS = str(Path(__file__).parents[1])
LAUNCHER = (
    "hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5", "hydra.launcher.mem_gb=1",
    "hydra.launcher.cpus_per_task=1",
)  # fmt: skip
SLOW = ("+callbacks.fault._target_=faults.Fault", "+callbacks.fault.seconds=0.15")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    absent = missing()
    if absent or os.geteuid():
        reason = f"needs {', '.join(absent)}" if absent else "needs root"
        assert not os.environ.get("KGON_REQUIRE_ALL"), reason
        pytest.skip(f"Slurm: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), max_array_size=3)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def environment(cluster):
    own = {name: cluster.environment[name] for name in ("PATH", "SLURM_CONF")}
    return own | {"PYTHONPATH": f"{SOURCE}:{TESTS}"}


@pytest.fixture(scope="module")
def out_of_time(zygote, environment, tmp_path_factory):
    """A job that needs more than its time limit, handed to node n2: the other tests pass its time.

    Slurm may send the signal up to a minute early. Told at any moment from 40 s to 100 s, the job
    has long started, and would still work for two minutes.
    """
    folder = tmp_path_factory.mktemp("out_of_time")
    slow = ("+callbacks.fault._target_=faults.Fault", "+callbacks.fault.seconds=2.5", "seed=9")
    limit = (
        "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=20",
        "hydra.launcher.wait=false", "+hydra.launcher.additional_parameters.nodelist=n2",
    )  # fmt: skip
    handed = zygote.run(folder, "train", "-m", *JOB, *slow, *LAUNCHER, *limit, **environment)
    assert handed.status == 0, handed.output
    return folder


def standing(zygote, folder, environment):
    return json.loads(zygote.run(folder, "runs", "--json", **environment).output)


def all_ended(cluster, folder):
    """Whether the Slurm jobs that were submitted from a folder have ended."""
    own = {path.name.partition("_")[0] for path in folder.glob("multirun/.submitit/*")}
    states = [state for job, state in cluster.jobs().items() if job.partition("_")[0] in own]
    return all(state in ("COMPLETED", "FAILED", "CANCELLED") for state in states)


def by_words(folder):
    """Each run's directory by its seed and fault."""
    found = {}
    for file in folder.glob("multirun/*/status.json"):
        path = file.parent
        words = run_directory.RunDirectory(path).status()["overrides"]
        found[" ".join(w for w in words if w.startswith(("seed", "+callbacks.fault.kind")))] = path
    return found


def test_one_dead_job_costs_no_other_its_result(
    zygote, cluster, environment, out_of_time, tmp_path
):
    fault = ("+callbacks.fault._target_=faults.Fault", "+callbacks.fault.kind=none,raise,exit,kill")
    sweep = zygote.run(tmp_path, "train", "-m", *JOB, *fault, *LAUNCHER, **environment)
    assert sweep.status == 1, sweep.output
    rows = standing(zygote, tmp_path, environment)
    states = {
        kind: [r["state"] for r in rows if f"+callbacks.fault.kind={kind}" in r["overrides"]]
        for kind in ("none", "raise", "exit", "kill")
    }
    failed = {kind: ["failed"] for kind in ("raise", "exit", "kill")}
    assert states == {"none": ["finished"]} | failed
    assert "1 finished, 3 failed" in sweep.output
    errors = " ".join(row["error"] for row in rows if row["error"])
    for words in ("something went wrong", "exited with status 7", "ended without a result"):
        assert errors.count(words) == 1
    # Four jobs in arrays of at most two.
    of_arrays = {job.partition("_")[2] for job in cluster.jobs() if "_" in job}
    assert of_arrays == {"0", "1"}
    found = by_words(tmp_path)
    alone = tmp_path / "alone"
    assert zygote.run(alone, "train", *JOB).status == 0
    (path,) = run_directory.find([alone / "multirun"])
    assert results(found["+callbacks.fault.kind=none"]) == results(path)
    traceback = (found["+callbacks.fault.kind=raise"] / "error.txt").read_text()
    assert "RuntimeError: something went wrong" in traceback
    logs = "".join(path.read_text() for path in tmp_path.glob("multirun/.submitit/*/*.out"))
    assert "RuntimeError: something went wrong" in logs


def test_whatever_happens_to_jobs_and_login_they_end_equal(zygote, cluster, environment, tmp_path):
    seeds = (1, 2, 3)
    whole = {}
    for seed in seeds:
        folder = tmp_path / f"whole-{seed}"
        assert zygote.run(folder, "train", *JOB, f"seed={seed}").status == 0
        (path,) = run_directory.find([folder / "multirun"])
        whole[seed] = results(path)

    sweep = ("train", "-m", *JOB, *SLOW, "seed=1,2,3", *LAUNCHER)
    login = zygote.start(tmp_path, *sweep, **environment)

    def at_work():
        return sum((p / "checkpoints" / "last.ckpt").exists() for p in by_words(tmp_path).values())

    until(lambda: at_work() == 3, "three jobs have checkpoints")
    login.kill(signal.SIGKILL)
    jobs = [job for job, state in cluster.jobs().items() if state == "RUNNING" and "_" in job]
    cluster.ask("scontrol", "requeue", jobs[0])
    cluster.ask("scancel", "--signal=USR2", "--batch", jobs[1])
    time.sleep(2)
    lost = "n1"  # n2 has at most one of the three jobs beside the one that runs out of time
    cluster.kill(lost)
    until(lambda: "down" in " ".join(cluster.node_states()), "the node is missed")
    cluster.start_node(lost)
    until(lambda: all_ended(cluster, tmp_path), "all jobs have ended", 240)
    # Nobody was there to collect; a second call of the sweep has nothing left to do.
    again = zygote.run(tmp_path, *sweep, **environment)
    assert again.status == 0, again.output
    assert "3 finished" in again.output
    found = by_words(tmp_path)
    assert {seed: results(found[f"seed={seed}"]) for seed in seeds} == {s: whole[s] for s in seeds}


def test_a_sweep_can_be_handed_over(zygote, cluster, environment, tmp_path):
    sweep = ("train", "-m", *JOB, "seed=1,2", *LAUNCHER)
    handed = zygote.run(tmp_path, *sweep, "hydra.launcher.wait=false", **environment)
    assert handed.status == 0, handed.output
    assert "2 jobs submitted to Slurm" in handed.output
    assert "2 pending" in handed.output or "running" in handed.output
    followed = zygote.run(tmp_path, "runs", "--follow", **environment)
    assert followed.status == 0, followed.output
    assert [row["state"] for row in standing(zygote, tmp_path, environment)] == ["finished"] * 2


def test_a_job_whose_time_is_up_goes_on_in_a_new_start(
    zygote, cluster, environment, out_of_time, tmp_path
):
    until(lambda: all_ended(cluster, out_of_time), "the job has ended", 300)
    assert [row["state"] for row in standing(zygote, out_of_time, environment)] == ["finished"]
    logs = "".join(path.read_text() for path in out_of_time.glob("multirun/.submitit/*/*.out"))
    assert "Job has timed out" in logs
    assert zygote.run(tmp_path, "train", *JOB, "seed=9").status == 0
    (limited,), (whole,) = (run_directory.find([f / "multirun"]) for f in (out_of_time, tmp_path))
    assert results(limited) == results(whole)


@pytest.mark.parametrize("allocation", [["--mem-per-cpu=100"], ["--mem=300", "--cpus-per-task=2"]])
def test_a_sweep_may_be_launched_inside_an_allocation(cluster, environment, tmp_path, allocation):
    sweep = [
        "salloc", "--partition=urgent", *allocation, sys.executable, "-m", "kgon",
        "train", "-m", *JOB, "trainer.max_steps=400", "seed=1", *LAUNCHER,
    ]  # fmt: skip
    done = subprocess.run(
        sweep, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 finished" in done.stdout


def test_jobs_that_slurm_refuses_or_cannot_start_are_tried_again_by_a_second_call(
    zygote, cluster, environment, tmp_path
):
    sweep = ("train", "-m", *JOB, "trainer.max_steps=400", "seed=1,2", *LAUNCHER)
    refused = zygote.run(tmp_path, *sweep, "hydra.launcher.partition=nosuch", **environment)
    assert refused.status == 2, refused.output
    (line,) = [text for text in refused.output.splitlines() if "kgon train: error:" in text]
    assert "invalid partition specified: nosuch" in line and "Traceback" not in refused.output
    assert "2 pending" in refused.output
    broken = zygote.run(tmp_path, *sweep, 'hydra.launcher.setup=["exit 3"]', **environment)
    assert broken.status == 1, broken.output
    assert "2 failed" in broken.output
    exclusive = 'hydra.launcher.additional_parameters={exclusive:""}'  # as the config says
    again = zygote.run(tmp_path, *sweep, exclusive, **environment)
    assert again.status == 0, again.output
    assert "2 finished" in again.output


def test_jobs_that_slurm_cannot_start_yet_say_why(zygote, cluster, environment, tmp_path):
    words = ("train", "-m", *JOB, "seed=1", *LAUNCHER, "hydra.launcher.timeout_min=100")
    waiting = zygote.start(tmp_path, *words, **environment)
    until(lambda: "does not start jobs: PartitionTimeLimit" in waiting.output, "the reason shows")
    waiting.kill(signal.SIGKILL)
    for job, state in cluster.jobs().items():
        if state == "PENDING":
            cluster.ask("scancel", job)
