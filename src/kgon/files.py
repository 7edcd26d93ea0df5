"""Atomic writes, locks, and numbers that JSON and tables can hold."""

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, SupportsFloat


@contextmanager
def replaced(path: Path, *, sync: bool = True, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` when the block ends without an error.

    A reader of `path` finds either the whole old file or the whole new one. With `sync` this also
    holds after a crash of the machine; it takes about a millisecond. With `keep` the old file is
    renamed to it, and for a moment `path` does not exist.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a text as `replaced` does; an OSError names `path`, not the temporary file."""
    try:
        with replaced(path, sync=sync) as partial:
            partial.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def try_lock(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file until it is closed; False if another process holds the lock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def finite_or_none(x: SupportsFloat | None) -> float | None:
    """The number, or None if it is NaN or infinite, which JSON cannot hold."""
    if x is None or not math.isfinite(x):
        return None
    return x if isinstance(x, int) else float(x)
