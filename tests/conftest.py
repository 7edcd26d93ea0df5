"""What holds for every test."""

import signal

import pytest

# A shell's background ignores Ctrl-C, and so would the jobs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    """Whoever runs the tests sends nothing to an account of theirs."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def one_thread():
    """Many small matrix products: threads that wait for each other only cost time."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
