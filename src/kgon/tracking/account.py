"""The W&B account: the configured mode, the API key, and whether the server answers."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

PROBE_SECONDS = 2
"""How long a job waits for the server before it records offline."""

ANSWER_SECONDS = 20
"""How long a command waits for an answer."""

_ENDING_SECONDS = 10.0
"""How long the client's process may take to end."""


class NoKey(ValueError):
    """No API key is configured."""


class NoAnswer(ConnectionError):
    """The server does not answer or refuses the key; the message says which."""


def mode_and_url() -> tuple[str, str]:
    """The mode and the server that the W&B client is configured for, by WANDB_MODE and
    WANDB_BASE_URL or by `wandb offline` and `wandb login`."""
    import wandb

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    return {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode), (
        settings.base_url
    )


def connect(seconds: int) -> Any:
    """A `wandb.Api` whose server has accepted the key; it waits `seconds` for each answer.

    Else it raises NoKey or NoAnswer.
    """
    import wandb

    # The caller wants to be online, even if the client is configured to be offline.
    wandb.setup(settings=wandb.Settings(silent=True, mode="online"))
    if not wandb.login(prompt=False, verify=False):
        raise NoKey("no W&B API key is configured; run: wandb login")
    try:
        return wandb.Api(timeout=seconds)
    except wandb.errors.AuthenticationError as error:
        raise NoAnswer(first_line(error)) from error


def end_client() -> None:
    """End the W&B client of this process with all of its runs, in about ten seconds at most.

    After a request that has timed out, the client's process can miss the message to end, and
    `wandb.teardown` then waits for it for ten minutes (wandb 0.31). So it is killed before that.
    """
    import wandb

    if threading.current_thread() is not threading.main_thread():
        wandb.teardown()
        return
    before = signal.signal(signal.SIGALRM, lambda *_: _kill_client())
    signal.setitimer(signal.ITIMER_REAL, _ENDING_SECONDS)
    try:
        # A client that was killed cannot be reached, or would end this process with its status.
        with suppress(SystemExit, *client_errors()):
            wandb.teardown()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def client_errors() -> tuple[type[Exception], ...]:
    """What the W&B client raises if its process or the server fails."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return wandb.Error, OSError, MailboxClosedError, HandleAbandonedError


def start_run(mode: Any, **init: Any) -> Any:
    """`wandb.init`, in a new client if that of an earlier run has been killed."""
    import wandb
    from wandb.sdk.mailbox import MailboxClosedError

    try:
        return wandb.init(mode=mode, **init)
    except (MailboxClosedError, ConnectionResetError, BrokenPipeError):
        end_client()
        return wandb.init(mode=mode, **init)


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
    """The first line of an error's message, or the error's name if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
