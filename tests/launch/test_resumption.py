"""A job that was interrupted, however often and whenever, ends equal to one that was not."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_job import JOB, results, until

from kgon.record import run_directory
from kgon.training import checkpoints


def the_run(folder):
    (path,) = run_directory.find([folder / "multirun"])
    return path


@pytest.fixture(scope="module")
def uninterrupted(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = zygote.run(folder, "train", *JOB)
    assert done.status == 0, done.output
    return results(the_run(folder))


def has_checkpoint(folder):
    return bool(list(folder.glob(f"multirun/*/checkpoints/{checkpoints.LAST}")))


def trains(job):
    """Whether the job has come to its steps, where it has a handler for SIGUSR2."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{job.pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGUSR2 - 1) & 1)


def test_a_job_killed_after_its_last_step_ends_equal(zygote, tmp_path, uninterrupted):
    words = ("train", *JOB, "logger=csv")
    assert zygote.run(tmp_path, *words).status == 0
    path = the_run(tmp_path)
    (metrics,) = path.rglob("metrics.csv")
    logged = metrics.read_text()
    for file in (metrics, *(path / name for name in uninterrupted)):
        file.unlink()
    # As a checkpoint is that was written between the last step and the end of training.
    last = path / "checkpoints" / checkpoints.LAST
    state = torch.load(last, weights_only=False)
    state["history"]["lists"].clear()
    torch.save(state, last)
    status = path / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "running"}))
    done = zygote.run(tmp_path, *words)
    assert done.status == 0, done.output
    assert results(path) == uninterrupted
    assert metrics.read_text() == logged


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_job_killed_at_random_moments_ends_equal(zygote, tmp_path, uninterrupted, seed):
    # A process that lives for 0.2 to 2.5 seconds dies in its imports of configs, in training, while
    # a checkpoint is written, or while the record is.
    rng = np.random.default_rng(seed)
    for _ in range(4):
        job = zygote.start(tmp_path, "train", *JOB)
        time.sleep(rng.uniform(0.2, 2.5))
        job.kill(signal.SIGKILL)
        job.wait()
    done = zygote.run(tmp_path, "train", *JOB)
    assert done.status == 0, done.output
    assert results(the_run(tmp_path)) == uninterrupted


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_job_told_to_stop_says_so_and_goes_on_when_asked(zygote, tmp_path, uninterrupted, signum):
    job = zygote.start(tmp_path, "train", *JOB)
    until(lambda: has_checkpoint(tmp_path), "there is a checkpoint")
    job.kill(signum)
    assert job.wait() == 128 + signum, job.output
    status = run_directory.RunDirectory(the_run(tmp_path)).status()
    assert status["state"] == "interrupted"
    assert 0 < status["progress"] < 1
    assert zygote.run(tmp_path, "train", *JOB).status == 0
    assert results(the_run(tmp_path)) == uninterrupted


SLOW = ("+callbacks.fault._target_=faults.Fault", "+callbacks.fault.seconds=0.05",
        "callbacks.checkpoint.every_seconds=1000000")  # fmt: skip


