"""A training run as the items read it: stages, curves, final phases."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgon.record.run_directory import Run
from kgon.record.tables import Plateau, plain, stages
from kgon.theory.atlas import built
from kgon.theory.critical import CriticalPoint, critical_points
from kgon.theory.intervals import widening

Rows = list[dict[str, Any]]
Array = NDArray[Any]


@dataclass(frozen=True)
class Ensemble:
    """A training run, and what the items read off it."""

    run: Run

    @cached_property
    def stages(self) -> dict[int, Rows]:
        """The critical levels that each member passes (`record.tables.stages`)."""
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
    def points(self) -> list[CriticalPoint]:
        """The k-gons; elsewhere than in the plane the atlas's phases."""
        n_hidden = int(self.run.config["model"]["n_hidden"])
        if n_hidden != 2:
            return list(built(self.n_features, n_hidden).phases)
        return critical_points(self.n_features)

    def path(self, member: int) -> tuple[str, ...]:
        """The levels that a member passes, in order."""
        return tuple(stage["nearest"] for stage in self.stages[member])

    def curve(self, table: str, column: str) -> tuple[Array, Array]:
        """step (S,) and a column (S, M) of the tables loss, llc or snapshots."""
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
        """A member's stages, each up to the end of the last plateau at its level."""
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
    """Mean of the estimates within a stage and its error; NaN for too few of them.

    The error is the standard one times Student's factor for so few estimates (`widening`).
    """
    inside = llc[(step >= stage["start"]) & (step <= stage["end"]) & np.isfinite(llc)]
    if not len(inside):
        return math.nan, math.nan
    mean, n = float(inside.mean()), len(inside)
    if n == 1:
        return mean, math.nan
    return mean, float(inside.std(ddof=1) / math.sqrt(n) * widening(n - 1))
