"""From a trained ensemble to its record: the tables of a run, its final word on every member."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kgon.critical import CriticalPoint
from kgon.history import History
from kgon.llc import VERDICTS
from kgon.model import TMS
from kgon.phases import LABELS
from kgon.runs import RunDirectory, long_table

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Stages:
    """The plateaus of one member that lie at critical levels, in order, one entry a stage.

    Attributes:
        labels: of the stages, neighbours different.
        steps: at which each begins.
    """

    labels: list[str]
    steps: list[int]


def stages(plateaus: Rows, member: int, tolerance: float) -> Stages:
    """A member's passage through critical levels: plateaus nearer than `tolerance` to one."""
    labels: list[str] = []
    steps: list[int] = []
    for plateau in plateaus:
        if plateau["member"] != member or plateau["distance"] > tolerance:
            continue
        if not labels or labels[-1] != plateau["nearest"]:
            labels.append(plateau["nearest"])
            steps.append(plateau["start"])
    return Stages(labels, steps)
