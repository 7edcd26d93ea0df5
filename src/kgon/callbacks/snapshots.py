"""The parameters of every member over training time."""

from kgon.callbacks.recorder import Recorder
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Snapshots(Recorder):
    """Adds W and b to the table `weights`."""

    def record(self, module: TMS, data: EnsembleData) -> None:
        module.history.add("weights", module.global_step, W=module.W, b=module.b)
