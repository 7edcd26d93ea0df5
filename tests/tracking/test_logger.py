"""W&B runs of jobs, by the real client against a server on loopback."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import wandb
from matplotlib.image import imsave
from omegaconf import OmegaConf

from kgon.launch.options import CONF
from kgon.tracking import account, files, sync
from kgon.tracking.logger import _SILENT, _say_offline, log_results, tracked, wandb_logger

sys.path.insert(0, str(Path(__file__).parents[1]))
from wandb_server import API_KEY, Server

SETTINGS = {
    **OmegaConf.to_container(OmegaConf.load(CONF / "logger" / "wandb.yaml").settings),
    # What a lost server costs a test.
    "finish_timeout": 2,
    "x_graphql_retry_wait_min_seconds": 0.1,
    "x_file_stream_retry_wait_min_seconds": 0.1,
    "x_file_transfer_retry_wait_min_seconds": 0.1,
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that the client of this process is pointed at; nothing of it may be unknown."""
    _SILENT.clear()
    _say_offline.cache_clear()
    monkeypatch.delenv("WANDB_MODE")
    with Server() as started:
        for name, value in started.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        yield started
        wandb.teardown()
        started.assert_clean()


def logger(folder, mode="online", **init):
    init = {"project": "kgon", "id": folder.name, "resume": "allow"} | init
    return wandb_logger(str(folder), mode, dict(SETTINGS), artifacts=False, **init)


def send(folder, server, say=print):
    wandb.teardown()  # as at the end of the job's process: its file is whole
    outcomes = sync.sync(sync.find([folder]), account.Server(server.url, API_KEY), 2, say)
    return [outcome.state for outcome in outcomes]


# ---------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("fault", [None, 500, 503, 429, "drop", "hang"])
def test_a_run_is_online_only_if_the_server_answers(server, tmp_path, capfd, mode, fault):
    server.always = fault
    start = time.monotonic()
    log = logger(tmp_path / "runs" / "job", mode)
    # Far below the twenty seconds that W&B itself waits for a server, on a busy machine too.
    assert time.monotonic() - start < account.PROBE_SECONDS + 10
    assert log.experiment.offline == (fault is not None)
    server.always = None
    log.log_metrics({"loss": 1.0}, step=0)
    log.finish(0)
    said = capfd.readouterr().err
    assert said.count("kgon sync") == (fault is not None), said
    if fault is not None:
        assert f"kgon sync {tmp_path / 'runs'}\n" in said
        assert send(tmp_path, server) == ["sent"]
    assert server.run("kgon", "job").metrics() == [
        {"_step": 0, "loss": 1.0, "trainer/global_step": 0}
    ]


def test_without_a_key_auto_is_offline_and_online_refused(server, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    log = logger(tmp_path / "job", "auto")
    assert log.experiment.offline and not server.operations
    log.finish(0)
    assert "no API key is configured; recorded offline" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"logger\.mode=online: no W&B API key is configured"):
        logger(tmp_path / "other", "online")


def test_a_server_that_is_silent_is_asked_once_a_process(server, tmp_path, monkeypatch):
    server.always, asked = "hang", []
    post = requests.post
    monkeypatch.setattr(requests, "post", lambda *a, **k: asked.append(a) or post(*a, **k))
    for name in ("a", "b", "c"):
        logger(tmp_path / name).finish(0)
    assert len(asked) == 1


def test_a_key_that_is_refused_is_not_shown(server, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "another-" + "x" * 40)
    wandb.teardown()
    log = logger(tmp_path / "job", "auto")
    assert log.experiment.offline
    log.finish(0)
    said = capfd.readouterr().err
    assert "refuses the API key (401); recorded offline" in said and "x" * 40 not in said


def test_a_run_that_is_refused_is_recorded_offline(server, tmp_path, capfd):
    server.faults = [("UpsertBucket", 403)]
    log = logger(tmp_path / "job", "auto")
    assert log.experiment.offline
    log.log_metrics({"loss": 1.0}, step=0)
    log.finish(0)
    assert "recorded offline" in capfd.readouterr().err
    assert send(tmp_path, server) == ["already there", "sent"]


def test_offline_and_disabled_need_no_server_and_other_modes_are_refused(server, tmp_path):
    for mode in ("offline", "disabled"):
        log = logger(tmp_path / mode, mode)
        with tracked(log, {"seed": 1}):
            log.log_metrics({"loss": 1.0}, step=0)
            log_results(log, {"final/loss": 1.0}, {"t": [{"a": 1}]}, {})
    assert not server.operations
    assert not (tmp_path / "disabled" / "wandb").exists()
    with pytest.raises(ValueError, match=r"logger\.mode must be one of auto, online, .* got onlin"):
        logger(tmp_path / "job", "onlin")


