"""Sends the recorders' metrics and pictures to the run's loggers, one row per step."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from kgon.callbacks.recorder import Recorder, Row, logged_rows
from kgon.training.history import LAST
from kgon.training.model import TMS


class Loggers(L.Callback):
    """Sends the metrics and pictures of a step to the run's loggers, after all recorders.

    A resumed run first sends the rows of its history again, merged with values from the record that
    callbacks logged by `self.log`. TensorBoard is left out: it keeps the files of the interrupted
    run. `module.metrics` has the last value of every metric.
    """

    def __init__(self, recorders: Sequence[Recorder]):
        self.recorders = recorders

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TMS)
        loggers = [each for each in module.loggers if not isinstance(each, TensorBoardLogger)]
        rows = logged_rows(self.recorders, module)
        if module.resumed_at is not None:
            for record in (each for each in loggers if hasattr(each, "resume")):
                loggers.remove(record)
                rows = record.resume(rows, module.resumed_at)
        for row in rows:
            send(row, loggers)
            module.metrics |= row.metrics

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # A resumed run has already sent the row of its step.
        if trainer.global_step == 0:
            self.on_train_batch_end(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, TMS)
        due = [each for each in self.recorders if trainer.global_step in each.steps]
        for row in logged_rows(due, module, LAST):
            send(row, module.loggers)
            module.metrics |= row.metrics


def send(row: Row, loggers: Sequence[Any]) -> None:
    """Send a row to loggers; pictures only to those with `log_image`."""
    for logger in loggers:
        logger.log_metrics(row.metrics, step=row.step)
        if hasattr(logger, "log_image"):
            for name, path in row.pictures.items():
                logger.log_image(name, [str(path)], step=row.step)
