"""The W&B account: the configured mode, the API key, and whether the server answers."""

from typing import Any

PROBE_SECONDS = 2
"""How long a job waits for the server before it records offline."""

ANSWER_SECONDS = 20
"""How long a command waits for an answer."""


class NoKey(ValueError):
    """No API key is configured."""

    def __init__(self) -> None:
        super().__init__("no W&B API key is configured; run: wandb login")


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

    Raises:
        NoKey: no API key is configured.
        NoAnswer: the server does not answer, or refuses the key.
    """
    import wandb

    # The caller wants to be online, even if the client is configured to be offline.
    wandb.setup(settings=wandb.Settings(silent=True, mode="online"))
    if not wandb.login(prompt=False, verify=False):
        raise NoKey
    try:
        return wandb.Api(timeout=seconds)
    except wandb.errors.AuthenticationError as error:
        raise NoAnswer(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
