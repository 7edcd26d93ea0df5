"""kgon train: an ensemble, its plateaus, phases and learning coefficients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from kgon.callbacks import Loggers, Status
from kgon.callbacks.recorder import Recorder
from kgon.cli.terminal import decimal, print_files
from kgon.launch import command_line
from kgon.launch import config as configs
from kgon.launch.jobs import build, check_runs, dtype_of, job
from kgon.launch.train import build_trainer, check_memory, conclude
from kgon.record import run_directory
from kgon.record.metrics_file import MetricsFile
from kgon.record.results import Results
from kgon.tracking.logger import where_to_look
from kgon.training import checkpoints, packing
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import check_trainer, train
from kgon.training.model import TMS


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    command_line.run("train", task, check)


def check(config: DictConfig) -> None:
    """ValueError for a wrong setting, from building the objects of a config for one member."""
    dtype_of(config)
    check_memory(config)
    check_runs(config)
    small = config.copy()
    small.members = 1
    build(small.model)
    data: EnsembleData = build(small.datamodule)
    if data.distribution.n_features != small.model.n_features:
        raise ValueError(
            f"data.n_features must be model.n_features={small.model.n_features}, "
            f"got {data.distribution.n_features}"
        )
    for callback in build(small.get("callbacks") or {}).values():
        if isinstance(callback, Recorder):
            callback.check(data)
    checkpoint = (config.get("callbacks") or {}).get("checkpoint")
    sought = configs.directory(config) / checkpoints.FOLDER
    if checkpoint and Path(checkpoint.folder) != sought:
        raise ValueError(
            f"callbacks.checkpoint.folder must be {sought}, where a resumed run looks; "
            f"got {checkpoint.folder}"
        )
    try:
        trainer = build_trainer(small, [], False)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(f"trainer: {error}") from error
    check_trainer(trainer)


@job
def task(config: DictConfig, running: run_directory.Job, logger: Any) -> Callable[[], None]:
    """Train, write the record and log the results; return a function that prints them."""
    model: TMS = build(config.model)
    data: EnsembleData = build(config.datamodule)
    callbacks: list[L.Callback] = list(build(config.get("callbacks") or {}).values())
    recorders = [callback for callback in callbacks if isinstance(callback, Recorder)]
    callbacks += [
        Loggers(recorders),
        Status(lambda done, model: running.report(done, model.metrics), config.trainer.max_steps),
    ]
    directory = running.directory
    packing.leave_pack(directory.path / checkpoints.FOLDER, model)
    # Lightning takes the first one's folder for its own.
    loggers = [*([logger] if logger else []), MetricsFile(directory.path)]
    trainer = build_trainer(config, callbacks, loggers)
    train(model, data, trainer, directory.path)
    results = conclude(running, model, data, logger, draw=config.runs.figures)
    looks = where_to_look(logger)
    hints = [f"kgon report {directory.path}", *looks]
    return lambda: _print(results, directory, hints)


def _print(results: Results, directory: run_directory.RunDirectory, hints: list[str]) -> None:
    """Print the table of final phases, and what to open or type next."""
    console = Console()
    table = Table(title=f"Final phases of {int(results.summary['final/members'])} members")
    for name in ("phase", "members", "loss", "theory", "LLC", "theory", "LLC ok"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for row in results.by_phase:
        table.add_row(
            row.phase,
            str(row.members),
            decimal(row.loss, 5),
            decimal(row.theory_loss, 5),
            decimal(row.llc, 2),
            decimal(row.theory_llc, 2),
            f"{row.llc_ok} of {row.members}",
        )
    console.print(table)
    console.print(
        f"{results.summary['final/transitions']:.0f} transitions between critical levels. "
        "LLC: mean over estimates with the verdict ok."
    )
    print_files(console, directory.path, [*results.figures.values()], hints)
