"""Callbacks that record during training: thin hooks around pure functions."""

from kgon.callbacks.checkpoint import Checkpoints
from kgon.callbacks.llc import LLCEstimates
from kgon.callbacks.loggers import Loggers
from kgon.callbacks.losses import Losses
from kgon.callbacks.phases import Phases
from kgon.callbacks.pictures import WeightPictures
from kgon.callbacks.plateaus import Plateaus
from kgon.callbacks.progress import Progress
from kgon.callbacks.recorder import Recorder
from kgon.callbacks.snapshots import Snapshots
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
