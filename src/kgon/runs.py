"""The record of a run on disk: identity, status, tables; written and read here only.

A run directory holds config.yaml (resolved), status.json, members.parquet, loss.parquet,
snapshots.parquet, plateaus.parquet, llc.parquet, weights.safetensors, figures/, checkpoints/ and
what the logger writes.
"""

import datetime
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
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

WITHOUT_EFFECT = (
    "hydra",
    "logger",
    "runs",
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


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run, while it is being written."""

    path: Path

    def status(self) -> dict[str, Any]:
        """The last status written; {"state": "missing"} if none was."""
        file = self.path / "status.json"
        return json.loads(file.read_text()) if file.exists() else {"state": "missing"}

    @contextmanager
    def job(self, command: str, overrides: Sequence[str], config: dict[str, Any]) -> Iterator[None]:
        """Keep the status right while a job runs: running, then finished, failed or interrupted.

        A failure's traceback goes to error.txt and the exception goes on.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "error.txt").unlink(missing_ok=True)
        _write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        clock = time.monotonic()
        status: dict[str, Any] = {
            "state": "running",
            "command": command,
            "overrides": list(overrides),
            "started": _now(),
            "finished": None,
            "seconds": None,
            "error": None,
            "pid": os.getpid(),
        }

        def write(state: str, error: str | None) -> None:
            status.update(
                state=state,
                finished=_now(),
                seconds=round(time.monotonic() - clock, 3),
                error=error,
            )
            _write_atomically(self.path / "status.json", json.dumps(status, indent=1))

        _write_atomically(self.path / "status.json", json.dumps(status, indent=1))
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            (self.path / "error.txt").write_text(traceback.format_exc())
            write("interrupted" if stopped else "failed", f"{type(error).__name__}: {error}")
            raise
        write("finished", None)

    def clear(self) -> None:
        """Remove what an earlier run of the same config left, its checkpoints first."""
        for name in ("checkpoints", "figures", "points", "wandb", "csv", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for file in (*self.path.glob("*.parquet"), *self.path.glob("*.safetensors")):
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
        config=yaml.safe_load((path / "config.yaml").read_text()),
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
