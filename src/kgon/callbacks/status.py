"""A running job's word on how far it is."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L

from kgon.model import TMS


class Status(L.Callback):
    """Calls `report(progress, metrics)` after every block of steps: progress from 0 to 1, and the
    last value of every metric."""

    def __init__(self, report: Callable[[float, Mapping[str, float]], None], max_steps: int):
        self.report = report
        self.max_steps = max_steps

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, TMS)
        self.report(trainer.global_step / self.max_steps, module.noted_of(0))
