"""A folder of runs that others can read but not write."""

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from small_job import JOB

from kgon.cli import main
from kgon.record import run_directory

NOBODY = 65534
SHORT = (*JOB, "trainer.max_steps=100")

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="becoming somebody else needs root")


@pytest.fixture(scope="module")
def shared(zygote):
    """A folder that everybody may enter and write, with a finished run of root's in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    done = zygote.run(folder, "train", *SHORT)
    assert done.status == 0, done.output
    (folder / "multirun").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def colleague(shared, monkeypatch, capsys):
    """Runs a command as a user who owns nothing; returns its status and what it printed."""
    import kgon.cli.runs
    import kgon.cli.train
    import kgon.record.report  # noqa: F401  # nobody may not read this interpreter

    def run(*words):
        monkeypatch.chdir(shared)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["kgon", *words])
        os.seteuid(NOBODY)
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os.seteuid(0)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def the_run(folder):
    (path,) = run_directory.find([folder / "multirun"])
    return path


def test_every_file_can_be_read_by_those_whom_the_umask_allows(shared):
    umask = os.umask(0)
    os.umask(umask)
    for path in the_run(shared).rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


def test_weights_that_may_not_be_read_are_not_called_missing(shared):
    run = run_directory.load(the_run(shared))
    file = run.path / "weights.safetensors"
    file.chmod(0o600)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionError, match=r"weights\.safetensors"):
            run.weights()
    finally:
        os.seteuid(0)
        file.chmod(0o644)
    assert np.isfinite(run.weights()["W"]).all()


def test_a_finished_run_of_somebody_else_is_finished(shared, colleague):
    status, printed = colleague("train", *SHORT)
    assert status == 0 and f"{the_run(shared).name} has finished before" in printed
    status, printed = colleague("train", *SHORT, "runs.overwrite=true")
    assert status == 2
    assert printed == (
        f"kgon train: error: multirun/{the_run(shared).name} belongs to root; set another folder: "
        "runs.dir=\n"
    )


def test_runs_and_report_need_no_write_access(shared, colleague):
    (shared / "multirun").chmod(0o755)
    status, printed = colleague("runs")
    assert status == 0 and "1 finished" in printed
    status, printed = colleague("report", "multirun")
    assert status == 2
    assert "multirun/report.html cannot be written; choose another file: --out FILE" in printed
    (shared / "multirun").chmod(0o777)
    status, printed = colleague("report", "multirun", "--out", "multirun/mine.html")
    assert status == 0, printed
    file = the_run(shared) / "status.json"
    file.chmod(0o600)
    _, printed = colleague("runs")
    file.chmod(0o644)
    assert "status.json cannot be read by this user" in printed
