"""What the command line does, from Python: compose a config, and train by it."""

import inspect
import json
from collections.abc import Sequence
from importlib import import_module

from omegaconf import DictConfig

from kgon.cli import CONFIGURED
from kgon.cli.train import check, task
from kgon.launch import config as configs
from kgon.launch.command_line import composed_and_checked
from kgon.launch.jobs import perform
from kgon.record.frames import Record, load
from kgon.record.run_directory import RunDirectory, leaves
from kgon.training.checkpoints import Stopped


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of `kgon COMMAND OVERRIDES...`, checked as the command line checks it.

    Args:
        command: train, llc, posterior, atlas or paper.
        overrides: such as "model.n_features=8" or "optimizer=adam", each with one value.

    Raises:
        ValueError: a word or a value is wrong; the message names it, and what is allowed.
    """
    if command not in CONFIGURED:
        raise ValueError(f"command must be one of {', '.join(CONFIGURED)}, got {command}")
    if isinstance(overrides, str):
        raise ValueError(f"overrides must be a list of words, got {overrides!r}")
    configs.register_resolvers()
    own = import_module(f"kgon.cli.{command}").check
    composed, swept = composed_and_checked(command, list(overrides), own, several=False)
    if swept:
        raise ValueError(f"{swept[0]}: a config has one value of each setting")
    return composed.config


def train(config: DictConfig) -> Record:
    """Train by a config of `compose("train", ...)` as `kgon train` does, and load the run.

    The run's folder is the one of the command line: what has finished before is loaded, and what
    was interrupted goes on. Settings that differ from the defaults are recorded as overrides.

    Raises:
        ValueError: a setting is wrong.
        Busy: another process is training this run.
        EndedEarly: training ended at trainer.max_time; the same call goes on.
    """
    if config.command != "train":
        raise ValueError(f"config must be one of kgon train, got one of kgon {config.command}")
    check(config)
    directory = RunDirectory(configs.directory(config))
    try:
        perform(inspect.unwrap(task), config, directory, _changed(config))
    except Stopped as stopped:  # in a session Ctrl-C ends the job and not the process
        raise KeyboardInterrupt from stopped
    return load(directory.path)


def _changed(config: DictConfig) -> list[str]:
    """The settings that differ from the defaults, as overrides."""
    default, own = (dict(leaves(configs.written(c))) for c in (compose("train"), config))
    words = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in own.items()
        if name not in default or default[name] != value
    ]
    return words + list(dict.fromkeys(_removed(name, own) for name in default if name not in own))


def _removed(name: str, own: dict[str, object]) -> str:
    """~NAME of the largest section with this setting of which a config has nothing."""
    parts = name.split(".")
    sections = (".".join(parts[:i]) for i in range(1, len(parts)))
    gone = (s for s in sections if not any(k == s or k.startswith(f"{s}.") for k in own))
    return f"~{next(gone, name)}"
