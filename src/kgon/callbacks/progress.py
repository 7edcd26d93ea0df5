"""The progress of a running job: a bar on the terminal, and its status."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from kgon.training.model import TMS


class Progress(L.Callback):
    """A bar of steps, mean loss, members by phase and time left, on a terminal only.

    During a slow recorder the bar shows which one it is, for how long it has been working, and how
    long it took last time.
    """

    def __init__(self, max_steps: int):
        self.bar = Bar(
            TextColumn("{task.completed:>9,.0f} / {task.total:,.0f} steps"),
            BarColumn(20),
            _Doing(),
            TimeRemainingColumn(),
            transient=True,
        )
        self.task = self.bar.add_task("", total=max_steps, doing="", since=0.0, last=None)
        self._took: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.reset(self.task, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, TMS)
        description = _describe(module.metrics)
        self.bar.update(self.task, completed=trainer.global_step, description=description)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if self.bar.live.is_started:
            self.bar.stop()

    @contextmanager
    def doing(self, what: str, step: int) -> Iterator[None]:
        """Show what is being done at a step, until the context ends."""
        since = time.monotonic()
        last = self._took.get(what)
        self.bar.update(self.task, completed=step, doing=what, since=since, last=last, refresh=True)
        try:
            yield
        finally:
            took = time.monotonic() - since
            if took >= 1:  # less: it had nothing to do, like LLC estimates before the last step
                self._took[what] = took
            self.bar.update(self.task, doing="")


class _Doing(ProgressColumn):
    """What `Progress.doing` shows; at other times the task's description."""

    def render(self, task: Task) -> Text:
        what, last = task.fields["doing"], task.fields["last"]
        if not what:
            return Text(task.description)
        about = "" if last is None else f" of about {last:.0f}"
        return Text(f"{what}: {time.monotonic() - task.fields['since']:.0f}{about} s")


def _describe(metrics: dict[str, float]) -> str:
    words = [f"loss {metrics['loss/mean']:.4f}"] if "loss/mean" in metrics else []
    phases = {k.removeprefix("phase/"): v for k, v in metrics.items() if k.startswith("phase/")}
    largest = sorted(phases, key=lambda label: -phases[label])[:5]
    words += [f"{label}: {phases[label]:.0f}" for label in largest if phases[label]]
    return "  ".join(words)


class Status(L.Callback):
    """Calls `report(share of steps made, model)` after blocks of steps, at most every
    `every_seconds`, and when an error ends the training."""

    def __init__(
        self, report: Callable[[float, TMS], None], max_steps: int, every_seconds: float = 0.0
    ):
        self.report = report
        self.max_steps = max_steps
        self.every_seconds = every_seconds
        self._reported = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if time.monotonic() - self._reported >= self.every_seconds:
            self._report(trainer, module)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        self._report(trainer, module)

    def _report(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TMS)
        self._reported = time.monotonic()
        self.report(trainer.global_step / self.max_steps, module)
