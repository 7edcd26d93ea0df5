"""The phase of every member over training time."""

import torch
from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.theory.phases import phase_codes, phase_labels
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class Phases(Recorder):
    """Adds to the table `phases` each member's phase, by geometry, as an index into
    `phase_labels`, and notes how many members are in each as phase/<label>.

    A phase that was seen once is noted ever after, at 0 if need be: a dashboard's curve must come
    down again when its members leave.
    """

    def record(self, module: TMS, data: EnsembleData) -> None:
        codes = phase_codes(*module.on_cpu())
        module.history.add("phases", module.global_step, code=codes)
        so_far = module.history.column("phases", "code")
        labels = phase_labels(module.b.shape[-1])

        def metrics(places: Tensor) -> dict[str, Tensor]:
            now = codes[places]
            zeros = torch.zeros(*now.shape[:-1], len(labels), dtype=torch.float64)
            seen = zeros.scatter(-1, so_far[:, places].movedim(0, -2).flatten(-2), 1.0) > 0
            count = zeros.scatter_add(-1, now, torch.ones_like(now, dtype=zeros.dtype))
            noted = count.where(seen, torch.nan)
            codes_seen = seen.reshape(-1, len(labels)).any(0).nonzero().squeeze(-1).tolist()
            return {
                f"phase/{label}": noted[..., code]
                for label, code in sorted((labels[c], c) for c in codes_seen)
            }

        module.note(metrics)
