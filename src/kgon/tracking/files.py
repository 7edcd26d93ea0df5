"""W&B's files in a run's directory: what is recorded there, what was sent, who is writing.

A folder `wandb` holds fragments, one for each time a job was started: offline-run-<time>-<id>, or
run-<time>-<id> where W&B was online. In each, `run-<id>.wandb` is the whole record: a header of 7
bytes, then LevelDB's log format (blocks of 32 KiB; chunks of crc32, length, type, data) of protocol
buffers. Beside it `wandb sync` leaves `.syncstate` when it begins and `.synced` when it has ended,
and `kgon sync` `.confirmed` when it has seen that the server has it all.
"""

import fcntl
import math
import shutil
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_HEADER = 7
_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

STAGING = "staging"
"""The folder, beside the fragments, of what tables and artifacts hold until it is sent."""


@dataclass(frozen=True)
class Fragment:
    """What one start of a job left for W&B."""

    file: Path

    @property
    def run_id(self) -> str:
        return self.file.stem.removeprefix("run-")

    @property
    def offline(self) -> bool:
        return self.file.parent.name.startswith("offline-")

    @property
    def marker(self) -> Path:
        """The client's file that says that it was sent, as far as the client knows."""
        return self.file.with_suffix(".wandb.synced")

    @property
    def confirmed(self) -> Path:
        """The file that says that the server has all of it."""
        return self.file.with_suffix(".wandb.confirmed")

    @property
    def sent(self) -> bool:
        return self.confirmed.exists()

    @property
    def begun(self) -> bool:
        """Whether some of it may have been sent."""
        state = self.file.with_suffix(".wandb.syncstate")
        return not self.offline or state.exists() or self.marker.exists()

    @property
    def empty(self) -> bool:
        """Whether its job was killed before anything was recorded."""
        return not any(record.HasField("run") for record in read(self.file))

    @property
    def quiet(self) -> float:
        """Seconds since it was written to; infinite for one that has its end."""
        if any(record.HasField("exit") for record in read(self.file)):
            return math.inf
        return time.time() - self.file.stat().st_mtime


def fragments(folder: Path) -> list[Fragment]:
    """The fragments in a folder `wandb`, in order of time."""
    found = [
        Fragment(file)
        for kind in ("run-*", "offline-run-*")
        for file in folder.glob(f"{kind}/run-*.wandb")
    ]
    return sorted(found, key=lambda f: f.file.parent.name.removeprefix("offline-"))


def lock(folder: Path) -> IO[str] | None:
    """Take a folder `wandb` for writing or sending; None if somebody else has it.

    The lock is the open file: it ends when that is closed, or with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def begin_again(folder: Path, run_id: str, alone: bool) -> int:
    """Prepare a folder `wandb` for a job that gives all rows of a run again; return the first step
    that is not recorded already.

    The run's fragments of which nothing was sent are removed: their rows come again. The others
    stay, and what is in them is not recorded twice. So do all where someone else is there (not
    `alone`).
    """
    first = 0
    for fragment in fragments(folder):
        if fragment.run_id != run_id:
            continue
        if alone and not fragment.sent and not fragment.begun:
            shutil.rmtree(fragment.file.parent)
        else:
            first = max(first, last_step(read(fragment.file)) + 1)
    return first


def last_step(records: Iterable[Any]) -> int:
    """The last step of the history among records; -1 without a row."""
    return max((r.history.step.num for r in records if r.HasField("history")), default=-1)


def read(file: Path) -> Iterator[Any]:
    """The records of a .wandb file up to where it ends, be it in mid-record after a kill.

    Raises:
        ValueError: what is there is damaged.
    """
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]

    data, at, parts = file.read_bytes(), _HEADER, []
    if len(data) >= _HEADER and data[:4] != b":W&B":
        raise ValueError(f"{file} is no W&B file")
    while True:
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:
            at += left
        if at + _CHUNK.size > len(data):
            return
        checksum, length, kind = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        if at + length > len(data):
            return
        chunk = data[at : at + length]
        at += length
        if zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"{file} is damaged before byte {at}")
        parts.append(chunk)
        if kind in (_FULL, _LAST):
            yield record_type.FromString(b"".join(parts))
            parts = []


def write(file: Path, header_of: Path, records: Iterable[Any]) -> None:
    """Write records as a .wandb file, with the header of another."""
    with header_of.open("rb") as other:
        blocks = bytearray(other.read(_HEADER))
    for record in records:
        data, first = record.SerializeToString(), True
        while True:
            left = _BLOCK - len(blocks) % _BLOCK
            if left < _CHUNK.size:
                blocks += bytes(left)
                left = _BLOCK
            chunk, data = data[: left - _CHUNK.size], data[left - _CHUNK.size :]
            kind = (_FULL if not data else _FIRST) if first else (_MIDDLE if data else _LAST)
            checksum = zlib.crc32(chunk, zlib.crc32(bytes([kind])))
            blocks += _CHUNK.pack(checksum, len(chunk), kind) + chunk
            first = False
            if not data:
                break
    file.write_bytes(blocks)
