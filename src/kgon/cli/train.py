"""kgon train: build the objects of a config, train, leave a record."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from kgon import record, runs, tracking
from kgon.cli import config as configs
from kgon.datamodule import EnsembleData
from kgon.memory import check_fits
from kgon.model import TMS
from kgon.schedule import Schedule
from kgon.training import check_trainer, train


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    configs.run("train", task, check)


def build(config: Any) -> Any:
    """Instantiate a node; a constructor's own complaint comes out as it is."""
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def check(config: DictConfig) -> None:
    """Build, with one member, everything that can refuse a value; ValueError says what."""
    configs.plain(config)
    check_memory(config)
    small = config.copy()
    small.members = 1
    build(small.model)
    build(small.datamodule)
    build(small.get("callbacks") or {})
    check_trainer(build_trainer(small, [], False))


def check_memory(config: DictConfig) -> None:
    """Refuse a job whose data sets and record would not fit; it does not grow with the steps."""
    n_members = len(config.datamodule.members)
    n, m = config.model.n_features, config.model.n_hidden
    # Data sets are kept as inputs and, sorted, with three running sums.
    data = 8 * n_members * (config.n_samples or 0) * (n + 4)
    schedule = Schedule(max_steps=config.trainer.max_steps, **config.schedule)
    # The record is stacked once more to be written.
    record = 2 * schedule.bytes_recorded(n_members, m, n)
    check_fits(
        data + record,
        f"{n_members} members with n_samples={config.n_samples}, n_features={n}, n_hidden={m}, "
        f"{len(schedule.losses)} losses and {len(schedule.snapshots)} snapshots",
        "take fewer members, samples, schedule.n_losses or schedule.n_snapshots",
    )


def build_trainer(config: DictConfig, callbacks: list[L.Callback], logger: Any) -> L.Trainer:
    # What Lightning says at INFO is about itself: devices found, products to try.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = instantiate(config.trainer, _partial_=True, _convert_="all")
    return trainer(
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=bool(callbacks),
        default_root_dir=config.runs.dir,
    )


def task(config: DictConfig) -> None:
    """One job: Hydra calls it with a composed config."""
    hydra = HydraConfig.get()
    directory = runs.RunDirectory(Path(hydra.runtime.output_dir))
    state = directory.status()["state"]
    if state == "finished" and not config.runs.overwrite:
        print(f"{directory.path} is finished already; runs.overwrite=true runs it again")
        return
    settings = configs.plain(config)
    with directory.job("train", hydra.overrides.task, settings):
        if state == "finished":
            directory.clear()
        logger = build(config.logger)
        with tracking.tracked(logger, settings):
            model: TMS = build(config.model)
            data: EnsembleData = build(config.datamodule)
            callbacks = list(build(config.get("callbacks") or {}).values())
            trainer = build_trainer(config, callbacks, logger)
            train(model, data, trainer, directory.path)
            results = record.write(directory, model, data)
            tracking.log_results(logger, results.summary, results.tables, results.figures)
            looks = tracking.where_to_look(logger)
    record.print_results(results, directory.path, looks)
