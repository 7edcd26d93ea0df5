"""kgon sync as a command: what the server lacks is sent, and nothing twice."""

import signal
import subprocess
import sys

import pytest
from recorded import loss_rows, record, states
from small_job import until

from kgon.record.run_directory import RunDirectory
from kgon.tracking import account
from kgon.tracking.logger import log_results
from kgon.tracking.outbox import Outbox


def results(log, job):
    """What a finished job logs: a summary and a table."""
    job.report(1.0, {"final/loss": 0.5})
    log_results(log, {"final/loss": 0.5}, {"members": [{"member": 0}]}, {})


def test_each_run_is_sent_to_each_server_once(server, kgon, tmp_path):
    for i in range(3):
        record(tmp_path / f"job-{i}", "offline", work=results)
    status, lines, _ = kgon("sync", tmp_path, "--parallel", 2)
    assert (status, lines[-1]) == (0, "3 sent")
    assert states(lines) == {f"job-{i}": "sent" for i in range(3)}
    assert kgon("sync", tmp_path)[1][-1] == "3 already there"
    server.runs.clear()  # another server
    server.artifacts.clear()
    assert kgon("sync", tmp_path)[1][-1] == "3 sent"
    for i in range(3):
        assert loss_rows(server.run("kgon", f"job-{i}")) == [(step, step) for step in range(3)]
        assert len(server.run("kgon", f"job-{i}").rows()) == 4  # one of them is the tables'


def test_what_an_upload_lost_is_noticed_and_sent(server, kgon, tmp_path):
    record(tmp_path / "job", work=results)
    run = server.run("kgon", "job")
    assert kgon("sync", tmp_path)[1][-1] == "1 already there"

    run.streams["wandb-history.jsonl"] = run.streams["wandb-history.jsonl"][:2]
    assert kgon("sync", tmp_path)[1][-1] == "1 sent"
    assert loss_rows(run) == [(step, step) for step in range(3)]

    (table,) = [name for name in run.files if "members" in name and "_3_" not in name]
    content = run.files.pop(table)
    assert kgon("sync", tmp_path)[1][-1] == "1 sent"
    assert run.files[table] == content

    server.artifacts.clear()
    assert kgon("sync", tmp_path)[1][-1] == "1 sent"
    assert [a["state"] for a in server.artifacts.values()] == ["COMMITTED"]

    run.state = "running"  # its job ended before the client said so
    assert kgon("sync", tmp_path)[1][-1] == "1 sent"
    assert run.state == "finished" and loss_rows(run) == [(step, step) for step in range(3)]


def test_a_run_that_is_refused_or_damaged_is_failed_and_the_status_1(server, kgon, tmp_path):
    for i in range(3):
        record(tmp_path / f"job-{i}", "offline")
    server.faults = [('UpsertBucket.*"job-1"', 403)] * 50  # so is the id of a deleted run
    rows = tmp_path / "job-2" / "metrics.jsonl"
    rows.write_text("?\n" + rows.read_text())
    status, lines, _ = kgon("sync", tmp_path)
    assert status == 1
    assert states(lines) == {"job-0": "sent", "job-1": "failed", "job-2": "failed"}
    assert any("metrics.jsonl, line 1 is damaged" in line for line in lines)
    assert {name for _, name in server.runs} == {"job-0"}
    server.faults = []
    rows.write_text(rows.read_text()[2:])
    status, lines, _ = kgon("sync", tmp_path)
    assert status == 0 and lines[-1] in ("1 already there, 2 sent", "2 sent, 1 already there")


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_what_a_job_left_is_sent_unless_the_job_is_running(server, kgon, tmp_path, state):
    directory = RunDirectory(tmp_path / "job")
    record(tmp_path / "job", "offline")
    directory._write_status({**directory.status(), "state": state})
    with (tmp_path / "job" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # killed in mid-line
    with directory.lock(wait=False):
        _, lines, _ = kgon("sync", tmp_path)
    assert states(lines) == {"job": "running" if state == "running" else "sent"}
    if state != "running":
        run = server.run("kgon", "job")
        assert (run.exit_code, run.state) == ({"interrupted": 255, "failed": 1}[state], "failed")
        assert len(loss_rows(run)) == 3


def test_while_one_sends_another_and_a_job_that_resumes_stand_back(server, kgon, tmp_path, capsys):
    record(tmp_path / "job", "offline")
    with Outbox(tmp_path / "job").lock():
        assert states(kgon("sync", tmp_path)[1]) == {"job": "running"}
        record(tmp_path / "job", "online", steps=range(4))
        assert "kgon sync is sending" in capsys.readouterr().err
    assert states(kgon("sync", tmp_path)[1]) == {"job": "sent"}
    assert len(loss_rows(server.run("kgon", "job"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_goes_on_when_called_again(server, kgon, tmp_path, signum):
    for i in range(4):
        record(tmp_path / f"job-{i}", "offline")
    server.faults = [("job-2/file_stream", "hang")] * 50
    words = [sys.executable, "-m", "kgon", "sync", str(tmp_path), "--parallel", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = [process.stdout.readline() for _ in range(2)]  # of the runs that are sent
    until(lambda: server.injected, "it waits for the server")
    process.send_signal(signum)
    lines += process.communicate(timeout=60)[0].splitlines()
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, lines
        assert lines[-1] == "interrupted: 2 sent, 2 not sent; call it again to send the rest"
    until(lambda: not _clients(process.pid), "the client's process has ended")
    server.release()
    status, lines, _ = kgon("sync", tmp_path)
    assert status == 0 and lines[-1] in ("2 already there, 2 sent", "3 already there, 1 sent")
    for i in range(4):
        assert loss_rows(server.run("kgon", f"job-{i}")) == [(step, step) for step in range(3)]


def _clients(pid):
    command = ["pgrep", "-f", f"wandb-core.*--pid {pid}( |$)"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout


def test_bad_input_is_one_error(server, kgon, tmp_path, monkeypatch):
    status, _, said = kgon("sync", tmp_path)
    assert status == 2 and f"no W&B run in {tmp_path}" in said
    record(tmp_path / "job", "offline")
    assert kgon("sync", tmp_path, "--parallel", 0)[0] == 2
    monkeypatch.setattr(account, "ANSWER_SECONDS", 1)
    server.always = 503
    status, _, said = kgon("sync", tmp_path)
    assert status == 1 and "kgon sync: error: Failed to verify credentials" in said
    server.release()
    monkeypatch.delenv("WANDB_API_KEY")
    status, _, said = kgon("sync", tmp_path)
    assert status == 2 and "no W&B API key is configured" in said
