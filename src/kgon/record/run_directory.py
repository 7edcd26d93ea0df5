"""The record of a run on disk: identity, status, tables; written and read here only.

A run directory holds config.yaml (resolved), status.json, metrics.jsonl (`metrics_file`),
members.parquet, loss.parquet, snapshots.parquet, plateaus.parquet, llc.parquet,
weights.safetensors, figures/, checkpoints/ and what the logger writes.
"""

import datetime
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from kgon.training.checkpoints import Stopped

WITHOUT_EFFECT = (
    "hydra",
    "logger",
    "runs",
    "callbacks.checkpoint",
    "callbacks.progress",
    "trainer.accelerator",
    "trainer.devices",
    "datamodule.block",
)
"""Config keys that do not change a run's result, and so not its identity."""


def identity(command: str, config: dict[str, Any]) -> str:
    """`command`-hash: the same for equal configs, whoever runs them, whenever.

    `config` is the resolved config as plain containers; WITHOUT_EFFECT is taken out here.
    """
    effective = json.loads(json.dumps(config))
    for key in WITHOUT_EFFECT:
        *path, last = key.split(".")
        node = effective
        for name in path:
            node = node.get(name) or {}
        node.pop(last, None)
    canonical = json.dumps(effective, sort_keys=True)
    return f"{command}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


STATES = ("missing", "pending", "running", "interrupted", "failed", "finished")
"""What a run's directory may say of it. Only `failed` and `finished` are ends."""

GRACE_SECONDS = 2.0
"""How long a starter asks for a lock: a reader holds it for an instant, to see if it is free."""

REPORT_SECONDS = 1.0
"""The least time between two reports of progress."""


class Busy(Exception):
    """Another process is at work in this directory."""


