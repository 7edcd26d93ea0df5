"""Loggers' life: opened inside a job, given its results, closed with its exit code."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

Rows = Sequence[dict[str, Any]]


def wandb_logger(directory: str, **settings: Any) -> WandbLogger:
    """Start a W&B run whose files are in the run's directory, and wrap it for Lightning.

    `settings` are those of `wandb.init`. The run is ours, not Lightning's, so that it ends with
    the job (`tracked`).
    """
    import wandb

    # Offline tables and artifacts are staged here until they are sent; in the home directory they
    # would be lost silently if they were not there any more.
    os.environ["WANDB_DATA_DIR"] = str(Path(directory).absolute() / "wandb" / "staging")
    Path(directory).mkdir(parents=True, exist_ok=True)
    return WandbLogger(experiment=wandb.init(dir=directory, **settings), log_model=False)


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
    except BaseException:
        _finish(logger, 1)
        raise
    _finish(logger, 0)


def _finish(logger: Logger, exit_code: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=exit_code)
    else:
        logger.finalize("success" if exit_code == 0 else "failed")


def log_results(
    logger: Logger | bool,
    summary: dict[str, float | str],
    tables: Mapping[str, Rows],
    figures: dict[str, Path],
) -> None:
    """Give a job's results to its logger: numbers, tables and figures where it can show them."""
    if isinstance(logger, WandbLogger):
        for name, rows in tables.items():
            if rows:
                columns = list(rows[0])
                logger.log_table(f"tables/{name}", columns, [list(row.values()) for row in rows])
        for name, path in figures.items():
            logger.log_image(f"figures/{name}", [str(path)])
        logger.experiment.summary.update(summary)
    elif isinstance(logger, TensorBoardLogger):
        for name, value in summary.items():
            if isinstance(value, str):
                logger.experiment.add_text(name, value)
            else:
                logger.experiment.add_scalar(name, value)


def where_to_look(logger: Logger | bool) -> list[str]:
    """What to type to see the logged run."""
    if not isinstance(logger, WandbLogger) or logger.experiment.disabled:
        return []
    folder = Path(logger.experiment.dir).parent
    if logger.experiment.offline:
        return [f"wandb leet {folder}", f"wandb sync {folder}"]
    return [str(logger.experiment.url)]
