"""Recorders of losses, parameters, phases, plateaus and pictures."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.theory.critical import CriticalPoint
from kgon.theory.phases import classify, phase_codes, phase_labels
from kgon.theory.plateaus import Plateau, find_plateaus_of_each, match_plateaus
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Losses(Recorder):
    """Records the losses of every member in the table `loss`.

    `loss` is the expected loss (`kgon.data.Distribution.expected_loss`), `train_loss` that on the
    member's own data set, NaN if inputs are fresh at every step.
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


class Snapshots(Recorder):
    """Records W and b of every member in the table `weights`."""

    table = "weights"

    def record(self, module: TMS, data: EnsembleData) -> None:
        module.history.add(self.table, module.global_step, W=module.W, b=module.b)


class Phases(Recorder):
    """Records in the table `phases` each member's phase, by geometry, as an index into
    `phase_labels`."""

    table = "phases"

    def record(self, module: TMS, data: EnsembleData) -> None:
        module.history.add(self.table, module.global_step, code=phase_codes(*module.on_cpu()))

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """phase/<label>: the number of members in each phase that has occurred so far.

        It is 0 for a phase that has become empty, so that curves on a dashboard go down to 0.
        """
        code = module.history.column(self.table, "code")
        labels = phase_labels(module.b.shape[-1], module.W.shape[-2])
        present = torch.zeros(len(code), len(labels), dtype=torch.float64)
        count = present.scatter_add(1, code, torch.ones_like(code, dtype=torch.float64))
        seen = count.cummax(0).values > 0
        counted = count.where(seen, torch.nan)[records]
        met = seen[records].any(0).nonzero().flatten().tolist()
        return {f"phase/{labels[c]}": counted[:, c] for c in sorted(met, key=labels.__getitem__)}


class Plateaus(Recorder):
    """Records in the table `plateau_count` the number of plateaus of each member's loss so far.

    At the end it adds the list `plateaus`: member, start, end, loss, nearest critical point and
    distance in loss. The last two are None if no critical points are known. Needs the callback
    Losses.

    Args:
        steps: when to count.
        tolerance: half the largest range of the loss within a plateau, relative to E |x|^2, the
            loss of a model whose output is 0. For single-feature data E |x|^2 = 1/3, and 0.003
            means 0.001, the default of `find_plateaus`. For sparse inputs E |x|^2 is small, like
            all losses.
    """

    table = "plateau_count"

    def __init__(self, steps: Iterable[int], tolerance: float):
        super().__init__(steps)
        if not tolerance > 0:
            raise ValueError(f"callbacks.plateaus.tolerance must be > 0, got {tolerance}")
        self.tolerance = tolerance

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not any(isinstance(callback, Losses) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("the callback plateaus needs the callback losses: add it to callbacks")

    def record(self, module: TMS, data: EnsembleData) -> None:
        counts = torch.tensor([len(plateaus) for plateaus in self._found(module, data)])
        module.history.add(self.table, module.global_step, count=counts)

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        count = module.history.column(self.table, "count", records)
        return {"plateaus/mean_per_member": count.double().mean(-1)}

    def finish(self, module: TMS, data: EnsembleData) -> None:
        points = data.critical_points(module.W.shape[-2], module.importance)
        module.history.lists["plateaus"] = [
            [_row(member, plateau, points) for plateau in plateaus]
            for member, plateaus in zip(module.members, self._found(module, data), strict=True)
        ]

    def _found(self, module: TMS, data: EnsembleData) -> list[list[Plateau]]:
        loss = module.history.column("loss", "loss").T
        nothing = (torch.zeros_like(parameter) for parameter in module.on_cpu())
        scale = data.expected_loss(module.importance)(*nothing)
        return find_plateaus_of_each(
            module.history.steps("loss"), loss, tolerance=self.tolerance * scale
        )


def _row(member: int, plateau: Plateau, points: list[CriticalPoint]) -> dict[str, Any]:
    match = match_plateaus([plateau], points)[0] if points else None
    nearest = {"nearest": match and match.label, "distance": match and match.distance}
    return {"member": member} | asdict(plateau) | nearest


class WeightPictures(Recorder):
    """Draws the first `n_members` at the given steps with `draw(W, b, labels)`, saves the figures
    in `folder` (step_00001000.png, ...), and sends them to the loggers."""

    table = "pictures"
    doing = "pictures of weights"

    def __init__(
        self, steps: Iterable[int], draw: Callable[..., Figure], n_members: int, folder: str
    ):
        super().__init__(steps)
        if n_members < 1:
            raise ValueError(f"n_members must be at least 1, got {n_members}")
        self.draw = draw
        self.n_members = n_members
        self.folder = Path(folder)

    def record(self, module: TMS, data: EnsembleData) -> None:
        W, b = (p[: self.n_members] for p in module.on_cpu())
        figure = self.draw(W.numpy(), b.numpy(), classify(W, b))
        self.folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"text.usetex": False}):
            figure.savefig(self._path(module.global_step), dpi=150)
            for logger in module.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure("media/weights", figure, module.global_step)
        module.history.add(self.table, module.global_step)

    def pictures(self, step: int) -> dict[str, Path]:
        return {"media/weights": self._path(step)}

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.png"