STOPS = [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("signum", STOPS)
def test_a_job_told_to_stop_saves_first(zygote, tmp_path, signum):
    words = ("train", *JOB, *SLOW)
    job = zygote.start(tmp_path, *words)
    until(lambda: trains(job), "it trains")
    assert not has_checkpoint(tmp_path)
    job.kill(signum)
    assert job.wait() == 128 + signum, job.output
    assert has_checkpoint(tmp_path)
    assert "is interrupted; the same command goes on from its last checkpoint" in job.output
    assert ("Ctrl-C again quits at once" in job.output) == (signum == signal.SIGINT)
    assert "Traceback" not in job.output
    progress = run_directory.RunDirectory(the_run(tmp_path)).status()["progress"]
    state = torch.load(the_run(tmp_path) / "checkpoints" / checkpoints.LAST, weights_only=True)
    assert 0 < state["global_step"] < 4000
    assert progress == pytest.approx(state["global_step"] / 4000, abs=1e-4)


def test_a_second_ctrl_c_quits_at_once(zygote, tmp_path):
    job = zygote.start(tmp_path, "train", *JOB, *SLOW, "callbacks.fault.seconds=1000")
    until(lambda: trains(job), "it trains")
    job.kill(signal.SIGINT)
    until(lambda: "Ctrl-C again quits at once" in job.output, "it says so")
    assert job.poll() is None
    job.kill(signal.SIGINT)
    assert job.wait() == -signal.SIGINT
    assert "Traceback" not in job.output
    assert run_directory.RunDirectory(the_run(tmp_path)).status()["state"] == "interrupted"


def test_ctrl_c_while_figures_are_drawn_loses_nothing(zygote, tmp_path, uninterrupted):
    words = ("train", *JOB, "runs.figures=true")
    job = zygote.start(tmp_path, *words)
    until(lambda: list(tmp_path.glob("multirun/*/figures/*.png")), "a figure is drawn")
    job.kill(signal.SIGINT)
    assert job.wait() == 128 + signal.SIGINT, job.output
    assert "Traceback" not in job.output
    assert run_directory.RunDirectory(the_run(tmp_path)).status()["state"] == "interrupted"
    assert zygote.run(tmp_path, *words).status == 0
    assert results(the_run(tmp_path)) == uninterrupted


def test_a_job_that_ends_early_is_not_finished_and_goes_on_when_asked(
    zygote, tmp_path, uninterrupted
):
    words = ("train", *JOB, "+trainer.limit_train_batches=30")
    early = zygote.run(tmp_path, *words)
    assert early.status == 0, early.output
    assert "Final phases" not in early.output
    assert "of 4000; the same command goes on from there" in early.output
    status = run_directory.RunDirectory(the_run(tmp_path)).status()
    assert status["state"] == "interrupted"
    assert 0 < status["progress"] < 1 and "ended at step" in status["error"]
    until(
        lambda: zygote.run(tmp_path, *words).output.count("Final phases") == 1, "it has all steps"
    )
    assert results(the_run(tmp_path)) == uninterrupted


def test_a_time_limit_changes_no_result_and_so_no_identity(zygote, tmp_path, uninterrupted):
    early = zygote.run(tmp_path, "train", *JOB, "+trainer.max_time=00:00:00:00")
    assert "training ended at step 0 of 4000" in early.output
    assert zygote.run(tmp_path, "train", *JOB).status == 0
    assert results(the_run(tmp_path)) == uninterrupted


def test_a_torn_checkpoint_is_not_read_and_the_one_before_is(zygote, tmp_path, uninterrupted):
    job = zygote.start(tmp_path, "train", *JOB)
    until(lambda: list(tmp_path.glob("multirun/*/checkpoints/before.ckpt")), "there are two")
    job.kill(signal.SIGKILL)
    job.wait()
    last = the_run(tmp_path) / "checkpoints" / checkpoints.LAST
    # Killed between two renamings it has no last one; half of the one before is as torn.
    whole = (last.parent / checkpoints.BEFORE).read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert checkpoints.newest(last.parent).name == checkpoints.BEFORE
    assert zygote.run(tmp_path, "train", *JOB).status == 0
    assert results(the_run(tmp_path)) == uninterrupted


@pytest.mark.parametrize(
    ("writer", "launcher"), [(None, "basic"), ("kgon 9.9.9, form 1", "packed")]
)
def test_a_checkpoint_of_other_code_is_refused_by_name(
    zygote, tmp_path, uninterrupted, writer, launcher
):
    words = ("train", *JOB)
    assert zygote.run(tmp_path, *words).status == 0
    status, last = (the_run(tmp_path) / name for name in ("status.json", "checkpoints/last.ckpt"))
    state = torch.load(last, weights_only=True)
    del state["writer"]
    torch.save(state if writer is None else state | {"writer": writer}, last)
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "running"}))
    words = ("train", "-m", *JOB, f"hydra/launcher={launcher}")
    refused = zygote.run(tmp_path, *words)
    assert refused.status == 1
    error = run_directory.RunDirectory(the_run(tmp_path)).status()["error"]
    assert f"was written by {writer or 'an older kgon'}, and this is kgon" in error
    assert zygote.run(tmp_path, *words, "runs.overwrite=true").status == 0
    assert results(the_run(tmp_path)) == uninterrupted


def test_a_killed_job_counts_as_interrupted_and_its_lock_is_free(zygote, tmp_path):
    job = zygote.start(tmp_path, "train", *JOB)
    until(lambda: has_checkpoint(tmp_path), "there is a checkpoint")
    directory = run_directory.RunDirectory(the_run(tmp_path))
    assert directory.status()["state"] == "running"
    job.kill(signal.SIGKILL)
    job.wait()
    assert directory.status()["state"] == "interrupted"
    listing = zygote.run(tmp_path, "runs", "--json")
    assert [row["state"] for row in json.loads(listing.output)] == ["interrupted"]
    with directory.lock(wait=False):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("busy", ["leave", "wait"])
def test_of_two_starters_of_one_point_one_works(zygote, tmp_path, uninterrupted, busy):
    first = zygote.start(tmp_path, "train", *JOB)
    until(lambda: list(tmp_path.glob("multirun/*/status.json")), "it has started")
    first.kill(signal.SIGSTOP)
    second = zygote.start(tmp_path, "train", *JOB, f"runs.busy={busy}")
    if busy == "leave":
        assert second.wait() == 0, second.output
        assert f"Process {first.pid} on" in second.output
        first.kill(signal.SIGCONT)
    else:
        time.sleep(3)
        assert second.poll() is None
        first.kill(signal.SIGCONT)
        assert second.wait() == 0, second.output
        assert "has finished before" in second.output
    assert first.wait() == 0, first.output
    assert results(the_run(tmp_path)) == uninterrupted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder])
    if mounted.returncode:
        assert not os.environ.get("KGON_REQUIRE_ALL"), "CI may mount a tmpfs"
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_and_the_checkpoint_before_stays(zygote, small_disk, uninterrupted):
    job = zygote.start(small_disk, "train", *JOB)
    until(lambda: has_checkpoint(small_disk), "there is a checkpoint")
    folder = the_run(small_disk) / "checkpoints"
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            # Room for a status, none for a checkpoint.
            filler.truncate((small_disk / "filler").stat().st_size - 3 * 4096)
    assert job.wait() == 1
    assert "could not be written" in job.output and "the last whole one is" in job.output
    assert checkpoints.newest(folder) is not None
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert zygote.run(small_disk, "train", *JOB).status == 0
    assert results(the_run(small_disk)) == uninterrupted


def test_what_has_no_effect_on_results_has_none_on_identity(zygote, tmp_path, uninterrupted):
    zygote.run(
        tmp_path, "train", *JOB, "datamodule.block=7", "callbacks.checkpoint.every_seconds=9"
    )
    assert results(the_run(tmp_path)) == uninterrupted
    settings = yaml.safe_load((the_run(tmp_path) / "config.yaml").read_text())
    assert settings["datamodule"]["block"] == 7
