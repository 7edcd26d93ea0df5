"""The plateaus of every member's loss, found as training goes."""

import lightning as L
from torch import Tensor

from kgon.callbacks.losses import Losses
from kgon.callbacks.recorder import Recorder
from kgon.datamodule import EnsembleData
from kgon.model import TMS
from kgon.plateaus import find_plateaus, match_plateaus


class Plateaus(Recorder):
    """Notes how many plateaus the losses so far have, and in the end leaves the rows `plateaus`:
    member, start, end, loss, nearest critical point, distance in loss.
    The last two are None where no catalogue of critical points applies. Needs the callback Losses.
    """

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not any(isinstance(callback, Losses) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("callbacks=plateaus looks at recorded losses: add losses to callbacks")

    def record(self, module: TMS, data: EnsembleData) -> None:
        found = find_plateaus(*_curves(module))
        module.note({"plateaus/mean_per_member": sum(map(len, found)) / len(found)})

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, TMS) and isinstance(data, EnsembleData)
        points = data.critical_points(module.W.shape[-2], module.importance)
        rows = []
        for member, plateaus in zip(module.members, find_plateaus(*_curves(module)), strict=True):
            matches = match_plateaus(plateaus, points) if points else [None] * len(plateaus)
            for plateau, match in zip(plateaus, matches, strict=True):
                rows.append(
                    {
                        "member": member,
                        "start": plateau.start,
                        "end": plateau.end,
                        "loss": plateau.loss,
                        "nearest": None if match is None else match.label,
                        "distance": None if match is None else match.distance,
                    }
                )
        module.history.rows["plateaus"] = rows


def _curves(module: TMS) -> tuple[Tensor, Tensor]:
    return module.history.steps("loss"), module.history.column("loss", "loss").T
