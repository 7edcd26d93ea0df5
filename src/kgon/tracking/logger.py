"""Loggers: they are opened in a job, get its results, and are closed with its exit code."""

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, SupportsFloat

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from kgon.callbacks.loggers import send
from kgon.callbacks.recorder import Row
from kgon.record.metrics_file import MetricsFile
from kgon.record.run_directory import RunDirectory
from kgon.tracking import account
from kgon.tracking.account import first_line
from kgon.tracking.artifacts import downloaded_artifact
from kgon.tracking.config import logged
from kgon.tracking.outbox import ArtifactFiles, Outbox, Results, Rows
from kgon.training.checkpoints import EndedEarly, Stopped

MODES = ("auto", "online", "offline", "disabled")
PROJECT = "kgon"
INTERRUPTED = 255
"""The exit code of a W&B run that can go on, as W&B has it for Ctrl-C."""
STEP = "trainer/global_step"


class Tracker(WandbLogger):
    """A W&B run of the record in a run's folder. The W&B step of a row is its training step.

    A job that resumes logs all of its rows again, from its checkpoint. Rows before `first_step` are
    already on the server and are not sent again.

    Errors of the network or of the client do not fail the job. After the first one nothing more is
    sent; the record is in the run's folder, and `kgon sync` sends what is missing.

    `finish` releases the outbox's lock; `artifacts` says whether `log_artifacts` logs any, and
    `recorded` whether the outbox has the run, so that `kgon sync` can send it.
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
        """Call `send`, which uses the client. Its first error is printed and ends all sending."""
        if self.fault:
            return
        failures: tuple[type[Exception], ...] = (account.NoKey, *account.client_errors())
        try:
            send()
        except failures as error:
            self.fault = first_line(error)
            directory = self.outbox.directory
            _say(f"{self.fault}; to send what is missing: kgon sync {directory}")

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
        """Let `wandb.run`, `wandb.log` and the like mean this run, unless they mean another."""
        import wandb

        if wandb.run is None:
            account.show(self.experiment)

    def follow(self, trainer: Trainer) -> None:
        """Let `wandb.log` of a callback add to the row of the current training step.

        Numbers go to all loggers, so they are in the record too, at the step that they belong to;
        W&B's own log would count calls, and W&B would drop kgon's rows below that count. A step
        that is given is left out for the same reason.
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
        """Set the run's config: a job's settings, as config.yaml has them, and the code that the
        job's status names."""
        code = _made_by(self.outbox)
        config = logged(settings) | ({"code": code} if code else {})
        self.attempt(lambda: self.experiment.config.update(config, allow_val_change=True))

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Send those rows of a record that the server lacks."""
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

        `texts` replace the content of files in artifacts.
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
            # It may have been deleted since; that is no reason to send nothing more.
            _say(f"the use of the artifact {name} could not be noted: {first_line(error)}")

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
        """Log tables and artifacts in this context: their files wait in the run's folder.

        The client's default folder for waiting files is in the home directory, where they may be
        gone by the time that `wandb sync` is called; it can only be set by this variable. The
        server is asked first, because the client takes 20 s to find out that there is none.
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
        if wandb.run is self.experiment:  # because of a fault it was not finished
            module.unset_globals()  # type: ignore[no-untyped-call]
        if self.lock is not None:
            self.lock.close()


