"""The jobs of a sweep: their configs and run directories."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from kgon.launch import config as configs
from kgon.launch.overrides import Composer, parse
from kgon.record import provenance, run_directory, sweeps


@dataclass(frozen=True)
class Point:
    """One job of a sweep.

    Attributes:
        overrides: its overrides.
        written: its config by `configs.written`, which leaves out the logger.
        logger_written: the config of its logger.
        directory: the directory of its run.
    """

    overrides: tuple[str, ...]
    written: dict[str, Any]
    logger_written: Any
    directory: run_directory.RunDirectory

    @property
    def task(self) -> list[str]:
        """The overrides that are not Hydra's own."""
        return [word for word in self.overrides if not parse(word).is_hydra_override()]

    @property
    def command(self) -> str:
        return str(self.written["command"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config without the logger, every interpolation replaced by its value."""
        return configs.resolved(OmegaConf.create(self.written))

    @property
    def logger(self) -> Any:
        return OmegaConf.create({**self.written, "logger": self.logger_written}).logger


def points(
    loader: ConfigLoader, master: DictConfig, overrides: Sequence[Sequence[str]]
) -> list[Point]:
    """The jobs with these overrides, in order."""
    compose = Composer(lambda words: loader.load_sweep_config(master, list(words)))
    found = []
    for words in overrides:
        config = compose(words).config
        logger: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, "logger"), resolve=False)
        directory = run_directory.RunDirectory(configs.directory(config))
        found.append(Point(tuple(words), configs.written(config), logger.get("logger"), directory))
    return found


def waiting(known: Sequence[Point], config: DictConfig) -> list[Point]:
    """The jobs that a sweep has to run, without duplicates.

    With runs.overwrite=true these are all jobs, otherwise those that have not finished and, unless
    runs.retry=failed, have not failed after they had begun. All jobs are added to the sweep, and
    become `pending` if they had no status.
    """
    sweep = sweeps.Sweep.current(Path(config.runs.dir))
    chosen = {}
    changed: Counter[str] = Counter()
    for point in known:
        if sweep:
            sweep.add(point.directory.path.name)
        point.directory.announce(point.command, point.task)
        status = point.directory.status()
        failed = run_directory.has_failed(status) and config.runs.retry != "failed"
        if config.runs.overwrite or not (failed or status["state"] == "finished"):
            chosen[point.directory.path] = point
        elif status["state"] == "finished":
            changed.update(provenance.changes(status.get("code"), point.written))
    for change, count in changed.items():
        print(f"warning: {count} finished: {change}; runs.overwrite=true repeats all",
              file=sys.stderr)  # fmt: skip
    return list(chosen.values())
