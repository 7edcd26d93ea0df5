"""Which points a sweep has, and how runs stand.

A sweep keeps no state of its own: its points are runs, whose directories say everything. It only
remembers which they are, by an empty file each in <runs.dir>/sweeps/<name>/, so that many processes
can add to it, and a point that two sweeps share belongs to both.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgon.record.run_directory import STATES, WITHOUT_EFFECT, RunDirectory

VARIABLE = "KGON_SWEEP"
"""Environment variable with the sweep's name: what a sweep starts, on any launcher, inherits it."""


def name(command: str, overrides: Iterable[str]) -> str:
    """`sweep`-hash: the same for the same points asked for, in any order of the words."""
    words = sorted(word for word in overrides if not word.lstrip("+~").startswith(WITHOUT_EFFECT))
    digest = hashlib.sha256("\n".join([command, *words]).encode()).hexdigest()
    return f"sweep-{digest[:10]}"


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep, as far as they are known."""

    runs_dir: Path
    name: str

    @classmethod
    def current(cls, runs_dir: Path) -> "Sweep | None":
        """The sweep that this process works for."""
        return cls(runs_dir, os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None

    @property
    def _folder(self) -> Path:
        return self.runs_dir / "sweeps" / self.name

    def add(self, point: str) -> None:
        """Note that the run of this name is one of the sweep's points."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / point).touch()

    @property
    def changed(self) -> float:
        """When a point was last added, in seconds since the epoch."""
        return self._folder.stat().st_mtime

    def points(self) -> list[Path]:
        """The directories of the sweep's points, by name."""
        if not self._folder.is_dir():
            return []
        return sorted(self.runs_dir / file.name for file in self._folder.iterdir())


def known(runs_dir: Path) -> list[Sweep]:
    """The sweeps that have points in `runs_dir`, by name."""
    return [Sweep(runs_dir, folder.name) for folder in sorted(runs_dir.glob("sweeps/*"))]


def standing(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """How each run stands, a row each.

    run, state (`runs.STATES`), command, overrides, progress (0 to 1, or None), seconds (of work, of
    all attempts together), loss (mean of the members' last), phases (members by phase), error.
    """
    rows = []
    for path in directories:
        status = RunDirectory(path).status()
        metrics = status.get("metrics") or {}
        final = "final/phase/"
        prefix = final if any(key.startswith(final) for key in metrics) else "phase/"
        rows.append(
            {
                "run": path.name,
                "state": status["state"],
                "command": status.get("command"),
                "overrides": status.get("overrides") or [],
                "progress": 1.0 if status["state"] == "finished" else status.get("progress"),
                "seconds": status.get("seconds"),
                "loss": metrics.get("final/loss", metrics.get("loss/mean")),
                "phases": {
                    key.removeprefix(prefix): int(count)
                    for key, count in metrics.items()
                    if key.startswith(prefix) and count
                },
                "error": status.get("error"),
            }
        )
    return rows


def tally(rows: Sequence[dict[str, Any]]) -> str:
    """How many runs are in which state, in words: "3 finished, 1 failed"."""
    counts = Counter(row["state"] for row in rows)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])
