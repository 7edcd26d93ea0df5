"""Files that are written as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a path to write to; its file replaces `path` when the block ends without an error.

    Whoever reads `path` finds the old file or the new one as a whole; with `sync`, which takes
    about a millisecond, also after the machine has crashed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace the file by one with this text.

    Raises:
        OSError: it could not be written; the error names `path`.
    """
    try:
        with replaced(path, sync=sync) as partial:
            partial.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
