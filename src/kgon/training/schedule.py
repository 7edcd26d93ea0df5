"""The steps at which a run is recorded."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """The steps at which losses, snapshots, LLC estimates and pictures are recorded.

    Attributes:
        max_steps: length of the training run.
        n_losses: number of evenly spaced records of the loss, which is also recorded at snapshots.
        n_snapshots: number of log-spaced snapshots of the parameters; early ones that round to the
            same step are merged.
        n_llc: number of evenly spaced LLC estimates, with snapshots at the same steps.
    """

    max_steps: int
    n_losses: int
    n_snapshots: int
    n_llc: int

    def __post_init__(self) -> None:
        for name in ("max_steps", "n_losses", "n_snapshots", "n_llc"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @cached_property
    def snapshots(self) -> list[int]:
        spaced = np.geomspace(1, self.max_steps, self.n_snapshots).round().astype(int)
        return sorted({0, *spaced.tolist(), *self.llc})

    @cached_property
    def losses(self) -> list[int]:
        return sorted({*self._evenly_spaced(self.n_losses), *self.snapshots})

    @cached_property
    def llc(self) -> list[int]:
        # Not at step 0, where the loss is not on a plateau.
        return self._evenly_spaced(self.n_llc)[1:]

    def _evenly_spaced(self, n: int) -> list[int]:
        return sorted(set(np.linspace(0, self.max_steps, n + 1).round().astype(int).tolist()))

    def bytes_recorded(self, n_members: int, n_hidden: int, n_features: int) -> int:
        """The size of the losses and parameters in a run's history, as float64."""
        a_snapshot = (n_hidden + 1) * n_features
        return 8 * n_members * (2 * len(self.losses) + a_snapshot * len(self.snapshots))

    @cached_property
    def pictures(self) -> list[int]:
        """Eight of the snapshots, the first and the last among them."""
        chosen = np.linspace(0, len(self.snapshots) - 1, 8).round().astype(int)
        return sorted({self.snapshots[i] for i in chosen})


def steps(kind: str, **settings: int) -> list[int]:
    """The steps of one kind (losses, snapshots, llc or pictures) of a `Schedule`."""
    found: list[int] = getattr(Schedule(**settings), kind)
    return found
