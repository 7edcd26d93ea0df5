"""Terminals, pipes and settings of a user that a command meets."""

import json
import os
import subprocess
import sys

import pytest
from zygote import SOURCE

from kgon.record import run_directory

TINY = ("members=2", "trainer.max_steps=20", "logger=none",
        "callbacks=[losses,snapshots,phases,plateaus,pictures,checkpoint]")  # fmt: skip


def kgon(folder, *words, without=(), **environment):
    """A command in an interpreter of its own, because it reads these settings when it starts."""
    env = {k: v for k, v in os.environ.items() if k not in without}
    return subprocess.run(
        [sys.executable, "-m", "kgon", *words],
        cwd=folder,
        env=env | {"PYTHONPATH": SOURCE} | environment,
        capture_output=True,
        text=True,
    )


def test_a_terminal_without_unicode_shows_runs(tmp_path):
    with run_directory.RunDirectory(tmp_path / "multirun" / "one").job("train", [], {}) as job:
        job.report(1.0, {"final/phase/4": 1.0, "final/phase/5": 2.0})
    shown = kgon(tmp_path, "runs", PYTHONIOENCODING="ascii", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "5:?2" in shown.stdout


@pytest.mark.parametrize("words", ["--help", "train --help", "runs --json many"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, words):
    for i in range(200):
        folder = tmp_path / "many" / str(i)
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "kgon", *words.split()], cwd=tmp_path, stdout=writing,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": SOURCE},
    )  # fmt: skip
    os.close(writing)
    assert (done.stderr, done.returncode) == ("", 141)


@pytest.mark.slow
def test_figures_need_no_latex_whatever_matplotlib_is_told(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    done = kgon(tmp_path, "train", *TINY)
    assert done.returncode == 0, done.stderr
    with_report = kgon(tmp_path, "report", "multirun")
    assert with_report.returncode == 0, with_report.stderr


@pytest.mark.slow
def test_a_user_without_a_home_can_train(tmp_path):
    done = kgon(tmp_path, "train", *TINY, without=["HOME"])
    assert done.returncode == 0, done.stderr
