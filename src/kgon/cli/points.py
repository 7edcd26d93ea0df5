"""The points of a sweep: what each one's overrides make of the config, and where its run lives."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from kgon import runs, sweeps
from kgon.cli import config as configs


@dataclass(frozen=True)
class Point:
    """One job of a sweep.

    Attributes:
        overrides: its words.
        task: those of them that are not Hydra's own.
        settings: the resolved config, as `configs.plain` has it.
        directory: of its run.
        logger: the config of its logger, resolved.
    """

    overrides: tuple[str, ...]
    task: tuple[str, ...]
    settings: dict[str, Any]
    directory: runs.RunDirectory
    logger: Any

    @property
    def command(self) -> str:
        """The kgon command that it is a job of."""
        return str(self.settings["command"])


def points(
    loader: ConfigLoader, master: DictConfig, overrides: Sequence[Sequence[str]]
) -> list[Point]:
    """The points with these overrides, in order.

    Hydra composes a config from files in some 50 ms. Points that choose the same files differ in
    values only, which are put into one config after another: a tenth of the time.
    """
    composed: dict[tuple[str, ...], DictConfig] = {}
    found = []
    for words in overrides:
        files = tuple(word for word in words if not _is_value(_parsed(word)))
        if files not in composed:
            composed[files] = _compose(loader, master, files)
        config = composed[files]
        values = [word for word in words if word not in files]
        try:
            for word in values:
                override = _parsed(word)
                OmegaConf.update(config, override.key_or_group, override.value(), merge=False)
        except Exception as error:
            # A key of another group's option: Hydra knows in which order to compose.
            raise ValueError(f"{' '.join(words)}: {error}") from error
        found.append(_point(config, words))
    return found


def _compose(loader: ConfigLoader, master: DictConfig, words: Sequence[str]) -> DictConfig:
    config = loader.load_sweep_config(master, list(words))
    with open_dict(config):
        hydra = config.pop("hydra")
    del hydra
    return config


def _point(config: DictConfig, words: Sequence[str]) -> Point:
    settings = configs.plain(config)
    name = runs.identity(str(config.command), settings)
    return Point(
        overrides=tuple(words),
        task=tuple(word for word in words if not _parsed(word).is_hydra_override()),
        settings=settings,
        directory=runs.RunDirectory(Path(config.runs.dir) / name),
        logger=_logger(config, settings, Path(config.runs.dir) / name),
    )


def _logger(config: DictConfig, settings: dict[str, Any], directory: Path) -> Any:
    """The logger's config, with the identity put in where resolving would compute it again."""
    text = OmegaConf.to_yaml(config.logger) if config.get("logger") is not None else "{}"
    text = text.replace("${kgon.directory:}", str(directory))
    text = text.replace("${kgon.identity:}", directory.name)
    return OmegaConf.create(settings | {"logger": OmegaConf.create(text)}).logger


@cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _is_value(override: Override) -> bool:
    """Whether an override puts a value where the config has one already."""
    plain = not (override.is_add() or override.is_delete() or override.is_force_add())
    group = (configs.CONF / override.key_or_group).is_dir()
    return plain and not group and not override.is_hydra_override()


def announce(known: Sequence[Point], config: DictConfig) -> None:
    """Note the points in their sweep, and say `pending` of those of which nothing is known."""
    sweep = sweeps.Sweep.current(Path(config.runs.dir))
    for point in known:
        if sweep:
            sweep.add(point.directory.path.name)
        point.directory.announce(point.command, point.task)


def waiting(known: Sequence[Point], config: DictConfig) -> list[Point]:
    """The points that a sweep has to run: not those finished, nor, unless runs.retry=failed, those
    that failed before. runs.overwrite=true runs all. Equal points are one."""
    done = {"finished"} if config.runs.retry == "failed" else {"finished", "failed"}
    chosen = {
        point.directory.path: point
        for point in known
        if config.runs.overwrite or point.directory.status()["state"] not in done
    }
    return list(chosen.values())
