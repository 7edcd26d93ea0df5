"""The record of a run on disk: identity, status, tables. Only this module writes and reads it.

A run directory contains config.yaml, status.json, metrics.jsonl (see `metrics_file`),
members.parquet, loss.parquet, snapshots.parquet, plateaus.parquet, transitions.parquet,
llc.parquet, weights.safetensors, figures/, checkpoints/ and the files of the logger.
"""

import datetime
import fcntl
import hashlib
import json
import math
import os
import re
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
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kgon import files
from kgon.record import provenance
from kgon.tracking.account import NoKey
from kgon.training.checkpoints import EndedEarly, Stopped

WITHOUT_EFFECT = (
    "hydra", "logger", "runs", "callbacks.checkpoint", "callbacks.progress",
    "trainer.accelerator", "trainer.devices", "trainer.max_time", "datamodule.block",
)  # fmt: skip
"""Config keys that change neither a run's result nor its identity."""


def identity(command: str, config: dict[str, Any]) -> str:
    """<command>-<hash>: a function of the settings that change the result, and of nothing else."""
    effective = json.dumps(without(config, WITHOUT_EFFECT), sort_keys=True)
    return f"{command}-{hashlib.sha256(effective.encode()).hexdigest()[:10]}"


def without(config: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A copy of a config of plain containers without these dotted keys."""
    kept: dict[str, Any] = json.loads(json.dumps(config))
    for key in keys:
        *path, last = key.split(".")
        node = kept
        for name in path:
            node = node.get(name) or {}
        node.pop(last, None)
    return kept


def leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config of plain containers by dotted name; a list is one value, as text."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value) if isinstance(value, list) else value


STATES = ("missing", "pending", "running", "interrupted", "failed", "finished")
"""The states of a run. All except `failed` and `finished` can change to `running`."""

_GRACE_SECONDS = 2.0
"""How long to try for a lock, which a reader may hold for an instant to see if it is free."""

_REPORT_SECONDS = 1.0
"""The least time between two progress reports."""


def has_failed(status: Mapping[str, Any]) -> bool:
    """Whether a run failed once it had begun. A sweep does not repeat it by itself, but one that
    never began, because Slurm could not start it for instance."""
    return bool(status["state"] == "failed" and status["started"])


class Busy(Exception):
    """Another process is running the job of this directory."""


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run, while it is being written."""

    path: Path

    def status(self) -> dict[str, Any]:
        """The status as last written, or {"state": "missing"}.

        A job with the status `running` but without its lock was killed: its state is `interrupted`.
        So is that of a run whose status.json is damaged or cannot be read, which `error` then says.
        """
        status = self._read_status()
        if status["state"] == "running" and not self._locked():
            # The job may have ended in the meantime.
            status = self._read_status()
            if status["state"] == "running":
                status |= {"state": "interrupted", "error": status["error"] or "killed"}
        return status

    def _read_status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self.path / "status.json").read_text())
            return _new_status(status["state"], "", []) | status
        except FileNotFoundError:
            return {"state": "missing"}
        except PermissionError:
            error = "status.json cannot be read by this user"
        except (ValueError, TypeError, KeyError):
            error = "status.json is damaged"
        return _new_status("running", "", []) | {"started": None, "error": error}

    def _write_status(self, fields: Mapping[str, Any], *, sync: bool = True) -> None:
        files.write_text(self.path / "status.json", json.dumps(fields, indent=1), sync=sync)

    def _locked(self) -> bool:
        try:
            file = (self.path / ".lock").open()
        except FileNotFoundError:
            return False
        with file:
            try:
                return not files.try_lock(file, fcntl.LOCK_SH)
            except OSError:  # a file system without flock: the status stands as it was written
                return True

    @contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """Hold the directory's exclusive lock; `Busy` if another process does and `wait` is false.

        The kernel (flock) releases it when the process ends in any way; on a network file system
        also when its node goes down.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            last_try = time.monotonic() + _GRACE_SECONDS
            while not files.try_lock(file):
                if not wait and time.monotonic() > last_try:
                    status = {"pid": "?", "host": "?"} | self._read_status()
                    who = f"Process {status['pid']} on {status['host']}"
                    raise Busy(f"{who} is running {self.path}")
                time.sleep(0.05)
            yield

    def announce(self, command: str, overrides: Sequence[str]) -> None:
        """Set the state `pending`, if there is no status yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._read_status()["state"] == "missing":
            self._write_status(_new_status("pending", command, overrides))

    def fail(self, command: str, overrides: Sequence[str], error: BaseException) -> None:
        """Set the state `failed` for a job that ended without setting it."""
        known = _new_status("pending", command, overrides) | self.status()
        if known["state"] not in ("failed", "finished"):
            self.path.mkdir(parents=True, exist_ok=True)
            why = f"{type(error).__name__}: {error}"
            self._write_status(known | {"state": "failed", "error": why, "finished": _now()})

    @contextmanager
    def job(
        self, command: str, overrides: Sequence[str], config: dict[str, Any]
    ) -> Iterator["Job"]:
        """Write the status of a job: running, then finished, failed or interrupted.

        The traceback of a failure is written to error.txt, and the exception is raised again. The
        caller holds the directory's lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "error.txt").unlink(missing_ok=True)
        text = yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False)
        files.write_text(self.path / "config.yaml", text)
        job = Job(self, command, overrides, self.status(), config)
        job.write("running")
        try:
            yield job
        except BaseException as error:
            resumable = isinstance(error, KeyboardInterrupt | Stopped | EndedEarly)
            state = "interrupted" if resumable else "failed"
            if isinstance(error, NoKey):
                job.withdraw()
            try:
                # The status first, because a full disk may have room for only one of the two.
                job.write(state, f"{type(error).__name__}: {error}")
                (self.path / "error.txt").write_text(traceback.format_exc())
            except OSError as unwritten:
                error.add_note(f"This could not be recorded: {unwritten}")
            raise
        job.write("finished")

    def clear(self) -> None:
        """Remove the results of an earlier run of the same config, its checkpoints first."""
        for name in ("checkpoints", "figures", "points", "wandb", "csv", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for file in self.path.iterdir():
            if file.suffix in (".parquet", ".safetensors") or file.name == "metrics.jsonl":
                file.unlink()

    def save_table(self, name: str, table: pa.Table) -> None:
        """Write <name>.parquet."""
        pq.write_table(table, self.path / f"{name}.parquet")

    def save_weights(self, step: NDArray[Any], W: NDArray[Any], b: NDArray[Any]) -> None:
        """Write snapshots: step (n_records,), W (n_records, n_members, n_hidden, n_features), b."""
        arrays = {k: np.ascontiguousarray(v) for k, v in {"step": step, "W": W, "b": b}.items()}
        with files.replaced(self.path / "weights.safetensors") as partial:
            # safetensors makes files that only their owner can read.
            partial.touch()
            mode = partial.stat().st_mode
            save_file(arrays, partial)
            partial.chmod(mode)


class Job:
    """A running job, which reports its progress; `before` is the status of its last attempt,
    `config` what it runs with."""

    def __init__(
        self,
        directory: RunDirectory,
        command: str,
        overrides: Sequence[str],
        before: Mapping[str, Any],
        config: Mapping[str, Any],
    ):
        self.directory = directory
        modules = provenance.own_modules(config)
        code = provenance.code() | ({"modules": modules} if modules else {})
        self._status = _new_status("running", command, overrides) | {"code": code}
        if before["state"] == "interrupted" and before.get("code") not in (
            None,
            self._status["code"],
        ):
            # A part of the run is the work of other code.
            self._status["earlier_code"] = [*before.get("earlier_code", []), before["code"]]
        self._started = time.monotonic() - (before.get("seconds") or 0.0)
        self._reported = -math.inf

    def report(
        self, progress: float, metrics: Mapping[str, float | str], *, sync: bool = True
    ) -> None:
        """Record the progress, from 0 to 1, and the last metrics, at most once a second.

        `sync` as in `files.replaced`.
        """
        known = {k: v for k, v in metrics.items() if isinstance(v, str) or math.isfinite(v)}
        self._status.update(progress=round(progress, 4), metrics=known)
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self.write("running", sync=sync)

    def write(self, state: str, error: str | None = None, *, sync: bool = True) -> None:
        """Write the status."""
        self._reported = time.monotonic()
        self.directory._write_status(self._in(state, error), sync=sync)

    def withdraw(self) -> None:
        """Take back that the job has begun."""
        self._status["started"] = None

    def as_finished(self) -> str:
        """The text of status.json at the job's end, for a copy that is made before."""
        return json.dumps(self._in("finished", None), indent=1)

    def _in(self, state: str, error: str | None) -> dict[str, Any]:
        finished = None if state == "running" else _now()
        now = {"state": state, "error": error, "finished": finished}
        return self._status | now | {"seconds": round(time.monotonic() - self._started, 3)}


