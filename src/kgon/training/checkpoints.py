"""Checkpoint files: written safely, and the previous one kept."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path


class Stopped(SystemExit):
    """The job was told to stop (a signal, Ctrl-C): it is interrupted and can be resumed."""


FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's directory."""
LAST = "last.ckpt"
BEFORE = "before.ckpt"


def save(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the last checkpoint in `folder` by `write(path)`; the last one so far becomes the one
    before.

    A process that is killed in between, or finds the disk full, leaves at least one whole file.

    Raises:
        OSError: it could not be written; the earlier files are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{LAST}.{os.getpid()}"
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if (folder / LAST).exists():
            (folder / LAST).replace(folder / BEFORE)
        partial.replace(folder / LAST)
    except (OSError, RuntimeError) as error:
        # torch makes a RuntimeError of a full disk.
        kept = newest(folder)
        raise OSError(
            f"the checkpoint {folder / LAST} could not be written ({error}); "
            + (f"the last whole one is {kept}" if kept else "there is no earlier one")
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """The last checkpoint in `folder` that is whole, or None."""
    return next((folder / name for name in (LAST, BEFORE) if _is_whole(folder / name)), None)


def _is_whole(path: Path) -> bool:
    """torch.save writes a zip archive, whose members carry checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (FileNotFoundError, zipfile.BadZipFile):
        return False
