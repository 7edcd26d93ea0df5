"""From a command line to Hydra: one job, or a sweep."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import run_and_report
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kgon.launch import config as configs
from kgon.launch.overrides import check_overrides, first_line
from kgon.launch.standing import print_standing
from kgon.record import sweeps
from kgon.tracking.logger import awaited


def run(
    config_name: str,
    task: Callable[[DictConfig], float | None],
    check: Callable[[DictConfig], None],
) -> None:
    """Hand the command line to Hydra, after every override of it has been checked.

    Bad input ends here, with one line and status 2, before any job has started.
    """
    configs.register_resolvers()
    overrides = [word for word in sys.argv[1:] if _is_override(word)]
    if not {"--help", "-h", "--hydra-help", "--info", "-i", "--cfg", "-c"} & set(sys.argv):
        try:
            config, swept = check_overrides(config_name, overrides, check)
        except (ValueError, OmegaConfBaseException) as error:
            refuse(config_name, first_line(error))
        if {"-m", "--multirun"} & set(sys.argv) or config.hydra.mode == RunMode.MULTIRUN:
            if awaited():
                refuse(config_name, "-m: the agent of a W&B sweep waits for one run; leave out -m")
            # An experiment may choose another sweeper, which it could not if ours were a default.
            if config.hydra.runtime.choices["hydra/sweeper"] == "basic":
                sys.argv.append("hydra/sweeper=kgon")
            name = sweeps.name(config_name, overrides)
            sys.exit(_sweep(config_name, task, sweeps.Sweep(Path(config.runs.dir), name)))
        if swept:
            refuse(config_name, f"{swept[0]}: several values are a job each, with -m")
        if overrides == sys.argv[1:]:
            run_and_report(lambda: _run_one(config_name, task, config))
            return
    _start(config_name, task)


def _run_one(
    config_name: str, task: Callable[[DictConfig], float | None], config: DictConfig
) -> None:
    """What Hydra's main does with one job and no flags, with the config that was checked: composing
    takes longer than anything else on the way to a job's first step, and Hydra would do it twice
    more."""
    with hydra.initialize_config_dir(str(configs.CONF), job_name=config_name, version_base="1.3"):
        config.hydra.mode = config.hydra.mode or RunMode.RUN
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=config_name)
        done = run_job(
            task_function=task,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(GlobalHydra.instance().config_loader(), callbacks),
        )
        callbacks.on_run_end(config=config, config_name=config_name, job_return=done)
        _ = done.return_value  # raises what the job has raised


def _start(config_name: str, task: Callable[[DictConfig], float | None]) -> None:
    hydra.main(version_base="1.3", config_path=str(configs.CONF), config_name=config_name)(task)()


def _sweep(
    config_name: str, task: Callable[[DictConfig], float | None], sweep: sweeps.Sweep
) -> int:
    """Run a sweep, show how its points stand whatever ends it, and return the exit status."""
    os.environ[sweeps.VARIABLE] = sweep.name
    status = 0
    try:
        _start(config_name, task)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        rows = sweeps.standing(sweep.points())
        print_standing(rows, sweep.name)
    return status or int(any(row["state"] == "failed" for row in rows))


def refuse(command: str, message: str) -> NoReturn:
    """End the process with one line about bad input."""
    print(f"kgon {command}: error: {message}", file=sys.stderr)
    sys.exit(2)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))