def _new_status(state: str, command: str, overrides: Sequence[str]) -> dict[str, Any]:
    return {
        "state": state,
        "command": command,
        "overrides": list(overrides),
        "started": None if state == "pending" else _now(),
        "finished": None,
        "seconds": 0.0,
        "error": None,
        "progress": None,
        "metrics": {},
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


@dataclass(frozen=True)
class Run:
    """The content of a run directory. Tables that do not exist (yet) are empty or None.

    In `config` a reference such as ${model.n_features} is replaced by the setting; what a resolver
    computes, ${kgon.members:...} for instance, stays as it is written.
    """

    path: Path
    config: dict[str, Any]
    status: dict[str, Any]
    members: list[dict[str, Any]]
    loss: pa.Table | None
    snapshots: pa.Table | None
    plateaus: list[dict[str, Any]]
    llc: pa.Table | None

    def weights(self) -> dict[str, NDArray[Any]]:
        """The arrays step, W and b of the snapshots."""
        file = self.path / "weights.safetensors"
        # Of a file that it may not read, safetensors says that it is missing.
        with file.open("rb"):
            try:
                return load_file(file)
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged: {error}") from error


def load(path: Path) -> Run:
    """Read a run directory, finished or not; ValueError if a file is damaged."""
    if not (path / "status.json").exists():
        raise ValueError(f"{path} is not a run directory: it has no status.json")
    members, plateaus = read_table(path, "members"), read_table(path, "plateaus")
    return Run(
        path=path,
        config=config(path),
        status=RunDirectory(path).status(),
        members=members.to_pylist() if members else [],
        loss=read_table(path, "loss"),
        snapshots=read_table(path, "snapshots"),
        plateaus=plateaus.to_pylist() if plateaus else [],
        llc=read_table(path, "llc"),
    )


def read_table(path: Path, name: str) -> pa.Table | None:
    """A table of a run directory, or None; ValueError if its file is damaged."""
    file = path / f"{name}.parquet"
    try:
        return pq.read_table(file) if file.exists() else None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run directory as it is written; ValueError if its file is damaged."""
    file = path / "config.yaml"  # which a pending run does not have
    try:
        written = yaml.load(file.read_text(), Loader=yaml.CSafeLoader) if file.exists() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return written or {}


def config(path: Path) -> dict[str, Any]:
    """The config of a run directory, with references replaced as in `Run`."""
    written = read_config(path)
    found: dict[str, Any] = _dereferenced(written, written)
    return found


def _dereferenced(node: Any, config: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        return {name: _dereferenced(value, config) for name, value in node.items()}
    if isinstance(node, list):
        return [_dereferenced(value, config) for value in node]
    reference = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
    if reference is None:
        return node
    value: Any = config
    for name in reference[1].split("."):
        value = value[name]
    return _dereferenced(value, config)


def find(folders: Sequence[Path]) -> list[Path]:
    """The run directories among the folders and directly inside them, in order of name; those of a
    sweep for its folder in sweeps/."""
    found = []
    for folder in folders:
        if (folder / "status.json").exists():
            found.append(folder)
        elif folder.is_dir() and folder.parent.name == "sweeps":
            points = (folder.parents[1] / file.name for file in folder.iterdir())
            found += sorted(point for point in points if (point / "status.json").exists())
        elif folder.is_dir():
            found += sorted(child.parent for child in folder.glob("*/status.json"))
    if not found:
        raise ValueError(f"no run in {', '.join(map(str, folders))}")
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
