"""kgon sync as a command: what it says of each run, and its exit status."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from small_job import until
from test_logger import logger, server  # noqa: F401 (a fixture)

from kgon.cli import main

sys.path.insert(0, str(Path(__file__).parents[1]))


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


def test_interrupted_it_says_what_is_sent_and_goes_on_when_called_again(server, tmp_path):  # noqa: F811
    recorded(tmp_path, 6)
    wandb.teardown()
    server.faults = [("job-5/file_stream", "hang")] * 50
    words = [sys.executable, "-m", "kgon", "sync", str(tmp_path), "--parallel", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [process.stdout.readline() for _ in range(4)]  # the runs sent first
    until(lambda: server.injected, "it waits for the server")
    process.send_signal(signal.SIGINT)
    lines += process.communicate(timeout=20)[0].splitlines()
    assert process.returncode == 130, lines
    assert lines[-1] == "interrupted: 4 sent, 2 not sent; call it again to send the rest"
    assert [line.split("  ")[0] for line in lines[:-1]] == ["sent"] * 4 + ["not sent"] * 2
    assert "/job-5/" in lines[5] and "some of it may be there" in lines[5]
    server.release()
    again = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0, again.stdout
    assert again.stdout.splitlines()[-1] in ("4 already there, 2 sent", "5 already there, 1 sent")
    for i in range(6):
        rows = server.run("kgon", f"job-{i}").metrics()
        assert [(row["_step"], row["loss"]) for row in rows] == [(s, i) for s in range(3)]


def test_what_the_client_calls_sent_is_asked_for_before_it_is_believed(
    server,  # noqa: F811
    tmp_path,
    kgon_sync,
):
    recorded(tmp_path, 1)
    wandb.teardown()
    (file,) = tmp_path.glob("job-0/wandb/offline-run-*/*.wandb")
    file.with_suffix(".wandb.synced").touch()  # left by a sync that was killed before it looked
    lines = kgon_sync(tmp_path)[1]
    assert lines[-1] == "1 sent", lines
    assert len(server.run("kgon", "job-0").metrics()) == 3


def test_what_is_empty_or_damaged_keeps_no_other(server, tmp_path, kgon_sync):  # noqa: F811
    recorded(tmp_path, 4)
    wandb.teardown()
    files = [next(tmp_path.glob(f"job-{i}/wandb/offline-run-*/*.wandb")) for i in range(4)]
    files[0].write_bytes(files[0].read_bytes()[:7])  # killed after the header was written
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:-9] + b"x" * 9)
    for file in files:
        os.utime(file, (0, 0))
    status, lines, _ = kgon_sync(tmp_path)
    assert status == 1 and lines[-1] == "2 empty, 1 failed, 1 sent", lines
    assert "is damaged" in lines[2]
    files[2].unlink()
    assert kgon_sync(tmp_path)[0] == 0


def test_bad_input_is_one_error(server, tmp_path, kgon_sync, monkeypatch):  # noqa: F811
    status, _, said = kgon_sync(tmp_path)
    assert status == 2 and f"no W&B run in {tmp_path}" in said
    recorded(tmp_path, 1)
    assert kgon_sync(tmp_path, "--parallel", 0)[0] == 2
    monkeypatch.delenv("WANDB_API_KEY")
    status, _, said = kgon_sync(tmp_path)
    assert status == 2 and "no W&B API key is configured" in said
