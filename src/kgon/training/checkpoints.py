"""Checkpoint files: each is written as a whole, and the previous one is kept."""

import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kgon.files import replaced


class Stopped(SystemExit):
    """A signal or Ctrl-C stopped the job, which can be resumed."""


class EndedEarly(Exception):
    """Training ended before its last step; the job can be resumed."""


FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's directory."""
LAST = "last.ckpt"
BEFORE = "before.ckpt"

_FORM = 2
"""To be increased when checkpoints, or the results of training, change within a version of kgon."""

WRITER = f"kgon {version('kgon')}, form {_FORM}"
"""The code that writes checkpoints, which each of them names."""


def check_writer(checkpoint: dict[str, Any]) -> None:
    """ValueError if other code wrote the checkpoint: a resumed run would mix their results."""
    found = checkpoint.get("writer", "an older kgon")
    if found != WRITER:
        raise ValueError(
            f"the run's last checkpoint was written by {found}, and this is {WRITER}: resume with "
            "that version, or start again with runs.overwrite=true"
        )


def save(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write(path)` for a new file last.ckpt in `folder`; the old one becomes before.ckpt.

    At least one whole checkpoint remains if the process is killed. If the disk is full, an OSError
    is raised, and the earlier files are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replaced(folder / LAST, keep=folder / BEFORE) as partial:
            write(partial)
    except (OSError, RuntimeError) as error:
        # torch raises a RuntimeError when the disk is full.
        kept = newest(folder)
        raise OSError(
            f"the checkpoint {folder / LAST} could not be written ({error}); "
            + (f"the last whole one is {kept}" if kept else "there is no earlier one")
        ) from error


def newest(folder: Path) -> Path | None:
    """The last checkpoint in `folder` that is whole, or None."""
    return next((folder / name for name in (LAST, BEFORE) if _is_whole(folder / name)), None)


def _is_whole(path: Path) -> bool:
    # torch.save writes a zip archive, whose members carry checksums.
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (FileNotFoundError, zipfile.BadZipFile):
        return False
