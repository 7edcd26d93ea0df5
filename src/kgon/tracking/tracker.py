"""The logger for W&B."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import IO, Any, SupportsFloat

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from kgon.callbacks.loggers import send
from kgon.callbacks.recorder import Row
from kgon.record.run_directory import RunDirectory
from kgon.tracking import account
from kgon.tracking.account import first_line
from kgon.tracking.outbox import ArtifactFiles, Outbox, Results

STEP = "trainer/global_step"
_LOGGED_LEVELS = 3


class Tracker(WandbLogger):
    """A W&B run of the record in a run's folder. The W&B step of a row is its training step.

    A job that resumes logs all of its rows again, from its checkpoint. Rows before `first_step` are
    already on the server and are not sent again.

    Errors of the network or of the client do not fail the job. After the first error nothing more
    is sent; the record is in the run's folder, and `kgon sync` sends what is missing.

    Args:
        lock: the outbox's, which `finish` releases.
        artifacts: whether `log_artifacts` logs any.
        recorded: whether the outbox has the run, so that `kgon sync` can send it.
    """

    def __init__(
        self, run: Any, outbox: Outbox, lock: IO[str] | None, artifacts: bool, recorded: bool = True
    ):
        super().__init__(experiment=run, log_model=False)
        self.outbox = outbox
        self.recorded = recorded
        self.lock = lock
        self.artifacts = artifacts
        self.online = not (run.offline or run.disabled)
        self.first_step = run.starting_step if self.online else 0
        self.next_step = 0
        self.fault = ""
        self._log = run.log
        for name, settings in ((STEP, {}), ("*", {"step_metric": STEP, "step_sync": True})):
            self.attempt(functools.partial(run.define_metric, name, **settings))

    def attempt(self, send: Callable[[], Any]) -> None:
        """Call `send`, which uses the client. The first error is printed and ends all sending."""
        if self.fault:
            return
        failures: tuple[type[Exception], ...] = (account.NoKey, *account.client_errors())
        try:
            send()
        except failures as error:
            self.fault = first_line(error)
            directory = self.outbox.directory
            account.say(f"{self.fault}; to send what is missing: kgon sync {directory}")

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a training step or, without a step, to the row after the last one."""
        if step is None:
            row, step = self.next_step, max(self.next_step - 1, 0)
        else:
            row = step
            self.next_step = max(self.next_step, step + 1)
        if row >= self.first_step:
            self.attempt(lambda: self._log({**metrics, STEP: step}, step=row))

    def show(self) -> None:
        """Make this run the one of `wandb.run` and `wandb.log`, unless there already is one."""
        import wandb

        if wandb.run is None:
            account.show(self.experiment)

    def follow(self, trainer: Trainer) -> None:
        """Let `wandb.log` in a user's callback add to the row of the current training step.

        Numbers go to all loggers, so they are in the record, too. By itself `wandb.log` takes the
        number of its calls as the step, and W&B would drop kgon's rows below it; a step that the
        caller gives is ignored for the same reason.
        """
        import wandb

        def log(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
            numbers = {
                name: float(value) for name, value in data.items()
                if isinstance(value, SupportsFloat) and getattr(value, "ndim", 0) == 0
            }  # fmt: skip
            for logger in trainer.loggers if numbers else ():
                logger.log_metrics(numbers, step=trainer.global_step)
            if others := {k: v for k, v in data.items() if k not in numbers}:
                self.log_metrics(others, step=trainer.global_step)

        self.experiment.log = log
        if wandb.run is self.experiment:
            wandb.log = log

    def log_settings(self, settings: dict[str, Any]) -> None:
        """Set the run's config: the settings of config.yaml, and the code that made the record."""
        code = made_by(self.outbox)
        config = logged(settings) | ({"code": code} if code else {})
        self.attempt(lambda: self.experiment.config.update(config, allow_val_change=True))

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Send the rows of a record from `first_step` on."""
        for row in rows:
            self.next_step = max(self.next_step, row.step + 1)
            if row.step >= self.first_step:
                send(row, [self])

    def log_summary(self, summary: Mapping[str, float | str]) -> None:
        """Set numbers of the run's summary."""
        self.attempt(lambda: self.experiment.summary.update(summary))

    def log_results(
        self, results: Results, texts: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Send tables and figures, in the row after the last training step, and artifacts.

        `texts` replace the content of an artifact's files, by name.
        """

        def send_all() -> None:
            for name, rows in results.tables.items():
                self.log_table(f"tables/{name}", [*rows[0]], [[*row.values()] for row in rows])
            for name, path in results.figures.items():
                self.log_image(f"figures/{name}", [str(self.outbox.directory / path)])
            for files in results.artifacts:
                self._log_artifact(files, texts)
            for name in results.used if self.online else ():
                self._use_artifact(name)

        with self._sending_files():
            self.attempt(send_all)

    def _use_artifact(self, name: str) -> None:
        refused: tuple[type[Exception], ...] = (ValueError, *account.client_errors())
        try:
            self.experiment.use_artifact(name)
        except refused as error:
            # The artifact may have been deleted; other results can still be sent.
            account.say(f"the use of the artifact {name} could not be noted: {first_line(error)}")

    def _log_artifact(self, files: ArtifactFiles, texts: Mapping[str, str]) -> None:
        import wandb

        artifact = wandb.Artifact(files.name, files.type, metadata=files.metadata)
        for name in files.files:
            if name in texts:
                with artifact.new_file(name) as copy:
                    copy.write(texts[name])
            else:
                artifact.add_file(str(self.outbox.directory / name), name=name)
        self.experiment.log_artifact(artifact)

    @contextmanager
    def _sending_files(self) -> Iterator[None]:
        """A context for logging tables and artifacts, whose files then wait in the run's folder.

        By default they wait in the home directory, where they may be gone by the time `wandb sync`
        is called; only this variable sets another folder. The server is asked first, because the
        client takes 20 s to find out that there is none.
        """
        if self.online:
            self.attempt(lambda: account.connect(account.PROBE_SECONDS))
        before = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = str(self.outbox.folder / "staging")
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]
            if before is not None:
                os.environ["WANDB_DATA_DIR"] = before

    def finish(self, exit_code: int) -> None:
        """End the run."""
        import wandb
        from wandb.sdk.lib import module

        self.attempt(lambda: self.experiment.finish(exit_code=exit_code))
        if wandb.run is self.experiment:  # an error has kept it from being finished
            module.unset_globals()  # type: ignore[no-untyped-call]
        if self.lock is not None:
            self.lock.close()


def made_by(outbox: Outbox) -> dict[str, Any]:
    """The code that made the record, from the run's status."""
    return dict(RunDirectory(outbox.directory).status().get("code") or {})


def logged(settings: dict[str, Any], level: int = 1) -> dict[str, Any]:
    """The settings of config.yaml for a logger: each value once, in three levels at most.

    References are left out. A dict below the third level becomes a string: its `_target_` if it has
    one, else its text.
    """
    kept = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = logged(value, level + 1)
            if value and level >= _LOGGED_LEVELS:
                value = value.get("_target_", str(value))
        if value != {} and not (isinstance(value, str) and "${" in value):
            kept[name] = value
    return kept
