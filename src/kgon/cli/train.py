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
from kgon.launch import command_line, extending
from kgon.launch import config as configs
from kgon.launch.jobs import build, check_runs, dtype_of, job
from kgon.launch.train import build_trainer, check_callbacks, check_memory, conclude
from kgon.record import run_directory
from kgon.record.metrics_file import MetricsFile
from kgon.record.results import Results
from kgon.record.tables import Phase
from kgon.tracking.logger import follow, where_to_look
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
    check_callbacks(build(small.get("callbacks") or {}), data)
    checkpoint = (config.get("callbacks") or {}).get("checkpoint")
    sought = configs.directory(config) / checkpoints.FOLDER
    if checkpoint and Path(checkpoint.folder) != sought:
        raise ValueError(
            f"callbacks.checkpoint.folder must be {sought}, where a resumed run looks; "
            f"got {checkpoint.folder}"
        )
    try:
        trainer = build_trainer(small, [], False, Path(small.runs.dir))
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(f"trainer: {error}") from error
    check_trainer(trainer)
    extending.check(config)


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
    trainer = build_trainer(config, callbacks, loggers, directory.path)
    follow(logger, trainer)
    train(model, data, trainer, directory.path, extending.extended(config))
    results = conclude(running, model, data, logger, draw=config.runs.figures)
    looks = where_to_look(logger)
    hints = [f"kgon report {directory.path}", *looks]
    return lambda: _print(results, directory, hints)


def _loss(row: Phase) -> str:
    """The mean final loss of a phase, or the range of members that are not at one level."""
    if row.loss is not None or row.loss_least is None:
        return decimal(row.loss, 5)
    return f"{decimal(row.loss_least, 5)} to {decimal(row.loss_most, 5)}"


def _print(results: Results, directory: run_directory.RunDirectory, hints: list[str]) -> None:
    """Print the table of final phases, and what to open or type next."""
    console = Console()
    table = Table(title=f"Final phases of {int(results.summary['final/members'])} members")
    rows = results.by_phase
    theory = any(row.theory_loss is not None for row in rows)
    estimates = any(row.llc_tried for row in rows)
    columns = {
        "phase": [row.phase for row in rows],
        "members": [str(row.members) for row in rows],
        "loss": [_loss(row) for row in rows],
        "theory loss": [decimal(row.theory_loss, 5) for row in rows] if theory else [],
        "LLC": [decimal(row.llc, 2) for row in rows] if estimates else [],
        "theory LLC": [decimal(row.theory_llc, 2) for row in rows] if estimates and theory else [],
        "LLC ok": [f"{row.llc_ok} of {row.llc_tried}" for row in rows] if estimates else [],
    }
    shown = {name: cells for name, cells in columns.items() if cells}
    for name in shown:
        table.add_column(name.split()[0] if name.startswith("theory") else name,
                         justify="left" if name == "phase" else "right")  # fmt: skip
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
    notes = []
    if "final/transitions" in results.summary:
        notes.append(
            f"{results.summary['final/transitions']:.0f} transitions between critical levels."
        )
    if any(row.llc is not None for row in rows):
        notes.append("LLC: mean over estimates with the verdict ok.")
    if notes:
        console.print(" ".join(notes))
    print_files(console, directory.path, [*results.figures.values()], hints)