def wandb_logger(
    directory: str,
    mode: str,
    settings: dict[str, Any],
    artifacts: bool,
    system_metrics: bool = False,
    **init: Any,
) -> Tracker:
    """Start a W&B run of the job in `directory`.

    Args:
        directory: the job's directory.
        mode: online (needs a key; offline if the server does not answer), offline, disabled, or
            auto, which is the mode that the W&B client is configured for, but offline if there is
            no key or no answer.
        settings, init: arguments of `wandb.Settings` and `wandb.init`. Without a project, an id or
            tags, they are those that the W&B client is configured with, else PROJECT and the id of
            the attempt.
        artifacts: whether weights and tables are logged as artifacts.
        system_metrics: whether the client measures processor, memory and GPU.

    Raises:
        ValueError: there is no such mode, or mode is online and there is no key; or the id was
            given, and W&B has another run of this id.
    """
    import wandb

    _check_mode(mode)
    outbox = Outbox(Path(directory).absolute())
    init = {name: value or None for name, value in init.items()}
    # The client would name the commit of the folder that the run is in.
    own = {"disable_git": True, "git_commit": _made_by(outbox).get("commit")}
    own["x_disable_stats"] = not system_metrics
    init |= {"dir": directory, "settings": own | settings, "reinit": "create_new"}
    configured = account.configured()
    if awaited():
        # The agent has chosen the run's id and the sweep's project.
        init |= {"id": None, "project": None, "entity": None}
    if mode in ("auto", "online"):
        mode = _reachable_mode(mode, outbox)
    if mode == "disabled":
        run = account.start_run("disabled", **init)
        return Tracker(run, outbox, None, artifacts, recorded=False)
    init["id"] = init.get("id") or configured.run_id or outbox.own_id()
    init["project"] = init.get("project") or configured.project or PROJECT
    init["entity"] = init.get("entity") or configured.entity
    with ExitStack() as until_started:
        lock = outbox.lock()
        if lock is not None:
            until_started.enter_context(lock)
        elif mode == "online":
            mode = "offline"
            _say_offline(f"kgon sync is sending {outbox.directory}", outbox)
        mine = awaited() or init["id"] == outbox.own_id() or outbox.has_run(init["id"])
        init["resume"] = "allow" if mine else "never"
        # Before the run is made, so that a job that is killed now resumes it.
        outbox.add_run(_kept(init))
        try:
            if mode == "online":
                run = open_online(outbox, init)
            else:
                # All rows of the run are logged again.
                for earlier in outbox.folder.glob(f"offline-run-*-{init['id']}"):
                    shutil.rmtree(earlier)
                run = account.start_run("offline", **init)
        except wandb.errors.UsageError as error:
            outbox.remove_run(init["id"])
            raise ValueError(f"id {init['id']} of a W&B run: {first_line(error)}") from error
        except account.client_errors() as error:
            # Without the client's own record, because the client still holds the run's id; its end
            # would end all runs of this process.
            if mode == "online":
                _UNREACHABLE[configured.base_url] = first_line(error)
            _say_offline(first_line(error), outbox)
            run = account.start_run("disabled", **init)
        until_started.pop_all()
    return Tracker(run, outbox, lock, artifacts)


def open_online(outbox: Outbox, init: dict[str, Any]) -> Any:
    """Start a W&B run that shows the outbox's folder, and record it there.

    If a run of this attempt was deleted on W&B, the attempt and `init` get another id.
    """
    try:
        run = account.start_run("online", **init)
    except account.client_errors() as error:
        if not account.was_deleted(error) or init["id"] != outbox.own_id():
            raise
        outbox.remove_run(init["id"])
        outbox.renew_id()
        init["id"] = outbox.own_id()
        outbox.add_run(_kept(init))
        run = account.start_run("online", **init)
    init |= {"entity": run.entity, "resume": "allow"}
    outbox.add_run(_kept(init))
    return run


def _made_by(outbox: Outbox) -> dict[str, Any]:
    """The code that has made the record, by the run's status."""
    return dict(RunDirectory(outbox.directory).status().get("code") or {})


