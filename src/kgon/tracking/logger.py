"""What jobs send to loggers: settings, results, artifacts, and their exit code."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from kgon.record.metrics_file import MetricsFile
from kgon.record.run_directory import RunDirectory
from kgon.tracking.artifacts import downloaded_artifact
from kgon.tracking.outbox import ArtifactFiles, Results, Rows
from kgon.tracking.tracker import Tracker, logged
from kgon.training.checkpoints import EndedEarly, Stopped

INTERRUPTED = 255
"""The exit code of a W&B run that can be resumed; W&B uses it for Ctrl-C."""


@contextmanager
def tracked(logger: Logger | bool, settings: dict[str, Any]) -> Iterator[None]:
    """Log a job's settings at its start, and finish its logger with the exit code at its end.

    Without this, the next job of a sweep would continue the W&B run, and a run that failed would
    look like a success.
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
    """Send a job's results to its logger: the summary, and to W&B also tables and figures."""
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
    """See `Tracker.follow`; other loggers need nothing."""
    if isinstance(logger, Tracker):
        logger.follow(trainer)


def log_record(logger: Logger | bool, directory: Path) -> None:
    """Send the whole record of a finished job to a new W&B run."""
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

    Args:
        files: for each type of artifact, the patterns of its files, separated by spaces.
        texts: by file name, the text that replaces the file's content.
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
    """If a folder is a downloaded artifact, tell W&B that the job uses it."""
    name = downloaded_artifact(folder)
    if name and isinstance(logger, Tracker) and logger.recorded:
        results = logger.outbox.results()
        results.used = [name]
        logger.outbox.save_results(results)
        logger.log_results(Results(used=[name]))


def where_to_look(logger: Logger | bool) -> list[str]:
    """The address of the W&B run, or the commands that show or send it."""
    if not isinstance(logger, Tracker) or not logger.recorded:
        return []
    if logger.online:
        return [str(logger.experiment.url)]
    hints = [f"kgon sync {logger.outbox.directory}"]
    if not logger.experiment.disabled:
        hints.insert(0, f"wandb leet {Path(logger.experiment.dir).parent}")
    return hints
