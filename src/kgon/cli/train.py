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
from kgon.model import TMS
from kgon.training import check_trainer, train


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    configs.run("train", task, check)


def build(config: DictConfig) -> Any:
    """Instantiate a node; a constructor's own complaint comes out as it is."""
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def check(config: DictConfig) -> None:
    """Build, with one member, everything that can refuse a value; ValueError says what."""
    small = config.copy()
    configs.plain(config)
    small.members = 1
    build(small.model)
    build(small.datamodule)
    build(small.get("callbacks") or {})
    check_trainer(build_trainer(small, [], False))


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
