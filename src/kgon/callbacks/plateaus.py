"""The plateaus of every member's loss, found during training."""

from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from kgon.callbacks.losses import Losses
from kgon.callbacks.recorder import Recorder
from kgon.theory.critical import CriticalPoint
from kgon.theory.plateaus import Plateau, find_plateaus_of_each, match_plateaus
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Plateaus(Recorder):
    """Records in the table `plateau_count` the number of plateaus of each member's loss so far.

    At the end it adds the list `plateaus`: member, start, end, loss, nearest critical point and
    distance in loss. The last two are None if no critical points are known. Needs the callback
    Losses.
    """

    table = "plateau_count"

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not any(isinstance(callback, Losses) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("the callback plateaus needs losses: add losses to callbacks")

    def record(self, module: TMS, data: EnsembleData) -> None:
        counts = torch.tensor([len(plateaus) for plateaus in _found(module)])
        module.history.add(self.table, module.global_step, count=counts)

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        count = module.history.column(self.table, "count", records)
        return {"plateaus/mean_per_member": count.double().mean(-1)}

    def finish(self, module: TMS, data: EnsembleData) -> None:
        points = data.critical_points(module.W.shape[-2], module.importance)
        module.history.lists["plateaus"] = [
            [_row(member, plateau, points) for plateau in plateaus]
            for member, plateaus in zip(module.members, _found(module), strict=True)
        ]


def _row(member: int, plateau: Plateau, points: list[CriticalPoint]) -> dict[str, Any]:
    match = match_plateaus([plateau], points)[0] if points else None
    nearest = {"nearest": match and match.label, "distance": match and match.distance}
    return {"member": member} | asdict(plateau) | nearest


def _found(module: TMS) -> list[list[Plateau]]:
    loss = module.history.column("loss", "loss").T
    return find_plateaus_of_each(module.history.steps("loss"), loss)
