"""Callbacks as a user writes them."""

from pathlib import Path

import lightning as L
import wandb
from lightning.pytorch.callbacks import LearningRateMonitor


class LogsByItself(L.Callback):
    """Logs 10 times the step after every block, in one way; ends training once, at `stop_at`."""

    def __init__(self, way, stop_at=None):
        self.way, self.stop_at = way, stop_at

    def on_train_batch_end(self, trainer, module, *_):
        value = 10.0 * trainer.global_step
        if self.way == "self.log":
            self.log("mine", value)
        elif self.way == "module.log":
            module.log("mine", value, prog_bar=True)
        elif self.way == "wandb.log":
            wandb.log({"mine": value})
            wandb.log({"words": "a"})
        elif self.way == "wandb.log, often":
            for _ in range(100):
                wandb.log({"mine": value}, step=7)
        elif self.way == "experiment.log":
            trainer.logger.experiment.log({"mine": value})
        elif self.way == "log_metrics":
            trainer.logger.log_metrics({"mine": value}, step=trainer.global_step)
        if trainer.global_step == self.stop_at and not Path("stopped").exists():
            Path("stopped").touch()
            trainer.should_stop = True


class Rates(LearningRateMonitor):
    """Lightning's own monitor."""
