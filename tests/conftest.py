"""What holds for every test."""

import os
import signal
import warnings

import pytest
from zygote import Zygote

# Small matrix products: threads that wait for each other took a third of all processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background ignores Ctrl-C, and so would the jobs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    # ArviZ remarks on itself once a day and notes that in a file; two workers must not do so at
    # once. Here it is done before they start.
    if not hasattr(config, "workerinput"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import arviz  # noqa: F401


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    """Whoever runs the tests sends nothing to an account of theirs."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(autouse=True)
def no_word_of_compiling(monkeypatch):
    """What a test reads on stderr does not depend on whether code has been compiled before."""
    monkeypatch.setattr("kgon.jit._say", lambda _: None)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Runs kgon commands in processes of their own."""
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()
