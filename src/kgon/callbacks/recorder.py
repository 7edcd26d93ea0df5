"""The base of callbacks that look at the ensemble at given steps."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from torch import Tensor

from kgon.training.datamodule import EnsembleData
from kgon.training.history import LAST
from kgon.training.model import TMS


class Recorder(L.Callback):
    """Calls `record` at the given steps, of which step 0 (the start) may be one.

    A subclass adds a record to its table of the history in `record`, and computes the numbers that
    loggers get in `metrics`. Metrics are functions of the history alone, so a resumed run gives its
    loggers the same rows again.

    Args:
        steps: when to record.
    """

    table: ClassVar[str]
    """Name of the table in the history."""

    def __init__(self, steps: Iterable[int]):
        steps = list(steps) if isinstance(steps, Iterable) else [steps]
        if any(not isinstance(step, Integral) or step < 0 for step in steps):
            raise ValueError(f"steps must be whole numbers >= 0, got {steps}")
        self.steps = frozenset(steps)

    def record(self, module: TMS, data: EnsembleData) -> None:
        """Look at the ensemble and add a record to `module.history`."""
        raise NotImplementedError

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """Metrics by name, each (n_records,), of some records of the table; NaN: none."""
        return {}

    def pictures(self, step: int) -> dict[str, Path]:
        """The pictures that belong to a step, files by name."""
        return {}

    def finish(self, module: TMS, data: EnsembleData) -> None:
        """Add to the history what only the whole run shows."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # A resumed run has recorded its checkpoint's step before it was saved.
        if trainer.global_step == 0:
            self._record_if_due(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._record_if_due(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Not on_train_end, which is not called where a run is resumed at its last step.
        self.finish(*_ensemble(trainer, module))

    def _record_if_due(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            model, data = _ensemble(trainer, module)
            self.record(model, data)
            values = self.metrics(model, LAST)
            known = {name: float(value) for name, value in values.items() if not value.isnan()}
            model.note(known, self.pictures(trainer.global_step))


def _ensemble(trainer: L.Trainer, module: L.LightningModule) -> tuple[TMS, EnsembleData]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, TMS) and isinstance(data, EnsembleData)
    return module, data


@dataclass
class Row:
    """What loggers get of one step."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)


def logged_rows(
    recorders: Sequence[Recorder], module: TMS, records: slice = slice(None)
) -> list[Row]:
    """What recorders have to say of a module's record: a row for each step, in order."""
    rows: dict[int, Row] = {}
    for recorder in recorders:
        if recorder.table not in module.history:
            continue
        steps = module.history.steps(recorder.table)[records].tolist()
        for step in steps:
            row = rows.setdefault(step, Row(step))
            row.pictures |= recorder.pictures(step)
        for name, values in recorder.metrics(module, records).items():
            for step, value in zip(steps, values.double().tolist(), strict=True):
                if not math.isnan(value):
                    rows[step].metrics[name] = value
    return [rows[step] for step in sorted(rows)]
