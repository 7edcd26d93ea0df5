"""The phase of every member over training time."""

from collections import Counter

from kgon.callbacks.recorder import Recorder
from kgon.datamodule import EnsembleData
from kgon.model import TMS
from kgon.phases import classify


class Phases(Recorder):
    """Notes how many members are in each phase, by geometry, as phase/<label>.

    A phase that was seen once is noted ever after, at 0 if need be: a dashboard's curve must come
    down again when its members leave.
    """

    def __init__(self, steps: list[int]):
        super().__init__(steps)
        self._seen: set[str] = set()

    def record(self, module: TMS, data: EnsembleData) -> None:
        counts = Counter(classify(*module.on_cpu()))
        self._seen |= set(counts)
        module.note({f"phase/{label}": float(counts[label]) for label in sorted(self._seen)})

    def state_dict(self) -> dict[str, list[str]]:
        return {"seen": sorted(self._seen)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        self._seen = set(state_dict["seen"])
