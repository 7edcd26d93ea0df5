"""Callbacks that record during training: thin hooks around pure functions."""

from kgon.callbacks.checkpoint import Checkpoints
from kgon.callbacks.llc import LLCEstimates
from kgon.callbacks.loggers import Loggers
from kgon.callbacks.pictures import WeightPictures
from kgon.callbacks.progress import Progress
from kgon.callbacks.recorder import Recorder
from kgon.callbacks.recorders import Losses, Phases, Plateaus, Snapshots
from kgon.callbacks.status import Status

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
