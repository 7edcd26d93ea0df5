"""Callbacks that record during training: thin hooks around pure functions."""

from kgon.callbacks.checkpoint import Checkpoints
from kgon.callbacks.llc import LLCEstimates
from kgon.callbacks.loggers import Loggers
from kgon.callbacks.progress import Progress, Status
from kgon.callbacks.recorder import Recorder
from kgon.callbacks.recorders import Losses, Phases, Plateaus, Snapshots, WeightPictures

__all__ = [
    "Checkpoints",
    "LLCEstimates",
    "Loggers",
    "Losses",
    "Phases",
    "Plateaus",
    "Progress",
    "Recorder",
    "Snapshots",
    "Status",
    "WeightPictures",
]
