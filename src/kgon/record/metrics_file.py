"""metrics.jsonl in a run's folder: the rows that a job logs, written while it runs.

Each line is a JSON object: `step`, a number for each metric, and in `media` the path of each
picture, relative to the run's folder. Lines with the same step make up one row.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from kgon.files import write_text

NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """What was logged at a step: numbers, and the paths of pictures, by name."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    media: dict[str, str] = field(default_factory=dict)


class MetricsFile:
    """The rows of one run.

    Steps do not decrease. A job that resumes logs the rows of its checkpoint again, so its first
    row replaces all rows of earlier attempts from that step on.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._last_step: int | None = None

    def append(
        self,
        step: int,
        metrics: Mapping[str, float] = MappingProxyType({}),
        media: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add to the row of the last step, or start a row for a later one; ignore earlier steps."""
        if self._last_step is None:
            self._cut(step)
        elif step < self._last_step:
            return
        self._last_step = step
        line = {"step": step, **metrics} | ({"media": dict(media)} if media else {})
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _cut(self, step: int) -> None:
        """Remove the rows from `step` on, and a last line that is incomplete because of a kill."""
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] < step]
            write_text(self.path, "".join(kept))

    def rows(self) -> list[Row]:
        """The rows in order, without a last line that is incomplete because of a kill.

        ValueError if another line is damaged.
        """
        rows: dict[int, Row] = {}
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                values = json.loads(line)
                row = rows.setdefault(values["step"], Row(values["step"]))
                row.media.update(values.pop("media", {}))
                row.metrics.update({k: v for k, v in values.items() if k != "step"})
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{self.path}, line {number} is damaged: {error!r}") from error
        return list(rows.values())
