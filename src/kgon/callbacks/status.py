"""Reporting the progress of a running job."""

import time
from collections.abc import Callable
from typing import Any

import lightning as L

from kgon.training.model import TMS


class Status(L.Callback):
    """Calls `report(progress from 0 to 1, model)` after blocks of steps, and when an error ends the
    training."""

    def __init__(
        self,
        report: Callable[[float, TMS], None],
        max_steps: int,
        every_seconds: float = 0.0,
    ):
        self.report = report
        self.max_steps = max_steps
        self.every_seconds = every_seconds
        self._reported = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if time.monotonic() - self._reported >= self.every_seconds:
            self._report(trainer, module)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        self._report(trainer, module)

    def _report(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TMS)
        self._reported = time.monotonic()
        self.report(trainer.global_step / self.max_steps, module)
