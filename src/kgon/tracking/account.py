"""The W&B account: the configured mode, the API key, and whether the server answers."""

import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROBE_SECONDS = 2
"""How long a job waits for an answer of the server before it records offline."""

ANSWER_SECONDS = 20
"""How long a command waits for an answer of the server."""

_ENDING_SECONDS = 10.0
"""How long the client's process may take to end before it is killed."""


class NoKey(ValueError):
    """No API key is configured, or it has the wrong form."""


_KEY = re.compile(r"(?<![\w./-])([0-9a-fA-F]{40}|local-\S{40,}|wandb_v\d+_\S{20,})(?![\w./-])")
"""The forms of W&B's API keys: of its cloud, of one's own server, and newer ones.

A part of a path does not match, because hashes are names of folders, too."""


class NoAnswer(ConnectionError):
    """The server does not answer, or refuses the key."""


def configured() -> Any:
    """The settings of the W&B client, from WANDB_... variables and from the settings files that
    `wandb offline`, `wandb disabled` and `wandb init` write."""
    import wandb

    return wandb.setup(settings=wandb.Settings(silent=True)).settings


def require_key() -> None:
    """Raise NoKey unless the client has an API key of the right form; no server is asked."""
    import wandb

    # The caller wants to be online, whatever mode the client is configured for.
    wandb.setup(settings=wandb.Settings(silent=True, mode="online"))
    shown, wandb.run = wandb.run, None  # while there is one, wandb.login does nothing
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise NoKey(f"{first_line(error)} Run: wandb login") from error
    finally:
        wandb.run = shown
    if not found:
        raise NoKey("no W&B API key is configured; run: wandb login")


def check_no_key(settings: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError if a setting (name, value) is an API key or looks like one.

    Settings are written to files and shown; an API key must not be.
    """
    for name, value in settings:
        called = name.rpartition(".")[2].lower().replace("-", "_") in ("api_key", "wandb_api_key")
        if (called and value not in (None, "")) or _KEY.search(str(value)) or _KEY.search(name):
            where = _KEY.sub("...", name)
            raise ValueError(
                f"{where} looks like a W&B API key, which settings would show to everyone: give it "
                "as the variable WANDB_API_KEY, or run wandb login"
            )


def connect(seconds: int) -> Any:
    """A `wandb.Api` whose server has accepted the key; it waits `seconds` for each answer.

    Raises:
        NoKey, NoAnswer: there is no such server.
    """
    import wandb

    require_key()
    try:
        return wandb.Api(timeout=seconds)
    except wandb.errors.AuthenticationError as error:
        raise NoAnswer(first_line(error)) from error


def end_client() -> None:
    """End the W&B client of this process with all of its runs, in about ten seconds at most.

    After a request has timed out, the client's process can miss the message to end, and
    `wandb.teardown` waits ten minutes for it (wandb 0.31). So it is killed before that.
    """
    import wandb

    if threading.current_thread() is not threading.main_thread():
        wandb.teardown()
        return
    before = signal.signal(signal.SIGALRM, lambda *_: _kill_client())
    signal.setitimer(signal.ITIMER_REAL, _ENDING_SECONDS)
    try:
        # If the client was killed, teardown fails, or ends this process with the client's status.
        with suppress(SystemExit, *client_errors()):
            wandb.teardown()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def client_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the W&B client if its process or the server fails."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    process = (MailboxClosedError, HandleAbandonedError, ServerResponseError)
    return wandb.Error, OSError, WandbApiFailedError, *process


def start_run(mode: Any, **init: Any) -> Any:
    """Call `wandb.init`, in a new client if the client was killed with an earlier run.

    It does not change `wandb.run`.
    """
    import wandb
    from wandb.sdk.lib import module
    from wandb.sdk.mailbox import MailboxClosedError

    shown = wandb.run
    try:
        run = wandb.init(mode=mode, **init)
    except (MailboxClosedError, ConnectionResetError, BrokenPipeError):
        end_client()
        run = wandb.init(mode=mode, **init)
    if wandb.run is run:  # as always if the mode is disabled
        module.unset_globals()  # type: ignore[no-untyped-call]
        if shown is not None:
            show(shown)
    return run


def show(run: Any) -> None:
    """Make this run the one of `wandb.run`, `wandb.log` and the like."""
    from wandb.sdk.lib import module

    module.set_global(  # type: ignore[no-untyped-call]
        run=run, config=run.config, log=run.log, summary=run.summary, save=run.save,
        log_artifact=run.log_artifact, use_artifact=run.use_artifact,
        define_metric=run.define_metric, alert=run.alert,
    )  # fmt: skip


def was_deleted(error: BaseException) -> bool:
    """Whether W&B refuses a run's id because a run with this id was deleted."""
    # Only the message says so: status 409 can also mean a conflict that will pass.
    return "previously created and deleted" in str(error)


def _kill_client() -> None:
    """Kill the wandb-core processes that this process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid():
            os.kill(int(stat.parent.name), signal.SIGKILL)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@functools.cache
def say(message: str) -> None:
    """Print a message, once per process."""
    print(f"W&B: {message}", file=sys.stderr)
