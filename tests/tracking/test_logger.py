"""W&B runs of jobs, by the real client against a server on loopback."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import wandb
from matplotlib.image import imsave
from recorded import loss_rows, record, states, tracker
from wandb_server import API_KEY

from kgon.record.metrics_file import MetricsFile
from kgon.record.run_directory import RunDirectory
from kgon.tracking import account
from kgon.tracking.logger import log_artifacts, log_results, tracked
from kgon.training.checkpoints import EndedEarly, Stopped

# ---------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("online", None),
        ("auto", None),
        pytest.param("online", 503, marks=pytest.mark.slow),
        ("auto", "drop"),
        pytest.param("auto", "hang", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_run_is_online_only_if_the_server_answers(server, kgon, tmp_path, capsys, mode, fault):
    server.always = fault
    record(tmp_path / "runs" / "job", mode, work=lambda log, _: log.online == (fault is None))
    said = capsys.readouterr().err
    assert said.count("recording offline") == (fault is not None), said
    server.release()
    if fault is not None:
        assert f"kgon sync {tmp_path / 'runs'}\n" in said and not server.runs
        assert states(kgon("sync", tmp_path)[1]) == {"job": "sent"}
    assert server.run("kgon", "job").metrics() == [
        {"_step": step, "loss": step, "trainer/global_step": step} for step in range(3)
    ]


def test_without_a_key_auto_is_offline_and_online_refused(server, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    record(tmp_path / "job", "auto")
    assert "no W&B API key is configured; run: wandb login; recording" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"logger\.mode=online: no W&B API key is configured"):
        tracker(tmp_path / "other", "online")
    assert not server.operations


@pytest.mark.parametrize(
    "asked", ["offline", "dryrun", "disabled", "wandb offline", "wandb disabled"]
)
def test_auto_does_what_the_client_is_configured_for(server, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    word = asked.removeprefix("wandb ")
    if asked.startswith("wandb"):
        subprocess.run([sys.executable, "-m", "wandb", word], check=True, capture_output=True)
    else:
        monkeypatch.setenv("WANDB_MODE", asked)
    record(tmp_path / "job", "auto")
    disabled = asked.endswith("disabled")
    assert bool(list(tmp_path.glob("job/wandb/offline-run-*-job"))) == (not disabled)
    assert not server.operations and (tmp_path / "job" / "wandb").exists() == (not disabled)
    record(tmp_path / "online", "online")  # a setting wins
    assert server.run("kgon", "online").state == "finished"


def test_a_server_that_is_silent_is_asked_once_a_process(server, tmp_path, monkeypatch):
    server.always, asked = 503, []
    connect = account.connect
    monkeypatch.setattr(account, "connect", lambda seconds: asked.append(1) or connect(seconds))
    for name in ("a", "b", "c"):
        record(tmp_path / name)
    assert len(asked) == 1


def test_a_key_that_is_refused_is_not_shown(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "another-" + "x" * 40)
    account.end_client()
    record(tmp_path / "job", "auto")
    said = capsys.readouterr().err
    assert "not logged in; recording offline" in said and "x" * 40 not in said


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("more", [(), range(3, 6)], ids=["at the end", "while it logs"])
def test_a_client_that_is_killed_costs_neither_its_job_nor_the_next(
    server, kgon, tmp_path, capsys, mode, more
):
    def work(log, job):
        account._kill_client()
        for step in more:
            for one in (log, MetricsFile(tmp_path / "one")):
                one.log_metrics({"loss": float(step)}, step=step)

    record(tmp_path / "one", mode, work=work)
    assert f"to send what is missing: kgon sync {tmp_path / 'one'}\n" in capsys.readouterr().err
    record(tmp_path / "two", mode)
    assert kgon("sync", tmp_path)[0] == 0
    for name in ("one", "two"):
        assert RunDirectory(tmp_path / name).status()["state"] == "finished"
        rows = MetricsFile(tmp_path / name).rows()
        assert loss_rows(server.run("kgon", name)) == [(r.step, r.metrics["loss"]) for r in rows]


def test_a_run_that_is_refused_is_recorded_offline(server, kgon, tmp_path, capsys):
    server.faults = [("UpsertBucket", 403)]
    record(tmp_path / "job", "auto")
    assert "recording offline" in capsys.readouterr().err
    assert states(kgon("sync", tmp_path)[1]) == {"job": "sent"}
    assert len(server.run("kgon", "job").rows()) == 3


def test_other_modes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"logger\.mode must be one of auto, online, .* got onlin"):
        tracker(tmp_path / "job", "onlin")


# ------------------------------------------------------------------------------------- lifecycle


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (RuntimeError("no"), 1),
        (KeyboardInterrupt(), 255),
        (SystemExit(7), 7),
        (Stopped(130), 255),
        (Stopped(143), 255),
        (EndedEarly("no time left"), 255),
    ],
)
def test_a_run_ends_with_the_exit_code_of_its_job(server, tmp_path, error, code):
    try:
        with tracked(tracker(tmp_path / "job"), {"seed": 1}):
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    run = server.run("kgon", "job")
    assert (run.exit_code, run.state) == (code, "failed" if code else "finished")
    assert run.config["seed"] == {"value": 1}


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_results_reach_the_server_and_the_key_reaches_nothing_else(server, kgon, tmp_path, mode):
    picture = tmp_path / "loss.png"
    imsave(picture, np.eye(9))

    def work(log, job):
        for one in (log, MetricsFile(tmp_path / "job")):
            for step in (5, 10):
                one.log_metrics({"loss": step}, step=step)
                one.log_image("media/weights", [str(picture)], step=step)
        tables = {"members": [{"member": 0, "loss": 0.5}], "none": []}
        job.report(1.0, {"final/loss": 0.5})
        log_results(log, {"final/loss": 0.5}, tables, {"loss": picture})
        files = {"run": "config.yaml status.json", "llc": "llc.parquet"}
        log_artifacts(log, tmp_path / "job", files, {"final/loss": 0.5}, {})

    given = {"group": "sweep-1", "job_type": "train", "tags": ["a"], "artifacts": True}
    record(tmp_path / "job", mode, steps=[0], work=work, **given)
    assert bool(server.runs) == (mode == "online")
    expected = {"online": "already there", "offline": "sent"}[mode]
    assert states(kgon("sync", tmp_path)[1]) == {"job": expected}
    run = server.run("kgon", "job")
    rows = run.metrics()
    assert loss_rows(run) == [(0, 0), (5, 5), (10, 10)] and rows[3]["_step"] == 11
    assert rows[-1]["tables/members"]["nrows"] == 1 and "tables/none" not in rows[-1]
    assert (run.summary["final/loss"], run.config["seed"]) == (0.5, {"value": 1})
    fields = [run.fields[name] for name in ("groupName", "jobType", "tags")]
    assert fields == ["sweep-1", "train", ["a"]] and run.state == "finished"
    names = [name for row in rows for name in row.get("media/weights", {}).get("filenames", [])]
    names += rows[-1]["figures/loss"]["filenames"]
    assert len(names) == 3 and all(run.files[name] == picture.read_bytes() for name in names)
    artifacts = [(a["type"], a["state"]) for a in server.artifacts.values()]
    assert artifacts == [("run_table", "COMMITTED"), ("run", "COMMITTED")]
    assert not (tmp_path / "home" / ".local").exists()  # nothing waits there
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or API_KEY.encode() not in file.read_bytes(), file
    for content in [*server.blobs.values(), str(run.config).encode(), str(rows).encode()]:
        assert API_KEY.encode() not in content


def test_runs_of_one_process_do_not_merge(server, tmp_path):
    logs = [tracker(tmp_path / f"job-{i}") for i in range(3)]
    for step in range(3):
        for i, log in enumerate(logs):
            log.log_metrics({"loss": float(i)}, step=step)
    for log in logs:
        log.finish(0)
    for i in range(3):
        assert loss_rows(server.run("kgon", f"job-{i}")) == [(step, i) for step in range(3)]


# ------------------------------------------------------------------------------- a lost network


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(503, marks=pytest.mark.slow),
        401,
        "drop",
        pytest.param("hang", marks=pytest.mark.slow),
        "killed",
    ],
)
def test_a_network_lost_in_training_fails_no_job_and_costs_no_row(
    server, kgon, tmp_path, capsys, fault
):
    """Nor does the death of the client's own process."""

    def work(log, job):
        if fault == "killed":
            command = f"wandb-core.*--pid {os.getpid()}( |$)"
            found = subprocess.run(["pgrep", "-f", command], stdout=subprocess.PIPE, check=True)
            os.kill(int(found.stdout), signal.SIGKILL)
        else:
            server.always = fault
        for one in (log, MetricsFile(tmp_path / "job")):
            for step in range(3, 100):
                one.log_metrics({"loss": float(step)}, step=step)
        job.report(1.0, {"final/loss": 0.5})
        log_results(log, {"final/loss": 0.5}, {"members": [{"member": 0}]}, {})
        if fault == "killed":
            with suppress(ConnectionResetError):
                wandb.teardown()  # as at the end of the process

    record(tmp_path / "job", work=work)
    assert capsys.readouterr().err.count(f"kgon sync {tmp_path / 'job'}\n") == 1
    server.release()
    assert states(kgon("sync", tmp_path)[1]) == {"job": "sent"}
    assert states(kgon("sync", tmp_path)[1]) == {"job": "already there"}
    run = server.run("kgon", "job")
    assert loss_rows(run) == [(step, step) for step in range(100)]
    assert (run.exit_code, run.summary["final/loss"]) == (0, 0.5)
    assert [a["state"] for a in server.artifacts.values()] == ["COMMITTED"]


@pytest.mark.slow
def test_short_faults_lose_nothing(server, kgon, tmp_path):
    server.faults = [("UpsertBucket", 500), ("file_stream", 503), ("file_stream", "drop")]
    server.faults += [("/storage/", 500), ("CreateRunFiles", 502), ("file_stream", 429)]
    record(tmp_path / "job", steps=range(50))
    kgon("sync", tmp_path)
    assert loss_rows(server.run("kgon", "job")) == [(step, step) for step in range(50)]
    assert server.injected >= 4


def clients():
    """The wandb-core processes of this process that are alive."""
    stats = [path.read_text().split() for path in Path("/proc").glob("[0-9]*/stat")]
    return {
        int(s[0]) for s in stats if s[1:4:2] == ["(wandb-core)", str(os.getpid())] and s[2] != "Z"
    }


def test_a_client_that_does_not_end_is_killed(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(account, "_ENDING_SECONDS", 0.5)
    wandb.init(project="kgon").finish()
    (client,) = clients()
    os.kill(client, signal.SIGSTOP)  # it neither hears nor ends
    account.end_client()
    assert not clients()
