"""The base of callbacks that look at the ensemble at given steps."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import lightning as L

from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Recorder(L.Callback):
    """Calls `record` at the given steps, step 0 (the start) among them.

    A run that goes on from a checkpoint has recorded the checkpoint's step before it was saved.
    """

    def __init__(self, steps: Iterable[int]):
        steps = list(steps) if isinstance(steps, Iterable) else [steps]
        if any(not isinstance(step, Integral) or step < 0 for step in steps):
            raise ValueError(f"steps must be whole numbers >= 0, got {steps}")
        self.steps = frozenset(steps)

    def record(self, module: TMS, data: EnsembleData) -> None:
        """Look at the ensemble; add to `module.history`, note metrics."""
        raise NotImplementedError

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._record_if_due(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._record_if_due(trainer, module)

    def _record_if_due(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(module, TMS) and isinstance(data, EnsembleData)
            self.record(module, data)
