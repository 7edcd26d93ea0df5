"""What holds for every test."""

import pytest


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    """Whoever runs the tests sends nothing to an account of theirs."""
    monkeypatch.setenv("WANDB_MODE", "offline")
