"""The phase of every member over training time."""

import torch
from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.theory.phases import phase_codes, phase_labels
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Phases(Recorder):
    """Records in the table `phases` each member's phase, by geometry, as an index into
    `phase_labels`."""

    table = "phases"

    def record(self, module: TMS, data: EnsembleData) -> None:
        module.history.add(self.table, module.global_step, code=phase_codes(*module.on_cpu()))

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """phase/<label>: the number of members in each phase, once any member has been in it.

        A phase that has become empty counts 0, so that its curve on a dashboard goes down to 0.
        """
        code = module.history.column(self.table, "code")
        labels = phase_labels(module.b.shape[-1])
        present = torch.zeros(len(code), len(labels), dtype=torch.float64)
        count = present.scatter_add(1, code, torch.ones_like(code, dtype=torch.float64))
        seen = count.cummax(0).values > 0
        counted = count.where(seen, torch.nan)[records]
        met = seen[records].any(0).nonzero().flatten().tolist()
        return {f"phase/{labels[c]}": counted[:, c] for c in sorted(met, key=labels.__getitem__)}
