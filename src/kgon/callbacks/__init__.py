"""Callbacks that record during training: thin hooks around pure functions."""

from kgon.callbacks.any_module import LLC, LossPlateaus
from kgon.callbacks.checkpoint import Checkpoints
from kgon.callbacks.llc import LLCEstimates
from kgon.callbacks.loggers import Loggers
from kgon.callbacks.progress import Progress, Status
from kgon.callbacks.recorder import Recorder
from kgon.callbacks.recorders import Losses, Phases, Plateaus, Snapshots, WeightPictures

__all__ = [
    "LLC",
    "Checkpoints",
    "LLCEstimates",
    "Loggers",
    "LossPlateaus",
    "Losses",
    "Phases",
    "Plateaus",
    "Progress",
    "Recorder",
    "Snapshots",
    "Status",
    "WeightPictures",
]