def write_atomically(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; who reads meanwhile sees the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run, while it is being written."""

    path: Path

    def status(self) -> dict[str, Any]:
        """The last status written; {"state": "missing"} if none was.

        A job that says it is running, and holds no lock, was killed: its state is `interrupted`.
        """
        file = self.path / "status.json"
        if not file.exists():
            return {"state": "missing"}
        status = json.loads(file.read_text())
        if status["state"] == "running" and not self._locked():
            # It may have ended between the two looks.
            status = json.loads(file.read_text())
            if status["state"] == "running":
                status.update(state="interrupted", error="killed")
        return status

    def _locked(self) -> bool:
        try:
            with (self.path / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return True
            raise
        return False

    @contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """Hold the directory alone.

        The lock is the kernel's (flock): it goes with the process that holds it, however that ends,
        and on a network file system with the node.

        Raises:
            Busy: another process holds it, and `wait` is false.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            patience = time.monotonic() + GRACE_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                    if not wait and time.monotonic() > patience:
                        raise Busy(f"{self.path} is being worked on{self._by_whom()}") from None
                    time.sleep(0.05)
            yield

    def _by_whom(self) -> str:
        file = self.path / "status.json"
        status = json.loads(file.read_text()) if file.exists() else {}
        return f" by process {status['pid']} on {status['host']}" if status.get("pid") else ""

    def announce(self, command: str, overrides: Sequence[str]) -> None:
        """Say `pending` where nothing has been said yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "status.json").exists():
            self._write_status(_Status(command, overrides).fields | {"state": "pending"})

    def fail(self, command: str, overrides: Sequence[str], error: str) -> None:
        """Say `failed` for a job that ended without a word of its own."""
        self.path.mkdir(parents=True, exist_ok=True)
        fields = _Status(command, overrides).fields | self.status()
        self._write_status(fields | {"state": "failed", "error": error, "finished": _now()})

    def _write_status(self, fields: Mapping[str, Any]) -> None:
        write_atomically(self.path / "status.json", json.dumps(fields, indent=1))

    @contextmanager
    def job(
        self, command: str, overrides: Sequence[str], config: dict[str, Any]
    ) -> Iterator["Job"]:
        """Keep the status right while a job runs: running, then finished, failed or interrupted.

        A failure's traceback goes to error.txt and the exception goes on. The caller holds the
        directory's lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "error.txt").unlink(missing_ok=True)
        write_atomically(
            self.path / "config.yaml",
            yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False),
        )
        job = Job(self, _Status(command, overrides, worked=self.status().get("seconds") or 0.0))
        job.write("running")
        try:
            yield job
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Stopped)
            try:
                # The status first: on a full disk there may be room for one of the two.
                job.write(
                    "interrupted" if stopped else "failed", f"{type(error).__name__}: {error}"
                )
                (self.path / "error.txt").write_text(traceback.format_exc())
            except OSError as unwritten:
                error.add_note(f"This could not be recorded: {unwritten}")
            raise
        job.write("finished")

    def clear(self) -> None:
        """Remove what an earlier run of the same config left, its checkpoints first."""
        for name in ("checkpoints", "figures", "points", "wandb", "csv", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for pattern in ("*.parquet", "*.safetensors", "metrics.jsonl"):
            for file in self.path.glob(pattern):
                file.unlink()

    def save_table(self, name: str, table: pa.Table) -> None:
        """Write a table as <name>.parquet."""
        pq.write_table(table, self.path / f"{name}.parquet")

    def save_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as <name>.parquet."""
        self.save_table(name, pa.Table.from_pylist(rows))

    def save_weights(self, step: NDArray[Any], W: NDArray[Any], b: NDArray[Any]) -> None:
        """Write snapshots: step (n_records,), W (n_records, n_members, n_hidden, n_features), b."""
        arrays = {"step": step, "W": W, "b": b}
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()},
            self.path / "weights.safetensors",
        )


class _Status:
    """What status.json says of a job, from its start on."""

    def __init__(self, command: str, overrides: Sequence[str], worked: float = 0.0):
        self.clock = time.monotonic() - worked
        self.fields: dict[str, Any] = {
            "state": "running",
            "command": command,
            "overrides": list(overrides),
            "started": _now(),
            "finished": None,
            "seconds": worked,
            "error": None,
            "progress": None,
            "metrics": {},
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }

    def now(self, state: str, error: str | None = None) -> dict[str, Any]:
        """The fields in this state: seconds of work are those of all attempts together."""
        seconds = round(time.monotonic() - self.clock, 3)
        ended = {"finished": _now()} if state != "running" else {}
        return {**self.fields, "state": state, "error": error, "seconds": seconds, **ended}


class Job:
    """A job at work: what it reports of itself."""

    def __init__(self, directory: RunDirectory, status: _Status):
        self.directory = directory
        self._status = status
        self._reported = -REPORT_SECONDS

    def report(self, progress: float, metrics: Mapping[str, float | str]) -> None:
        """Say how far it is, from 0 to 1, and the last numbers; at most once in so many seconds."""
        known = {k: v for k, v in metrics.items() if isinstance(v, str) or math.isfinite(v)}
        self._status.fields.update(progress=round(progress, 4), metrics=known)
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self.write("running")

    def write(self, state: str, error: str | None = None) -> None:
        """Write the status."""
        self._reported = time.monotonic()
        self.directory._write_status(self._status.now(state, error))

    def as_finished(self) -> str:
        """What status.json will say at the job's end, for a copy that is made before."""
        return json.dumps(self._status.now("finished"), indent=1)


def long_table(
    step: NDArray[Any], members: Sequence[int], columns: dict[str, NDArray[Any]]
) -> pa.Table:
    """Columns (n_records, n_members) as a table with a row for each step and member."""
    arrays: dict[str, Any] = {
        "step": np.repeat(step, len(members)),
        "member": np.tile(np.asarray(members), len(step)),
    }
    return pa.table(arrays | {name: np.asarray(c).reshape(-1) for name, c in columns.items()})


@dataclass(frozen=True)
class Run:
    """A run directory, read. Tables that were not written (yet) are empty or None."""

    path: Path
    config: dict[str, Any]
    status: dict[str, Any]
    members: list[dict[str, Any]]
    loss: pa.Table | None
    snapshots: pa.Table | None
    plateaus: list[dict[str, Any]]
    llc: pa.Table | None

    def weights(self) -> dict[str, NDArray[Any]]:
        """step, W and b of the snapshots."""
        return load_file(self.path / "weights.safetensors")


def load(path: Path) -> Run:
    """Read a run directory, whatever of it there is."""
    if not (path / "status.json").exists():
        raise ValueError(f"{path} is not a run directory: it has no status.json")

    def table(name: str) -> pa.Table | None:
        file = path / f"{name}.parquet"
        return pq.read_table(file) if file.exists() else None

    def rows(name: str) -> list[dict[str, Any]]:
        found = table(name)
        return [] if found is None else found.to_pylist()

    return Run(
        path=path,
        config=yaml.load((path / "config.yaml").read_text(), Loader=yaml.CSafeLoader),
        status=RunDirectory(path).status(),
        members=rows("members"),
        loss=table("loss"),
        snapshots=table("snapshots"),
        plateaus=rows("plateaus"),
        llc=table("llc"),
    )


def find(folders: Sequence[Path]) -> list[Path]:
    """The run directories among the folders and directly inside them, in order of name."""
    found = []
    for folder in folders:
        if (folder / "status.json").exists():
            found.append(folder)
        elif folder.is_dir():
            found += sorted(child.parent for child in folder.glob("*/status.json"))
    if not found:
        raise ValueError(f"no run in {', '.join(map(str, folders))}")
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
