"""Running a command line through Hydra: one job, or a sweep."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from kgon.launch import config as configs
from kgon.launch import options
from kgon.launch.jobs import say_finished
from kgon.launch.options import CONF
from kgon.launch.overrides import Composed, check_overrides, first_line
from kgon.launch.own_folders import with_own_folders
from kgon.launch.standing import standing_table
from kgon.record import sweeps
from kgon.record.run_directory import RunDirectory
from kgon.tracking import account
from kgon.tracking.opening import awaited
from kgon.tracking.opening import check as check_logger

Task = Callable[[DictConfig], float | None]

_FOLDERS = {
    ("run", "dir"): "${kgon.directory:}",
    ("sweep", "dir"): "${runs.dir}",
    ("sweep", "subdir"): "${kgon.identity:}",
    ("job", "chdir"): False,
}
"""The values of Hydra's settings for a run's folder, from conf/runs/default.yaml."""

_HYDRA_SHOWS = {"--hydra-help", "--info", "-i", "--cfg", "-c"}
"""Flags with which Hydra prints something and runs no job."""

_REFUSED = {"--config-name", "-cn", "--config-path", "-cp"}
"""Flags with which Hydra would compose another config than the one that kgon checks."""


def run(command: str, task: Task, check: Callable[[DictConfig], None]) -> None:
    """Check every override of the command line, then run its job or sweep through Hydra.

    Bad input ends the process with one line and status 2 before any job has started.
    """
    configs.register_resolvers()
    start = hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(task)
    try:
        sys.argv[1:] = with_own_folders(command, sys.argv[1:])
    except ValueError as error:
        refuse(command, str(error))
    for word in sys.argv[1:]:
        if word.partition("=")[0] in _REFUSED:
            refuse(command, f"{word}: kgon {command} has one config; for options of your own give "
                   "their folder: --config-dir FOLDER")  # fmt: skip
    if _HYDRA_SHOWS & set(sys.argv):
        start()
        return
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    overrides = [word for word in words if "=" in word or word.startswith("~")]
    # Hydra takes overrides only without flags between them.
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in overrides] + overrides
    several = bool({"-m", "--multirun"} & set(sys.argv))
    try:
        composed, swept = composed_and_checked(command, overrides, check, several)
        several |= composed.hydra.mode == RunMode.MULTIRUN
    except (ValueError, OmegaConfBaseException) as error:
        refuse(command, first_line(error))
    if several:
        if awaited():
            refuse(
                command,
                "-m: WANDB_SWEEP_ID is set, so the agent of a W&B sweep expects one run; leave out "
                "-m, or unset WANDB_SWEEP_ID",
            )
        # Set here, because a default in conf/ would keep an experiment from choosing a sweeper.
        own = {
            "basic": "hydra/sweeper=kgon",
            "optuna": "hydra.sweeper._target_=hydra_plugins.kgon.OptunaSweeper",
        }
        if sweeper := own.get(composed.hydra.runtime.choices["hydra/sweeper"]):
            sys.argv.append(sweeper)
        name = sweeps.name(command, overrides)
        sys.exit(_sweep(start, sweeps.Sweep(Path(composed.config.runs.dir), name)))
    if swept:
        refuse(command, f"{swept[0]}: several values need -m, which runs one job for each")
    if "runs" in options.groups(command):
        directory = RunDirectory(configs.directory(composed.config))
        if directory.path.is_dir() and not os.access(directory.path, os.W_OK, effective_ids=True):
            if directory.status()["state"] == "finished" and not composed.config.runs.overwrite:
                say_finished(directory, configs.written(composed.config))
                return
            owner = directory.path.owner()
            refuse(command, f"{directory.path} belongs to {owner}; set another folder: runs.dir=")
    start()


def composed_and_checked(
    command: str, overrides: list[str], check: Callable[[DictConfig], None], several: bool
) -> tuple[Composed, list[str]]:
    """As `check_overrides`. It also raises ValueError for an API key in the overrides, a wrong
    setting of the logger or of the run's folder."""
    account.check_no_key(word.lstrip("+~").partition("=")[::2] for word in overrides)
    overrides = with_own_folders(command, overrides)
    composed, swept = check_overrides(command, overrides, check)
    account.check_no_key(configs.leaves(composed.config))
    if logger := composed.config.get("logger"):
        check_logger(logger, several=several or composed.hydra.mode == RunMode.MULTIRUN)
    if "runs" in options.groups(command):
        _check_folders(composed.hydra)
    return composed, swept


def _check_folders(hydra_config: DictConfig) -> None:
    """Raise ValueError if a setting of Hydra would change the folder of a run."""
    written: Any = OmegaConf.to_container(hydra_config, resolve=False)
    for (section, name), own in _FOLDERS.items():
        if written[section][name] != own:
            raise ValueError(
                f"hydra.{section}.{name}={written[section][name]}: a run's folder is always "
                "<runs.dir>/<command>-<hash of its config>, and paths are relative to the current "
                "folder; set runs.dir instead"
            )


def _sweep(start: Callable[[], None], sweep: sweeps.Sweep) -> int:
    """Run a sweep, show the states of its jobs in any case, and return the exit status."""
    os.environ[sweeps.VARIABLE] = sweep.name
    status = 0
    try:
        start()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        runs = [sweeps.standing(point) for point in sweep.points()]
        Console().print(standing_table(runs, sweep.name))
    return status or int(any(run.state == "failed" for run in runs))


def refuse(command: str, message: str) -> NoReturn:
    """End the process with a one-line error about bad input and status 2."""
    print(f"kgon {command}: error: {message}", file=sys.stderr)
    sys.exit(2)
