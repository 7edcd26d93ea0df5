"""The loss of every member over training time."""

import torch
from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Losses(Recorder):
    """Adds to the table `loss`: `loss`, the expected loss under the data's distribution (for
    single-feature data the population loss in closed form), and `train_loss`, the mean loss over
    the member's own data set (NaN where inputs are fresh at every step)."""

    @torch.no_grad()
    def record(self, module: TMS, data: EnsembleData) -> None:
        W, b = module.on_cpu()
        loss = data.expected_loss(module.importance)(W, b)
        train = data.train_loss(module.importance)
        train_loss = torch.full_like(loss, torch.nan) if train is None else train(W, b)
        module.history.add("loss", module.global_step, loss=loss, train_loss=train_loss)
        diverged = module.diverged_at.cpu() >= 0
        alive = torch.where(loss.isfinite(), loss, torch.nan)
        train_alive = torch.where(loss.isfinite(), train_loss, torch.nan)

        def metrics(places: Tensor) -> dict[str, Tensor]:
            own = alive[places]
            least = own.nan_to_num(torch.inf).amin(-1)
            return {
                "loss/mean": own.nanmean(-1),
                "loss/median": own.nanmedian(-1).values,
                "loss/min": least.where(least.isfinite(), torch.nan),
                "train_loss/mean": train_alive[places].nanmean(-1),
                "members/diverged": diverged[places].sum(-1),
            }

        module.note(metrics)
