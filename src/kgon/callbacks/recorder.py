"""The base class of callbacks that record at given steps, and the rows that loggers get."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from torch import Tensor

from kgon.callbacks.progress import Progress
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Recorder(L.Callback):
    """Calls `record` at the given steps, which may include step 0 (the start).

    A subclass adds a record to its table of the history in `record`, and computes numbers for
    loggers in `metrics`. Metrics depend on the history alone, so a resumed run sends its loggers
    the same rows again.
    """

    table: ClassVar[str]
    """Name of the table in the history."""
    doing: ClassVar[str] = ""
    """What a progress bar shows during `record`; empty if that takes no time."""

    def __init__(self, steps: Iterable[int]):
        steps = list(steps) if isinstance(steps, Iterable) else [steps]
        if any(not isinstance(step, Integral) or step < 0 for step in steps):
            raise ValueError(f"steps must be whole numbers >= 0, got {steps}")
        self.steps = frozenset(steps)

    def check(self, data: EnsembleData) -> None:
        """ValueError if nothing can be recorded with this data."""

    def record(self, module: TMS, data: EnsembleData) -> None:
        """Add a record of the ensemble to `module.history`."""
        raise NotImplementedError

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """Metrics of some records of the table by name, each (n_records,); NaN for no value."""
        return {}

    def pictures(self, step: int) -> dict[str, Path]:
        """The picture files of a step, by name."""
        return {}

    def finish(self, module: TMS, data: EnsembleData) -> None:
        """Add to the history what needs the whole run; called after the last step."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # The checkpoint of a resumed run already has the record of its step.
        if trainer.global_step == 0:
            self._record_if_due(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._record_if_due(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Not on_train_end, which is not called if a run is resumed at its last step.
        if trainer.global_step >= trainer.max_steps:
            self.finish(*_ensemble(trainer, module))

    def _record_if_due(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            bars = [each for each in trainer.callbacks if isinstance(each, Progress)]  # type: ignore[attr-defined]
            with ExitStack() as shown:
                for bar in bars if self.doing else ():
                    shown.enter_context(bar.doing(self.doing, trainer.global_step))
                self.record(*_ensemble(trainer, module))


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
    """The metrics and pictures in a history: a row for each step that has any, in order."""
    rows: dict[int, Row] = {}
    for recorder in recorders:
        if recorder.table not in module.history:
            continue
        steps = module.history.steps(recorder.table)[records].tolist()
        for step in steps:
            if pictures := recorder.pictures(step):
                rows.setdefault(step, Row(step)).pictures |= pictures
        for name, values in recorder.metrics(module, records).items():
            for step, value in zip(steps, values.double().tolist(), strict=True):
                if not math.isnan(value):
                    rows.setdefault(step, Row(step)).metrics[name] = value
    return [rows[step] for step in sorted(rows)]
