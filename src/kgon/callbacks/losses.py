"""The loss of every member over training time."""

import torch
from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Losses(Recorder):
    """Records the losses of every member in the table `loss`.

    `loss` is the expected loss under the distribution of the data (for single-feature data the
    population loss in closed form). `train_loss` is the loss on the member's own data set, NaN if
    inputs are fresh at every step.
    """

    table = "loss"

    @torch.no_grad()
    def record(self, module: TMS, data: EnsembleData) -> None:
        W, b = module.on_cpu()
        loss = data.expected_loss(module.importance)(W, b)
        train = data.train_loss(module.importance)
        train_loss = torch.full_like(loss, torch.nan) if train is None else train(W, b)
        module.history.add(self.table, module.global_step, loss=loss, train_loss=train_loss)

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        loss = module.history.column(self.table, "loss", records)
        finite = loss.isfinite()
        alive = loss.where(finite, torch.nan)
        least = loss.where(finite, torch.inf).amin(-1)
        train_loss = module.history.column(self.table, "train_loss", records)
        return {
            "loss/mean": alive.nanmean(-1),
            "loss/median": alive.nanmedian(-1).values,
            "loss/min": least.where(least.isfinite(), torch.nan),
            "train_loss/mean": train_loss.where(finite, torch.nan).nanmean(-1),
            "members/diverged": (~finite).sum(-1),
        }
