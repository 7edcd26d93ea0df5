"""kgon sync as a command: what it says of each run, and its exit status."""

import sys
from pathlib import Path

import pytest
import wandb
from test_tracking import logger, server  # noqa: F401 (a fixture)

from kgon.cli import main

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def kgon_sync(monkeypatch, capsys):
    """Runs kgon sync; its exit status, and what it printed."""

    def run(*words):
        wandb.teardown()  # as at the end of the jobs' process
        monkeypatch.setattr(sys, "argv", ["kgon", "sync", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out.splitlines(), said.err

    return run


def recorded(folder, n):
    for i in range(n):
        log = logger(folder / f"job-{i}", "offline")
        for step in range(3):
            log.log_metrics({"loss": float(i)}, step=step)
        log.finish(0)


def test_each_run_is_sent_and_then_already_there(server, tmp_path, kgon_sync):  # noqa: F811
    recorded(tmp_path, 5)
    status, lines, _ = kgon_sync(tmp_path, "--parallel", 2)
    assert status == 0 and lines[-1] == "5 sent" and len(lines) == 6
    assert all(line.startswith("sent ") for line in lines[:-1])
    assert all(f"/job-{i}/" in "\n".join(lines) for i in range(5))
    status, lines, _ = kgon_sync(tmp_path)
    assert status == 0 and lines[-1] == "5 already there"
    for i in range(5):
        rows = server.run("kgon", f"job-{i}").metrics()
        assert [(row["_step"], row["loss"]) for row in rows] == [(s, i) for s in range(3)]


def test_a_run_that_is_refused_is_failed_and_the_status_1(server, tmp_path, kgon_sync):  # noqa: F811
    recorded(tmp_path, 2)
    # Of one run only: the client asks for it by name.
    server.faults = [('"name": ?"job-1"', 403)] * 50
    status, lines, _ = kgon_sync(tmp_path)
    assert status == 1
    states = {Path(line.split()[1].rstrip(":")).parts[-3]: line.split()[0] for line in lines[:-1]}
    assert states == {"job-0": "sent", "job-1": "failed"}, lines
    server.faults = []
    status, lines, _ = kgon_sync(tmp_path)
    assert status == 0 and sorted(line.split()[0] for line in lines[:-1]) == ["already", "sent"]
    assert len(server.run("kgon", "job-1").metrics()) == 3


def test_bad_input_is_one_error(server, tmp_path, kgon_sync, monkeypatch):  # noqa: F811
    status, _, said = kgon_sync(tmp_path)
    assert status == 2 and f"no W&B run in {tmp_path}" in said
    recorded(tmp_path, 1)
    assert kgon_sync(tmp_path, "--parallel", 0)[0] == 2
    monkeypatch.delenv("WANDB_API_KEY")
    status, _, said = kgon_sync(tmp_path)
    assert status == 2 and "no W&B API key is configured" in said
