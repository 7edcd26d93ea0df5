"""A server on loopback for the real client, and kgon's commands in this process."""

import sys

import pytest
from wandb_server import Server

from kgon.cli import main
from kgon.tracking import account, opening


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that the client of this process is pointed at; nothing of it may be unknown."""
    opening._UNREACHABLE.clear()
    account.say.cache_clear()
    monkeypatch.delenv("WANDB_MODE")
    with Server() as started:
        for name, value in started.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        account.end_client()
        yield started
        started.release()
        account.end_client()
        started.assert_clean()


@pytest.fixture
def kgon(monkeypatch, capsys):
    """Runs a kgon command; its exit status, the lines that it printed, and its errors."""

    monkeypatch.setenv("KGON_SWEEP", "that a test sets is not that of the next")
    monkeypatch.delenv("KGON_SWEEP")

    def run(*words):
        account.end_client()  # as at the end of an earlier command's process
        monkeypatch.setattr(sys, "argv", ["kgon", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run