# ------------------------------------------------------------------------------------- lifecycle


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (RuntimeError("no"), 1), (KeyboardInterrupt(), 255), (SystemExit(7), 7)],
)
def test_a_run_ends_with_the_exit_code_of_its_job(server, tmp_path, error, code):
    log = logger(tmp_path / "job")
    try:
        with tracked(log, {"seed": 1}):
            if error is not None:
                raise error
    except type(error) as raised:
        assert raised is error
    run = server.run("kgon", "job")
    assert (run.exit_code, run.state) == (code, "failed" if code else "finished")
    assert run.config["seed"] == {"value": 1}


def test_results_reach_the_server_and_the_key_reaches_nothing_else(server, tmp_path):
    picture = tmp_path / "loss.png"
    imsave(picture, np.eye(9))
    log = logger(tmp_path / "job", group="sweep-1", job_type="train", tags=["a"])
    with tracked(log, {"model": {"n_features": 6}}):
        for step in (0, 5, 10):
            log.log_metrics({"loss": step / 3}, step=step)
            log.log_image("media/weights", [str(picture)], step=step)
        tables = {"members": [{"member": 0, "loss": 0.5}], "none": []}
        log_results(log, {"final/loss": 0.5}, tables, {"loss": picture})
    run = server.run("kgon", "job")
    rows = run.metrics()
    assert [row["_step"] for row in rows] == [0, 5, 10, 11]
    assert [row.get("loss") for row in rows] == [0, 5 / 3, 10 / 3, None]
    assert rows[-1]["tables/members"]["nrows"] == 1 and "tables/none" not in rows[-1]
    assert run.summary["final/loss"] == 0.5
    assert (run.fields["groupName"], run.fields["jobType"]) == ("sweep-1", "train")
    names = [name for row in rows for name in row.get("media/weights", {}).get("filenames", [])]
    names += rows[-1]["figures/loss"]["filenames"]
    assert len(names) == 4 and all(run.files[name] == picture.read_bytes() for name in names)
    assert [a["state"] for a in server.artifacts.values()] == ["COMMITTED"]
    staged = tmp_path / "job" / "wandb" / files.STAGING
    assert staged.is_dir() and not (tmp_path / "home" / ".local").exists()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or API_KEY.encode() not in file.read_bytes(), file
    for content in [*server.blobs.values(), str(run.config).encode(), str(rows).encode()]:
        assert API_KEY.encode() not in content


def test_runs_of_one_process_do_not_merge_and_cost_little(server, tmp_path):
    seconds = []
    for mode in ("offline", "online"):
        logs = []
        for i in range(4):
            start = time.perf_counter()
            logs.append(logger(tmp_path / f"{mode}-{i}", mode))
            seconds.append(time.perf_counter() - start)
        for step in range(3):
            for i, log in enumerate(logs):
                log.log_metrics({"loss": float(i)}, step=step)
        for log in logs:
            start = time.perf_counter()
            log.finish(0)
            if mode == "offline":
                seconds[logs.index(log)] += time.perf_counter() - start
    assert np.median(seconds[1:4]) < 0.1, seconds  # 0.03 s on a quiet machine
    assert send(tmp_path, server).count("sent") == 4
    for mode in ("offline", "online"):
        for i in range(4):
            rows = server.run("kgon", f"{mode}-{i}").metrics()
            assert [(row["_step"], row["loss"]) for row in rows] == [(s, i) for s in range(3)]


# ------------------------------------------------------------------------------- a lost network


@pytest.mark.parametrize("fault", [503, "drop", "hang"])
def test_a_network_lost_in_training_costs_no_row_and_no_second(server, tmp_path, fault):
    log = logger(tmp_path / "job")
    log.log_metrics({"loss": 0.0}, step=0)
    time.sleep(0.2)
    server.always = fault
    start = time.monotonic()
    for step in range(1, 500):
        log.log_metrics({"loss": float(step)}, step=step)
    assert time.monotonic() - start < 2
    start = time.monotonic()
    log.finish(0)
    assert time.monotonic() - start < SETTINGS["finish_timeout"] + 3
    server.release()
    assert send(tmp_path, server) == ["sent"]
    assert send(tmp_path, server) == ["already there"]
    run = server.run("kgon", "job")
    assert [(r["_step"], r["loss"]) for r in run.metrics()] == [(s, s) for s in range(500)]
    assert run.exit_code == 0


@pytest.mark.slow
def test_short_faults_lose_nothing(server, tmp_path):
    server.faults = [("UpsertBucket", 500), ("file_stream", 503), ("file_stream", "drop")]
    server.faults += [("/storage/", 500), ("CreateRunFiles", 502), ("file_stream", 429)]
    log = logger(tmp_path / "job")
    for step in range(50):
        log.log_metrics({"loss": float(step)}, step=step)
    log.finish(0)
    send(tmp_path, server)
    rows = server.run("kgon", "job").metrics()
    assert [(r["_step"], r["loss"]) for r in rows] == [(s, s) for s in range(50)]
    assert server.injected >= 4
