"""The loss of every member over training time."""

import torch

from kgon.callbacks.recorder import Recorder
from kgon.datamodule import EnsembleData
from kgon.model import TMS


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
        diverged = module.diverged_at >= 0

        def metrics(where: slice) -> dict[str, float]:
            finite = loss[where].isfinite()
            alive = loss[where][finite]
            if not len(alive):
                return {"members/diverged": float(diverged[where].sum())}
            return {
                "loss/mean": float(alive.mean()),
                "loss/median": float(alive.median()),
                "loss/min": float(alive.min()),
                "train_loss/mean": float(train_loss[where][finite].mean()),
                "members/diverged": float(diverged[where].sum()),
            }

        module.note(metrics)
