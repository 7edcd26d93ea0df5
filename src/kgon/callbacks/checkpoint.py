"""Checkpoints, from which an interrupted run is resumed."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from kgon.training import checkpoints

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop a job. A cluster sends USR2 before preemption or the time limit."""

_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)
"""Jobs in a shell's background ignore Ctrl-C; jobs under nohup ignore the end of the terminal."""

_CTRL_C = b"\nkgon: saving; the same command will go on from here. Ctrl-C again quits at once\n"


class Checkpoints(Checkpoint):
    """Saves model, optimizer and record every so many seconds, at the end, and on a stop signal.

    A stop signal takes effect at the end of the block of steps: the state is saved, then the
    previous handler is called (submitit's, for instance, requeues the job). A second Ctrl-C ends
    the process at once. Results do not depend on when checkpoints are written.
    """

    def __init__(self, folder: str, every_seconds: float):
        if not every_seconds > 0:
            raise ValueError(f"every_seconds must be positive, got {every_seconds}")
        self.folder = Path(folder)
        self.every_seconds = every_seconds
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._during: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # Noted before Lightning installs its own handlers, which end training on SIGTERM even if
        # the previous handler ignores it.
        self._before = {s: signal.getsignal(s) for s in _SIGNALS}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._during = {
                s: signal.signal(s, self._note_signal)
                for s in _SIGNALS
                if s not in _MAY_BE_IGNORED or signal.getsignal(s) != signal.SIG_IGN
            }

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        if signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            os.write(2, _CTRL_C)  # the signal may have interrupted a print, which is not reentrant

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        due = time.monotonic() - self._saved > self.every_seconds
        if due or self._signal is not None:
            self._save(trainer)
        if self._signal is not None:
            self._obey(self._signal)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer)
        self._restore_handlers()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        self._restore_handlers()

    def _save(self, trainer: L.Trainer) -> None:
        checkpoints.save(self.folder, trainer.save_checkpoint)
        self._saved = time.monotonic()

    def _obey(self, signum: int) -> None:
        self._signal = None
        handler = self._before[signum]
        try:
            if callable(handler):
                handler(signum, None)
        except SystemExit as end:
            raise checkpoints.Stopped(end.code) from end
        if not callable(handler):
            raise checkpoints.Stopped(128 + signum)

    def _restore_handlers(self) -> None:
        for signum, handler in self._during.items():
            signal.signal(signum, handler)
        self._during = {}
