"""What the items read from a training run: stages, curves, final phases."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgon.record.run_directory import Run
from kgon.record.tables import Plateau, plain, stages
from kgon.theory.atlas import built
from kgon.theory.critical import CriticalPoint
from kgon.theory.intervals import mean_and_error

Rows = list[dict[str, Any]]
Array = NDArray[Any]


@dataclass(frozen=True)
class Ensemble:
    """A training run."""

    run: Run

    @cached_property
    def stages(self) -> dict[int, Rows]:
        """The stages of each member (`record.tables.stages`), by its number."""
        plateaus = defaultdict(list)
        for plateau in self.run.plateaus:
            plateaus[plateau["member"]].append(Plateau.of(plateau))
        return {
            m["member"]: [plain(stage) for stage in stages(plateaus[m["member"]], m["member"])]
            for m in self.run.members
        }

    @property
    def n_members(self) -> int:
        return len(self.run.members)

    @property
    def n_features(self) -> int:
        return int(self.run.config["model"]["n_features"])

    @property
    def points(self) -> Sequence[CriticalPoint]:
        """The phases of the atlas; for n_hidden = 2 and up to six features, the k-gons."""
        return built(self.n_features, int(self.run.config["model"]["n_hidden"])).phases

    def path(self, member: int) -> tuple[str, ...]:
        """The critical levels of a member's stages, in order."""
        return tuple(stage["nearest"] for stage in self.stages[member])

    def curve(self, table: str, column: str) -> tuple[Array, Array]:
        """The steps (S,) and a column (S, M) of the table loss, llc or snapshots."""
        rows = getattr(self.run, table)
        if rows is None:
            raise ValueError(f"{self.run.path} has no table {table}")
        step = np.unique(rows["step"].to_numpy())
        values = rows[column].to_numpy(zero_copy_only=False)
        return step, values.reshape(len(step), self.n_members)

    @cached_property
    def final_phases(self) -> list[str]:
        return [row["phase"] or "other" for row in self.run.members]

    def lasting(self, member: int) -> Rows:
        """A member's stages, with `end` moved to the end of the stage's last plateau."""
        plateaus = [p for p in self.run.plateaus if p["member"] == member]
        lasting = []
        for stage, following in zip_longest(self.stages[member], self.stages[member][1:]):
            until = following["start"] if following else math.inf
            ends = [
                p["end"]
                for p in plateaus
                if p["nearest"] == stage["nearest"] and stage["start"] <= p["start"] < until
            ]
            lasting.append({**stage, "end": max(ends)})
        return lasting


def during(step: Array, llc: Array, stage: Mapping[str, Any]) -> tuple[float, float]:
    """The `mean_and_error` of the estimates within a stage."""
    return mean_and_error(llc[(step >= stage["start"]) & (step <= stage["end"])])
