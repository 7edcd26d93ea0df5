"""What W&B is told of the code, the machine and the artifacts that made a run."""

import subprocess
import time

import pytest
from recorded import record
from small_job import until

from kgon.record import provenance
from kgon.record.run_directory import RunDirectory


def test_the_code_is_kgons_and_not_that_of_the_folder(server, kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    theirs = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    code = provenance.code() | {"commit": "ab" * 20, "dirty": True}
    monkeypatch.setattr(provenance, "code", lambda: code)
    record(tmp_path / "online")
    record(tmp_path / "offline", "offline")
    assert kgon("sync", tmp_path)[0] == 0
    for name in ("online", "offline"):
        run = server.run("kgon", name)
        assert run.config["code"]["value"] == code == RunDirectory(tmp_path / name).status()["code"]
        assert run.fields["commit"] == code["commit"] != theirs
        assert theirs not in str(run.files)


@pytest.mark.slow  # the client sends what it measures every 15 s
def test_system_metrics_are_a_choice(server, tmp_path):
    for chosen in (False, True):
        name = f"job-{chosen}"
        settings = {"x_stats_sampling_interval": 0.1}

        def work(log, job, name=name, chosen=chosen):
            streams = server.run("kgon", name).streams
            if chosen:
                until(lambda: streams.get("wandb-events.jsonl"), "the machine is measured")
            else:
                time.sleep(0.5)  # several times the interval

        record(tmp_path / name, work=work, system_metrics=chosen, settings=settings)
        assert bool(server.run("kgon", name).streams.get("wandb-events.jsonl")) == chosen
