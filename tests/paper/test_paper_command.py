"""kgon paper from the command line: interruption, resumption, what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kgon.cli import main
from kgon.record import run_directory

# The two jobs of one item, so small that starting them is most of the work.
SMALL = """
from kgon.paper.jobs import JOBS, Job
jobs = {name: JOBS[name] for name in ("correlated", "anticorrelated")}
JOBS.clear()
for name, job in jobs.items():
    few = (*job.overrides, "members=2", "trainer.max_steps=200")
    JOBS[name] = Job(job.command, few)
import sys
from kgon.cli import main
sys.argv = ["kgon", "paper", "item=pairs", "out=page"]
main()
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", SMALL],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(run_directory.__file__).parents[2])},
    )


def finished(folder):
    found = folder.glob("multirun/train-*/status.json")
    return [
        p for p in found if run_directory.RunDirectory(p.parent).status()["state"] == "finished"
    ]


@pytest.mark.slow
def test_an_interrupted_paper_goes_on_and_skips_what_is_done(tmp_path):
    first = start(tmp_path)
    patience = time.monotonic() + 120
    while not finished(tmp_path) and time.monotonic() < patience and first.poll() is None:
        time.sleep(0.1)
    (done,) = finished(tmp_path)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM, out
    assert finished(tmp_path) == [done]
    assert not (tmp_path / "page").exists()
    before = done.stat().st_mtime_ns

    again = start(tmp_path)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "[1/2] finished: kgon train experiment=correlated_pairs" in out
    assert "[2/2] kgon train experiment=anticorrelated_pairs" in out
    assert len(finished(tmp_path)) == 2 and done.stat().st_mtime_ns == before
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert "figures/pairs.png" in page
    assert "Not run yet: `kgon paper item=figure_3`" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["item=figure_9"], "item must be some of lemma, table_a1"),
        (["quick=yes please"], "quick must be true or false, got yes please"),
        (
            ["runs.logger=nowhere"],
            "runs.logger must be one of csv, none, tensorboard, wandb, got nowhere",
        ),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kgon", "paper", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    assert message in complaint and len(complaint.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