def _kept(init: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `wandb.init` that say which run it is, and how it is shown."""
    sweep = init["settings"].get("sweep_id") or os.environ.get("WANDB_SWEEP_ID")
    kept = {name: value for name, value in init.items() if name not in ("dir", "reinit")}
    git = {name: init["settings"].get(name) for name in ("disable_git", "git_commit")}
    return kept | {"settings": {"sweep_id": sweep, **git}}


def check(config: Any, *, several: bool) -> None:
    """ValueError, before any job starts, for a wrong config of a logger of W&B.

    `several` says whether several jobs have this config.
    """
    if "mode" not in config:
        return
    _check_mode(config.mode)
    given = f"logger.id={config.id}" if config.get("id") else None
    if several and not awaited() and (given := given or _variable("WANDB_RUN_ID")):
        raise ValueError(f"{given} names one W&B run, and -m makes one for each job; leave it out")
    if config.mode == "online":
        started = "WANDB_SERVICE" in os.environ
        try:
            account.require_key()
        except account.NoKey as error:
            raise ValueError(f"logger.mode=online: {error}") from error
        finally:
            if not started:  # else jobs on other machines would look for this process's client
                account.end_client()


def _variable(name: str) -> str | None:
    """NAME=value of an environment variable, or None."""
    return f"{name}={os.environ[name]}" if os.environ.get(name) else None


def _check_mode(mode: Any) -> None:
    if mode not in MODES:
        raise ValueError(f"logger.mode must be one of {', '.join(MODES)}, got {mode}")


def awaited() -> bool:
    """Whether the agent of a W&B sweep started this process and waits for its run."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


_UNREACHABLE: dict[str, str] = {}
"""Why a server cannot be used, by its address, so that only one job of a sweep waits for it."""


def _reachable_mode(mode: str, outbox: Outbox) -> str:
    """The mode that can be used; ValueError if mode is online and there is no key."""
    configured = account.configured()
    url = configured.base_url
    # WANDB_MODE still takes the older names.
    asked = {"dryrun": "offline", "run": "online"}.get(configured.mode, configured.mode)
    if mode == "auto" and asked in ("offline", "disabled"):
        return str(asked)
    try:
        if url in _UNREACHABLE:
            raise account.NoAnswer(_UNREACHABLE[url])
        account.connect(account.PROBE_SECONDS)
        return "online"
    except account.NoKey as error:
        if mode == "online":
            raise account.NoKey(f"logger.mode=online: {error}") from error
        why = str(error)
    except account.NoAnswer as error:
        why = _UNREACHABLE[url] = str(error)
    _say_offline(why, outbox)
    return "offline"


def _say_offline(why: str, outbox: Outbox) -> None:
    _say(f"{why}; recording offline. To send the record: kgon sync {outbox.directory.parent}")


@functools.cache
def _say(message: str) -> None:
    """Print a message, once per process."""
    print(f"W&B: {message}", file=sys.stderr)


@contextmanager
def tracked(logger: Logger | bool, settings: dict[str, Any]) -> Iterator[None]:
    """Log a job's settings at its start, and finish its logger with the exit code at its end.

    The next job of a sweep would continue a W&B run that is not finished, and a run that is
    finished without a code looks like a success.
    """
    if not isinstance(logger, Logger):
        yield
        return
    exit_code = 1
    try:
        if isinstance(logger, Tracker):
            logger.log_settings(settings)
            logger.show()
        else:
            logger.log_hyperparams(logged(settings))
        yield
        exit_code = 0
    except (KeyboardInterrupt, Stopped, EndedEarly):
        exit_code = INTERRUPTED
        raise
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        if isinstance(logger, Tracker):
            logger.finish(exit_code)
        else:
            logger.finalize("success" if exit_code == 0 else "failed")


def log_results(
    logger: Logger | bool,
    summary: dict[str, float | str],
    tables: Mapping[str, Rows],
    figures: dict[str, Path],
) -> None:
    """Send a job's results to its logger: numbers, and tables and figures if it can show them."""
    if isinstance(logger, Tracker):
        directory = logger.outbox.directory
        results = Results(
            tables={name: rows for name, rows in tables.items() if rows},
            figures={name: os.path.relpath(path, directory) for name, path in figures.items()},
        )
        if logger.recorded:
            logger.outbox.save_results(results)
        logger.log_results(results)
        logger.log_summary(summary)
    elif isinstance(logger, TensorBoardLogger):
        for name, value in summary.items():
            if isinstance(value, str):
                logger.experiment.add_text(name, value)
            else:
                logger.experiment.add_scalar(name, value)


def follow(logger: Logger | bool, trainer: Trainer) -> None:
    """Let `wandb.log` of a user's callback add to the rows of a training job."""
    if isinstance(logger, Tracker):
        logger.follow(trainer)


def log_record(logger: Logger | bool, directory: Path) -> None:
    """Send a finished job's whole record to a new W&B run."""
    if isinstance(logger, Tracker):
        logger.log_rows(MetricsFile(directory).rows())
        logger.log_results(logger.outbox.results())
        logger.log_summary(RunDirectory(directory).status()["metrics"])


def log_artifacts(
    logger: Logger | bool,
    directory: Path,
    files: Mapping[str, str],
    metadata: dict[str, Any],
    texts: Mapping[str, str],
) -> None:
    """Log files of a run's directory as artifacts <type>-<directory>, if logger.artifacts=true.

    `files` has patterns of files below the directory, by type of artifact; `texts` replace the
    content of files, by name.
    """
    if not isinstance(logger, Tracker) or not logger.artifacts or not logger.recorded:
        return
    artifacts = []
    for kind, patterns in files.items():
        found = [p for pattern in patterns.split() for p in sorted(directory.glob(pattern))]
        if names := [str(path.relative_to(directory)) for path in found]:
            artifacts.append(ArtifactFiles(f"{kind}-{directory.name}", kind, names, metadata))
    results = logger.outbox.results()
    results.artifacts = artifacts
    logger.outbox.save_results(results)
    logger.log_results(Results(artifacts=artifacts), texts)


def log_use(logger: Logger | bool, folder: Path) -> None:
    """Tell W&B that the job uses the artifact that was downloaded to a folder, if one was."""
    name = downloaded_artifact(folder)
    if name and isinstance(logger, Tracker) and logger.recorded:
        results = logger.outbox.results()
        results.used = [name]
        logger.outbox.save_results(results)
        logger.log_results(Results(used=[name]))


def where_to_look(logger: Logger | bool) -> list[str]:
    """The commands that show the logged run."""
    if not isinstance(logger, Tracker) or not logger.recorded:
        return []
    if logger.online:
        return [str(logger.experiment.url)]
    hints = [f"kgon sync {logger.outbox.directory}"]
    if not logger.experiment.disabled:
        hints.insert(0, f"wandb leet {Path(logger.experiment.dir).parent}")
    return hints
