"""Pictures of the members' weights during training."""

from collections.abc import Callable, Iterable
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from kgon.callbacks.recorder import Recorder
from kgon.theory.phases import classify
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class WeightPictures(Recorder):
    """Draws the first `n_members` at the given steps, by `draw(W, b, labels)`, as step_00001000.png
    in `folder`, and sends the pictures to the loggers."""

    table = "pictures"

    def __init__(
        self,
        steps: Iterable[int],
        draw: Callable[..., Figure],
        n_members: int,
        folder: str,
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
        figure.savefig(self._path(module.global_step), dpi=150)
        module.history.add(self.table, module.global_step)
        for logger in module.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("media/weights", figure, module.global_step)

    def pictures(self, step: int) -> dict[str, Path]:
        return {"media/weights": self._path(step)}

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.png"
