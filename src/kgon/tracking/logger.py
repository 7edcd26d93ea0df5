"""Loggers' life: opened inside a job, given its results, closed with its exit code."""

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from kgon.tracking import account
from kgon.tracking import files as wandb_files

Rows = Sequence[dict[str, Any]]

MODES = ("auto", "online", "offline", "disabled")


class Tracker(WandbLogger):
    """A W&B run for Lightning and for a job's results. A row's W&B step is its training step.

    A job that goes on gives all of its rows again, from its checkpoint. Those below `first_step`,
    which are with the server or in a file that is to be sent, are not recorded a second time; so
    the history has every row once, whatever was interrupted and when.

    Args:
        run: of `wandb.init`.
        folder: the run's folder `wandb`.
        held: the lock on it.
        first_step: the first step to record.
        artifacts: whether `log_artifacts` is to log any.
    """

    def __init__(
        self, run: Any, folder: Path, held: IO[str] | None, first_step: int, artifacts: bool
    ):
        super().__init__(experiment=run, log_model=False)
        self.folder = folder
        self.held = held
        self.first_step = first_step
        self.artifacts = artifacts
        self.next_step = 0
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a training step; without one, to the row after training's last."""
        if step is None:
            row, step = self.next_step, max(self.next_step - 1, 0)
        else:
            row = step
            self.next_step = max(self.next_step, step + 1)
        if row >= self.first_step:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=row)

    def finish(self, exit_code: int) -> None:
        """End the run; what could not be sent stays on disk, for `kgon sync`."""
        self.experiment.finish(exit_code=exit_code)
        if self.held is not None:
            self.held.close()


def wandb_logger(
    directory: str, mode: str, settings: dict[str, Any], artifacts: bool, **init: Any
) -> Tracker:
    """Start a W&B run whose files are in the job's directory.

    Whatever becomes of the network the job goes on, and what it records is in the directory.

    Args:
        directory: of the job.
        mode: online (there must be a key; offline if the server does not answer), offline, disabled
            (nothing is recorded), or auto: online if there is a key and a server, else offline.
        settings: those of `wandb.Settings`.
        artifacts: whether weights and tables are logged as artifacts.
        init: arguments of `wandb.init`.

    Raises:
        ValueError: another mode; online without a key.
    """
    if mode not in MODES:
        raise ValueError(f"logger.mode must be one of {', '.join(MODES)}, got {mode}")
    import wandb

    init |= {"dir": directory, "settings": settings, "reinit": "create_new"}
    folder = Path(directory).absolute() / "wandb"
    if awaited():
        # It has been named, in a project of its sweep.
        del init["id"], init["project"]
    run_id = init.get("id") or os.environ["WANDB_RUN_ID"]
    if mode in ("auto", "online"):
        mode, why = _reachable(mode)
        if why:
            _say_offline(why, folder.parents[1])
    if mode == "disabled":
        return Tracker(wandb.init(mode="disabled", **init), folder, None, 0, artifacts)
    held = wandb_files.lock(folder)
    first_step = wandb_files.begin_again(folder, run_id, alone=held is not None)
    if mode == "online":
        try:
            run = wandb.init(mode="online", **init)
        except wandb.Error as error:
            # The client's process still holds the run's name; and so that no other job of this one
            # comes here while that has runs.
            _SILENT[account.base_url()] = _first_line(error)
            wandb.teardown()
            _say_offline(_first_line(error), folder.parents[1])
        else:
            return Tracker(run, folder, held, run.starting_step, artifacts)
    return Tracker(wandb.init(mode="offline", **init), folder, held, first_step, artifacts)


