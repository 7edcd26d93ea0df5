"""The plateaus of every member's loss, found as training goes."""

from typing import Any

import lightning as L
from torch import Tensor

from kgon.callbacks.losses import Losses
from kgon.callbacks.recorder import Recorder
from kgon.theory.critical import CriticalPoint
from kgon.theory.plateaus import Plateau, count_plateaus, find_plateaus, match_plateaus
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Plateaus(Recorder):
    """Notes how many plateaus the losses so far have, and in the end leaves the list `plateaus`:
    member, start, end, loss, nearest critical point, distance in loss.
    The last two are None where no catalogue of critical points applies. Needs the callback Losses.
    """

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not any(isinstance(callback, Losses) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("callbacks=plateaus looks at recorded losses: add losses to callbacks")

    def record(self, module: TMS, data: EnsembleData) -> None:
        counts = count_plateaus(*_curves(module)).double()
        module.note(lambda places: {"plateaus/mean_per_member": counts[places].mean(-1)})

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Not on_train_end, which is not called where a run goes on from its last step.
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, TMS) and isinstance(data, EnsembleData)
        found = find_plateaus(*_curves(module))
        module.history.lists["plateaus"] = [
            rows
            for where, part in module.parts
            for rows in _rows(
                part, found[where], data.critical_points(part.W.shape[-2], part.importance)
            )
        ]


def _rows(
    module: TMS, found: list[list[Plateau]], points: list[CriticalPoint]
) -> list[list[dict[str, Any]]]:
    """The plateaus of each member of a job, matched with critical levels."""
    return [
        [
            {
                "member": member,
                "start": plateau.start,
                "end": plateau.end,
                "loss": plateau.loss,
                "nearest": None if match is None else match.label,
                "distance": None if match is None else match.distance,
            }
            for plateau, match in zip(
                plateaus,
                match_plateaus(plateaus, points) if points else [None] * len(plateaus),
                strict=True,
            )
        ]
        for member, plateaus in zip(module.members, found, strict=True)
    ]


def _curves(module: TMS) -> tuple[Tensor, Tensor]:
    return module.history.steps("loss"), module.history.column("loss", "loss").T
