"""metrics.jsonl in a run's folder: the rows that a job logs, written while it runs.

Each line is a JSON object: `step`, a number for each metric, and in `media` the path of each
picture, relative to the run's folder. Lines with the same step make up one row.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from kgon.callbacks.loggers import send
from kgon.callbacks.recorder import Row
from kgon.files import write_text

NAME = "metrics.jsonl"


class MetricsFile(Logger):
    """The rows of one run, as a logger that adds to them.

    Steps do not decrease; rows of earlier ones are ignored. Without `resume`, the first row of a
    job replaces all rows of earlier attempts from that step on.
    """

    name = "record"
    version = ""

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / NAME
        self._last_step: int | None = None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because config.yaml has the settings."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of a step."""
        step = (self._last_step or 0) if step is None else step
        if self._last_step is None and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] < step]
            write_text(self.path, "".join(kept))
        if self._last_step is None or step >= self._last_step:
            self._last_step = step
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")

    def resume(self, rows: Sequence[Row], step: int) -> list[Row]:
        """Go on from the checkpoint of a step, whose history has `rows`; return all rows up to it.

        They hold what earlier attempts logged beside these rows.
        """
        kept = {row.step: row for row in self.rows() if row.step <= step}
        for row in rows:
            same = kept.setdefault(row.step, Row(row.step))
            same.metrics |= row.metrics
            same.pictures |= row.pictures
        self.path.unlink(missing_ok=True)
        for _, row in sorted(kept.items()):
            send(row, [self])
        return [kept[step] for step in sorted(kept)]

    def log_image(self, key: str, images: Sequence[str], step: int) -> None:
        """Add a picture file to the row of a step."""
        media: Any = {"media": {key: os.path.relpath(images[0], self.path.parent)}}
        self.log_metrics(media, step)

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
                media = values.pop("media", {}).items()
                row.pictures.update({k: self.path.parent / v for k, v in media})
                row.metrics.update({k: v for k, v in values.items() if k != "step"})
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{self.path}, line {number} is damaged: {error!r}") from error
        return list(rows.values())
