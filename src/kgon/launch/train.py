"""The parts that a training job shares with a pack of them: checks, trainer, record."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig
from rich.console import Console

from kgon.callbacks.recorder import Recorder
from kgon.compiled.machine import check_fits
from kgon.launch import config as configs
from kgon.record import run_directory
from kgon.record.results import Results, check_table, write
from kgon.tracking.logger import log_artifacts, log_results
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS
from kgon.training.schedule import Schedule


def check_memory(config: DictConfig) -> None:
    """Raise ValueError if the data sets and the history of a job do not fit into memory."""
    # Only counted, because the list of members may itself be too long.
    n_members = configs.count_members(config.members)
    n, m = config.model.n_features, config.model.n_hidden
    # For each sample: n inputs, and for its amplitude a sorted value, three running sums and eight
    # more numbers.
    data = 8 * n_members * (config.n_samples or 0) * (n + 12)
    # A loss uses every pair of features.
    pairs = 8 * n_members * n**2
    schedule = Schedule(max_steps=config.trainer.max_steps, **config.schedule)
    # Twice, because writing the history copies it.
    record = 2 * schedule.bytes_recorded(n_members, m, n)
    check_fits(
        data + pairs + record,
        f"{n_members} members with n_samples={config.n_samples}, n_features={n}, n_hidden={m}, "
        f"{len(schedule.losses)} losses and {len(schedule.snapshots)} snapshots",
        "take fewer members, samples, schedule.n_losses or schedule.n_snapshots",
    )


def check_callbacks(callbacks: Mapping[str, Any], data: EnsembleData) -> None:
    """Raise ValueError for an object that is not a callback, or a table that cannot be recorded."""
    owners: dict[str, str] = {}
    for name, callback in callbacks.items():
        if not isinstance(callback, L.Callback):
            raise ValueError(
                f"callbacks.{name} must be a lightning.Callback, made by a _target_; got "
                f"{type(callback).__name__} (~callbacks.{name} leaves it out)"
            )
        if isinstance(callback, Recorder):
            callback.check(data)
            check_table(callback)
            if callback.table in owners:
                raise ValueError(
                    f"callbacks.{name}: callbacks.{owners[callback.table]} already has a table "
                    f"{callback.table!r}; give it another name"
                )
            owners[callback.table] = name


def build_trainer(
    config: DictConfig, callbacks: list[L.Callback], logger: Any, folder: Path
) -> L.Trainer:
    """The trainer of a config, for one process; Lightning's own files go to `folder`."""
    # At level INFO Lightning lists devices and advertises products.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    make_trainer = instantiate(config.trainer, _partial_=True, _convert_="all")
    trainer: L.Trainer = make_trainer(
        # So that a value that a callback logs by `self.log` is kept for every block of steps.
        log_every_n_steps=config.trainer.get("log_every_n_steps", 1),
        callbacks=callbacks,
        logger=logger,
        # Otherwise Lightning adds a checkpoint callback of its own.
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        default_root_dir=folder,
        # A job is one process, whatever the cluster's environment says.
        plugins=[LightningEnvironment()],
    )
    return trainer


def conclude(
    running: run_directory.Job, model: TMS, data: EnsembleData, logger: Any, *, draw: bool
) -> Results:
    """Write the record of a trained ensemble and log its results."""
    # Rich shows this on a terminal only.
    with Console().status("drawing figures") if draw else nullcontext():
        results = write(running.directory, model, data, draw=draw)
    running.report(1.0, results.summary)
    log_results(logger, results.summary, results.tables, results.figures)
    # The artifact `run` has all that kgon llc run=FOLDER needs.
    run = "config.yaml status.json weights.safetensors members.parquet"
    artifacts, texts = {"run": run, "llc": "llc.parquet"}, {"status.json": running.as_finished()}
    log_artifacts(logger, running.directory.path, artifacts, results.summary, texts)
    return results
