"""The jobs of sweeps (*sweep points*), and the states of runs.

A sweep is a list of the names of its jobs' runs; everything else is in the run directories. The
list consists of empty files in <runs.dir>/sweeps/<name>/, so that many processes can add to it. A
run can belong to several sweeps.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kgon.record.run_directory import STATES, WITHOUT_EFFECT, RunDirectory

VARIABLE = "KGON_SWEEP"
"""Environment variable with the name of the sweep, which the jobs of any launcher inherit."""


def name(command: str, overrides: Iterable[str]) -> str:
    """sweep-<hash>: a function of the overrides that change results, in any order."""
    words = sorted(word for word in overrides if not word.lstrip("+~").startswith(WITHOUT_EFFECT))
    digest = hashlib.sha256("\n".join([command, *words]).encode()).hexdigest()
    return f"sweep-{digest[:10]}"


@dataclass(frozen=True)
class Sweep:
    """A sweep and its known points."""

    runs_dir: Path
    name: str

    @classmethod
    def current(cls, runs_dir: Path) -> "Sweep | None":
        """The sweep that this process belongs to, or None."""
        return cls(runs_dir, os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None

    @property
    def folder(self) -> Path:
        return self.runs_dir / "sweeps" / self.name

    def add(self, point: str) -> None:
        """Add the run with this name to the sweep's points."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / point).touch()

    def points(self) -> list[Path]:
        """The directories of the sweep's points, by name."""
        return sorted(self.runs_dir / file.name for file in self.folder.glob("*"))


def known(runs_dir: Path) -> list[Sweep]:
    """The sweeps that have points in `runs_dir`, by name."""
    return [Sweep(runs_dir, folder.name) for folder in sorted(runs_dir.glob("sweeps/*"))]


@dataclass(frozen=True)
class Standing:
    """The state of a run, one of `run_directory.STATES`, and what is known of it.

    `progress` is from 0 to 1; `seconds` of all attempts together; `loss` the mean of the members'
    last losses; `phases` the number of members by phase.
    """

    run: str
    state: str
    command: str | None
    overrides: list[str]
    progress: float | None
    seconds: float | None
    loss: float | None
    phases: dict[str, int]
    error: str | None


def standing(directory: Path) -> Standing:
    """The state of the run in a directory."""
    status = RunDirectory(directory).status()
    metrics = status.get("metrics") or {}
    prefix = "final/phase/" if any(k.startswith("final/phase/") for k in metrics) else "phase/"
    phases = {
        k.removeprefix(prefix): int(v) for k, v in metrics.items() if k.startswith(prefix) and v
    }
    return Standing(
        run=directory.name,
        state=status["state"],
        command=status.get("command"),
        overrides=status.get("overrides") or [],
        progress=1.0 if status["state"] == "finished" else status.get("progress"),
        seconds=status.get("seconds"),
        loss=metrics.get("final/loss", metrics.get("loss/mean")),
        phases=phases,
        error=status.get("error"),
    )


def tally(runs: Sequence[Standing]) -> str:
    """The number of runs in each state: "3 finished, 1 failed"."""
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])


class Swept:
    """What was swept, by the overrides of several runs.

    Attributes:
        shared: the overrides that all runs have; none of a single run.
        names: the parameters in the others.
    """

    def __init__(self, overrides: Sequence[Sequence[str]]):
        several = overrides if len(overrides) > 1 else [[]]
        everywhere = set[str].intersection(*map(set, several))
        self.shared = [word for word in several[0] if word in everywhere]
        self.names = list(dict.fromkeys(name for words in overrides for name in self.texts(words)))

    def own(self, overrides: Sequence[str]) -> list[str]:
        """The overrides of a run that not all have."""
        return [word for word in overrides if word not in self.shared]

    def texts(self, overrides: Sequence[str]) -> dict[str, str]:
        """The values of a run by parameter, as they were written."""
        pairs = (word.partition("=") for word in self.own(overrides))
        return {name: text for name, _, text in pairs}

    def values(self, overrides: Sequence[str]) -> dict[str, float | str]:
        """The values of a run by parameter, as numbers if possible."""
        return {name: _as_number(text) for name, text in self.texts(overrides).items()}

    def key(self, overrides: Sequence[str]) -> list[tuple[bool, float, str]]:
        """A key that sorts runs by the first parameter, then the second; numbers before words."""
        values = self.values(overrides)
        found = [values.get(name, "") for name in self.names]
        return [(True, 0.0, v) if isinstance(v, str) else (False, v, "") for v in found]


def _as_number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
