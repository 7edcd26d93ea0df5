"""One job of any command: its folder, status and logger, from the first line to the exit code."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from kgon import runs, tracking
from kgon.cli import config as configs

Work = Callable[[DictConfig, runs.RunDirectory, Any], Callable[[], None]]


def build(config: Any) -> Any:
    """Instantiate a node; a constructor's own complaint comes out as it is."""
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def job(work: Work) -> Callable[[DictConfig], None]:
    """A Hydra task from `work(config, directory, logger)`, which returns what to print at the end.

    A directory whose status says finished is left alone (runs.overwrite=true clears it first). The
    status and the logger's run end as the job ends, whatever happens.
    """

    @functools.wraps(work)
    def task(config: DictConfig) -> None:
        hydra = HydraConfig.get()
        directory = runs.RunDirectory(Path(hydra.runtime.output_dir))
        finished = directory.status()["state"] == "finished"
        if finished and not config.runs.overwrite:
            print(f"{directory.path} is finished already; runs.overwrite=true runs it again")
            return
        settings = configs.plain(config)
        with directory.job(config.command, hydra.overrides.task, settings):
            if finished:
                directory.clear()
            logger = build(config.logger)
            with tracking.tracked(logger, settings):
                print_results = work(config, directory, logger)
        print_results()

    return task