def awaited() -> bool:
    """Whether the agent of a W&B sweep started this process, and waits for one run of it."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def _reachable(mode: str) -> tuple[str, str]:
    """online and "", or offline and why; ValueError for online without a key."""
    asked = os.environ.get("WANDB_MODE")
    if mode == "auto" and asked in ("offline", "disabled"):
        return asked, ""
    key = account.api_key()
    if key is None:
        if mode == "online":
            raise ValueError("logger.mode=online: no W&B API key is configured; run: wandb login")
        return "offline", "no API key is configured"
    url = account.base_url()
    why = _SILENT.get(url) or account.Server(url, key).trouble()
    if why:
        # The jobs of a multirun do not each wait for a server that is not there.
        _SILENT[url] = why
    return ("offline" if why else "online"), why


_SILENT: dict[str, str] = {}


@functools.cache
def _say_offline(why: str, folder: Path) -> None:
    """Say it once, however many jobs this process runs."""
    print(f"W&B: {why}; recorded offline, to be sent by: kgon sync {folder}", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def tracked(logger: Logger | bool, config: dict[str, Any]) -> Iterator[None]:
    """Keep a logger for the time of a job: config first, the right exit code last.

    A W&B run that nobody finishes is continued by the next job of a multirun, and one that is
    finished without a code looks like a success.
    """
    if not isinstance(logger, Logger):
        yield
        return
    try:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(config, allow_val_change=True)
        else:
            logger.log_hyperparams(config)
        yield
    except BaseException as error:
        _finish(logger, _exit_code(error))
        raise
    _finish(logger, 0)


def _exit_code(error: BaseException) -> int:
    """What a process ended by this exception says; 255, as W&B has it, for Ctrl-C."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 255 if isinstance(error, KeyboardInterrupt) else 1


def _finish(logger: Logger, exit_code: int) -> None:
    if isinstance(logger, Tracker):
        logger.finish(exit_code)
    else:
        logger.finalize("success" if exit_code == 0 else "failed")


# -------------------------------------------------------------------------------------- results


@contextmanager
def _staged(folder: Path) -> Iterator[None]:
    """Let tables and artifacts wait in the run's directory until they are sent.

    In W&B's own place, the home directory, they would be lost silently if they were not there any
    more when they are sent. The client knows no other way to say it than this variable.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder / wandb_files.STAGING)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


def log_results(
    logger: Logger | bool,
    summary: dict[str, float | str],
    tables: Mapping[str, Rows],
    figures: dict[str, Path],
) -> None:
    """Give a job's results to its logger: numbers, tables and figures where it can show them."""
    if isinstance(logger, Tracker):
        with _staged(logger.folder):
            for name, rows in tables.items():
                if rows:
                    columns = list(rows[0])
                    values = [list(row.values()) for row in rows]
                    logger.log_table(f"tables/{name}", columns, values)
            for name, path in figures.items():
                logger.log_image(f"figures/{name}", [str(path)])
        logger.experiment.summary.update(summary)
    elif isinstance(logger, TensorBoardLogger):
        for name, value in summary.items():
            if isinstance(value, str):
                logger.experiment.add_text(name, value)
            else:
                logger.experiment.add_scalar(name, value)


def log_artifacts(
    logger: Logger | bool,
    directory: Path,
    files: Mapping[str, str],
    metadata: dict[str, Any],
    texts: Mapping[str, str],
) -> None:
    """Log what is in a run's directory as artifacts, where logger.artifacts=true.

    Args:
        logger: of the job.
        directory: of the run.
        files: patterns of files below `directory` by the type of the artifact; an artifact is named
            <type>-<name of the directory>.
        metadata: of every artifact.
        texts: of files that are logged with this text instead of what is in them now.
    """
    if not isinstance(logger, Tracker) or not logger.artifacts:
        return
    import wandb

    with _staged(logger.folder):
        for kind, patterns in files.items():
            artifact = wandb.Artifact(f"{kind}-{directory.name}", kind, metadata=metadata)
            for pattern in patterns.split():
                for file in sorted(directory.glob(pattern)):
                    name = str(file.relative_to(directory))
                    if name in texts:
                        with artifact.new_file(name) as copy:
                            copy.write(texts[name])
                    else:
                        artifact.add_file(str(file), name=name)
            if artifact.manifest.entries:
                logger.experiment.log_artifact(artifact)


def where_to_look(logger: Logger | bool) -> list[str]:
    """What to type to see the logged run."""
    if not isinstance(logger, Tracker) or logger.experiment.disabled:
        return []
    folder = Path(logger.experiment.dir).parent
    if logger.experiment.offline:
        return [f"wandb leet {folder}", f"kgon sync {logger.folder.parent}"]
    return [str(logger.experiment.url)]
