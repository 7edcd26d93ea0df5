"""A running job's word on how far it is."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L

from kgon.training.model import TMS


class Status(L.Callback):
    """Calls `report(progress, metrics)` of each job of the ensemble after blocks of steps, once in
    `every_seconds`, and when something ends the training early: progress from 0 to 1, and the last
    value of every metric of the job."""

    def __init__(
        self,
        reports: Sequence[Callable[[float, Mapping[str, float]], None]],
        max_steps: int,
        every_seconds: float = 0.0,
    ):
        self.reports = reports
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
        for job, report in enumerate(self.reports):
            report(trainer.global_step / self.max_steps, module.noted_of(job))
