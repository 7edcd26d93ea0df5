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

from kgon.launch import config as configs
from kgon.record import run_directory, sweeps


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
    directory: run_directory.RunDirectory
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
    composed: dict[tuple[str, ...], _Composed] = {}
    found = []
    for words in overrides:
        files = tuple(word for word in words if not _is_value(_parsed(word)))
        if files not in composed:
            composed[files] = _Composed(loader.load_sweep_config(master, list(words)))
        try:
            for word in words:
                if word not in files:
                    composed[files].put(_parsed(word))
        except Exception as error:
            # A key of another group's option: Hydra knows in which order to compose.
            raise ValueError(f"{' '.join(words)}: {error}") from error
        found.append(composed[files].point(words))
    return found


class _Composed:
    """A composed config, taken apart once into what decides the identity and the logger's part."""

    def __init__(self, config: DictConfig):
        self.config = configs.before_identity(config)
        self.logger = OmegaConf.create({"logger": None})
        if config.get("logger") is not None:
            self.logger.logger = OmegaConf.to_container(config.logger, resolve=False)

    def put(self, override: Override) -> None:
        key = override.key_or_group
        part = self.logger if key.startswith("logger.") else self.config
        OmegaConf.update(part, key, override.value(), merge=False)

    def point(self, words: Sequence[str]) -> Point:
        settings = configs.resolved(self.config)
        directory = Path(self.config.runs.dir) / run_directory.identity(
            self.config.command, settings
        )
        return Point(
            overrides=tuple(words),
            task=tuple(word for word in words if not _parsed(word).is_hydra_override()),
            settings=settings,
            directory=run_directory.RunDirectory(directory),
            logger=self._logger_of(directory),
        )

    def _logger_of(self, directory: Path) -> Any:
        """The logger's config, with the identity put in where resolving would compute it again."""
        text = OmegaConf.to_yaml(self.logger)
        text = text.replace("${kgon.directory:}", str(directory))
        text = text.replace("${kgon.identity:}", directory.name)
        with open_dict(self.config):
            self.config.logger = OmegaConf.create(text).logger
            whole = OmegaConf.to_container(self.config.logger, resolve=True)
            del self.config.logger
        return None if whole is None else OmegaConf.create(whole)


@cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _is_value(override: Override) -> bool:
    """Whether an override puts a value where the config has one already."""
    plain = not (override.is_add() or override.is_delete() or override.is_force_add())
    group = (configs.CONF / override.key_or_group).is_dir()
    computed = "${" in str(override.input_line)  # who knows from what
    return plain and not group and not computed and not override.is_hydra_override()


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
