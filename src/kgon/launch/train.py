"""A training job: build the objects of a config, train, write the record."""

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from kgon.callbacks import Loggers, Status
from kgon.callbacks.recorder import Recorder
from kgon.compiled.machine import check_fits
from kgon.launch import config as configs
from kgon.launch.jobs import build, check_runs, dtype_of, job
from kgon.record import run_directory
from kgon.record.printing import print_results
from kgon.record.results import Results, write
from kgon.tracking.logger import Recording, log_artifacts, log_results, where_to_look
from kgon.training import checkpoints, packing
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import check_trainer, train
from kgon.training.model import TMS
from kgon.training.schedule import Schedule


def check(config: DictConfig) -> None:
    """Check a config by building its objects for one member.

    Raises:
        ValueError: a setting is wrong.
    """
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
    build(small.get("callbacks") or {})
    try:
        trainer = build_trainer(small, [], False)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(f"trainer: {error}") from error
    check_trainer(trainer)


def check_memory(config: DictConfig) -> None:
    """Check that the data sets and the history of a job fit into memory.

    Raises:
        ValueError: they do not.
    """
    # Counted, because the list of members may itself be too long to make.
    n_members = configs.count_members(config.members)
    n, m = config.model.n_features, config.model.n_hidden
    # A data set is stored as inputs and, per amplitude, as sorted values, three running sums and a
    # line of eight numbers.
    data = 8 * n_members * (config.n_samples or 0) * (n + 12)
    # A loss uses every pair of features.
    pairs = 8 * n_members * n**2
    schedule = Schedule(max_steps=config.trainer.max_steps, **config.schedule)
    # The history is copied once more when it is written.
    record = 2 * schedule.bytes_recorded(n_members, m, n)
    check_fits(
        data + pairs + record,
        f"{n_members} members with n_samples={config.n_samples}, n_features={n}, n_hidden={m}, "
        f"{len(schedule.losses)} losses and {len(schedule.snapshots)} snapshots",
        "take fewer members, samples, schedule.n_losses or schedule.n_snapshots",
    )


def build_trainer(config: DictConfig, callbacks: list[L.Callback], logger: Any) -> L.Trainer:
    """The trainer of a config, for one process."""
    # At level INFO Lightning lists devices and advertises products.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    make_trainer = instantiate(config.trainer, _partial_=True, _convert_="all")
    trainer: L.Trainer = make_trainer(
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=bool(callbacks),
        default_root_dir=config.runs.dir,
        # A job is one process, whatever the cluster's environment says.
        plugins=[LightningEnvironment()],
    )
    return trainer


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
    loggers = [*([logger] if logger else []), Recording(directory.path)]
    trainer = build_trainer(config, callbacks, loggers)
    train(model, data, trainer, directory.path)
    results = conclude(running, model, data, logger, draw=config.runs.figures)
    looks = where_to_look(logger)
    return lambda: print_results(results, directory.path, looks)


def conclude(
    running: run_directory.Job, model: TMS, data: EnsembleData, logger: Any, *, draw: bool
) -> Results:
    """Write the record of a trained ensemble and log its results."""
    results = write(running.directory, model, data, draw=draw)
    running.report(1.0, results.summary)
    log_results(logger, results.summary, results.tables, results.figures)
    # The artifact `run` is all that kgon llc run=FOLDER needs.
    artifacts = {
        "run": "config.yaml status.json weights.safetensors members.parquet",
        "llc": "llc.parquet",
    }
    log_artifacts(
        logger,
        running.directory.path,
        artifacts,
        results.summary,
        {"status.json": running.as_finished()},
    )
    return results
