"""The plateaus of every member's loss, found during training."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor

from kgon.callbacks.losses import Losses
from kgon.callbacks.recorder import Recorder
from kgon.theory.critical import CriticalPoint
from kgon.theory.plateaus import Plateau, count_plateaus, find_plateaus_of_each, match_plateaus
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
        """Add the number of plateaus so far."""
        count = count_plateaus(*_curves(module))
        module.history.add(self.table, module.global_step, count=count)

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """The mean number of plateaus over members."""
        count = module.history.column(self.table, "count", records)
        return {"plateaus/mean_per_member": count.double().mean(-1)}

    def finish(self, module: TMS, data: EnsembleData) -> None:
        """Find the plateaus of the whole run and match them with critical levels."""
        critical_points = data.critical_points(module.W.shape[-2], module.importance)
        module.history.lists["plateaus"] = [
            _rows(member, plateaus, critical_points)
            for member, plateaus in zip(
                module.members, find_plateaus_of_each(*_curves(module)), strict=True
            )
        ]


def _rows(
    member: int, plateaus: Sequence[Plateau], critical_points: list[CriticalPoint]
) -> list[dict[str, Any]]:
    matches = (
        match_plateaus(plateaus, critical_points) if critical_points else [None] * len(plateaus)
    )
    return [
        {
            "member": member,
            "start": plateau.start,
            "end": plateau.end,
            "loss": plateau.loss,
            "nearest": match and match.label,
            "distance": match and match.distance,
        }
        for plateau, match in zip(plateaus, matches, strict=True)
    ]


def _curves(module: TMS) -> tuple[Tensor, Tensor]:
    return module.history.steps("loss"), module.history.column("loss", "loss").T
