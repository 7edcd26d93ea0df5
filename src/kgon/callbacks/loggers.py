"""Sending what the recorders note to the run's loggers: one row per step."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from kgon.callbacks.recorder import Recorder, Row, logged_rows
from kgon.training.model import TMS


class Loggers(L.Callback):
    """Sends the metrics and pictures of a step to the run's loggers, after all recorders.

    A resumed run first sends the rows of its history again, except to TensorBoard, which keeps the
    files of the interrupted run.

    Args:
        recorders: the recorders whose metrics and pictures are sent.
    """

    def __init__(self, recorders: Sequence[Recorder]):
        self.recorders = recorders

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TMS)
        loggers = [each for each in module.loggers if not isinstance(each, TensorBoardLogger)]
        for row in logged_rows(self.recorders, module):
            send(row, loggers)
            module.metrics |= row.metrics

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._send(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._send(trainer, module)

    def _send(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TMS)
        if module.unsent_metrics or module.unsent_pictures:
            row = Row(trainer.global_step, module.unsent_metrics, module.unsent_pictures)
            module.unsent_metrics, module.unsent_pictures = {}, {}
            send(row, module.loggers)


def send(row: Row, loggers: Sequence[Any]) -> None:
    """Send a row to loggers; pictures only to those that take them."""
    for logger in loggers:
        logger.log_metrics(row.metrics, step=row.step)
        if hasattr(logger, "log_image"):
            for name, path in row.pictures.items():
                logger.log_image(name, [str(path)], step=row.step)
