"""The parameters of every member over training time."""

from kgon.callbacks.recorder import Recorder
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Snapshots(Recorder):
    """Records W and b in the table `weights`."""

    table = "weights"

    def record(self, module: TMS, data: EnsembleData) -> None:
        module.history.add(self.table, module.global_step, W=module.W, b=module.b)
