"""A W&B run is one attempt at one content: what its id says, and who resumes it."""

import json

import pytest
from recorded import loss_rows, record, states, tracker

from kgon.tracking import account
from kgon.tracking.outbox import Outbox

TRAIN = ["train", "members=2", "trainer.max_steps=40", "schedule.n_losses=4", "callbacks=[losses]",
         "runs.figures=false"]  # fmt: skip
OWN = {"id": None}
"""The id is the attempt's own."""


def test_what_is_repeated_or_made_elsewhere_is_a_run_of_its_own(
    server, kgon, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert kgon(*TRAIN)[0] == 0
    (first,) = server.runs.values()
    was = json.dumps([first.rows(), first.summary, first.config])
    assert kgon(*TRAIN, "runs.overwrite=true")[0] == 0
    assert kgon(*TRAIN, "runs.dir=elsewhere")[0] == 0
    assert len(server.runs) == 3
    assert json.dumps([first.rows(), first.summary, first.config]) == was
    (name,) = {run.fields["displayName"] for run in server.runs.values()}
    assert all(run.name.startswith(f"{name}-") for run in server.runs.values())
    _, lines, _ = kgon("sync", "multirun", "elsewhere")
    assert lines[-1] == "2 already there"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_same_attempt_is_resumed(server, kgon, tmp_path, mode):
    def dies(log, job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "job", mode, work=dies, **OWN)
    record(tmp_path / "job", mode, steps=range(6), **OWN)
    kgon("sync", tmp_path)
    (run,) = server.runs.values()
    assert loss_rows(run) == [(step, step) for step in range(6)] and run.state == "finished"


def test_a_job_killed_while_its_run_begins_resumes_it(server, tmp_path, monkeypatch):
    def killed(*_, **init):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(account, "start_run", killed)
        with pytest.raises(KeyboardInterrupt):
            tracker(tmp_path / "job", **OWN)
    (begun,) = Outbox(tmp_path / "job").runs()
    record(tmp_path / "job", **OWN)
    assert {name for _, name in server.runs} == {begun["id"]}


@pytest.mark.slow  # the client asks for ten seconds
def test_a_run_that_was_deleted_is_sent_under_a_new_id(server, kgon, tmp_path):
    record(tmp_path / "job", **OWN)
    (old,) = server.runs.values()
    server.delete(old)
    assert states(kgon("sync", tmp_path)[1]) == {"job": "sent"}
    (new,) = server.runs.values()
    assert new.name != old.name and loss_rows(new) == loss_rows(old)
    assert states(kgon("sync", tmp_path)[1]) == {"job": "already there"}
    server.delete(new)
    record(tmp_path / "job", steps=range(6), settings={"init_timeout": 2}, **OWN)
    (last,) = server.runs.values()
    assert len(loss_rows(last)) == 6 and last.name not in (new.name, old.name)
    assert [init["id"] for init in Outbox(tmp_path / "job").runs()] == [last.name]


def test_a_given_id_is_of_one_folder(server, kgon, tmp_path):
    record(tmp_path / "one", id="mine")
    rows = server.run("kgon", "mine").rows()
    with pytest.raises(ValueError, match=r"id mine of a W&B run: Run .mine. already exists"):
        record(tmp_path / "two", id="mine")
    account.end_client()
    record(tmp_path / "three", "offline", id="mine")
    status, lines, _ = kgon("sync", tmp_path)
    assert status == 1 and states(lines) == {"one": "already there", "three": "failed"}
    assert any("W&B has another run of the given id mine" in line for line in lines)
    assert server.run("kgon", "mine").rows() == rows
    record(tmp_path / "one", id="mine", steps=range(6))
    assert len(loss_rows(server.run("kgon", "mine"))) == 6
