"""One job of any command: its folder, status and logger, from the first line to the exit code."""

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from kgon.launch import config as configs
from kgon.record import run_directory, sweeps
from kgon.tracking.logger import awaited, log_record, tracked
from kgon.training.checkpoints import Stopped

Work = Callable[[DictConfig, run_directory.Job, Any], Callable[[], None]]


def build(config: Any) -> Any:
    """Instantiate a node; a constructor's own complaint comes out as it is."""
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def dtype_of(config: DictConfig) -> torch.dtype:
    """The parameters' dtype; ValueError says what is allowed."""
    dtypes = {"float64": torch.float64, "float32": torch.float32}
    if config.dtype not in dtypes:
        raise ValueError(f"dtype must be float64 or float32, got {config.dtype}")
    return dtypes[config.dtype]


def check_runs(config: DictConfig) -> None:
    """Refuse a value of `runs` that means nothing; ValueError says what is allowed."""
    for name, allowed in {"retry": (None, "failed"), "busy": ("leave", "wait")}.items():
        if config.runs[name] not in allowed:
            words = " or ".join("null" if word is None else word for word in allowed)
            raise ValueError(f"runs.{name} must be {words}, got {config.runs[name]}")
    folder = Path(config.runs.dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"runs.dir={config.runs.dir}: {there} is no folder that one may write to")


def job(work: Work) -> Callable[[DictConfig], float | None]:
    """A Hydra task from `work(config, job, logger)`, which returns what to print at the end.

    A directory whose status says finished is left alone (runs.overwrite=true clears it first), and
    one where another process is at work. In a sweep a point that failed before counts as failed
    again, without a new try, unless runs.retry=failed. The status and the logger's run end as the
    job ends, whatever happens.

    The task returns the summary's number that runs.objective names, for sweepers that optimise.
    """

    @functools.wraps(work)
    def task(config: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        directory = run_directory.RunDirectory(Path(hydra.runtime.output_dir))
        sweep = sweeps.Sweep.current(Path(config.runs.dir))
        if sweep:
            sweep.add(directory.path.name)
        try:
            with directory.lock(wait=config.runs.busy == "wait"):
                status = directory.status()
                if status["state"] == "finished" and not config.runs.overwrite:
                    print(
                        f"{directory.path} is finished already; runs.overwrite=true runs it again"
                    )
                    if awaited():
                        _show(config, directory.path)
                    return objective(config.runs.objective, status)
                in_sweep = hydra.mode == RunMode.MULTIRUN
                if status["state"] == "failed" and in_sweep and config.runs.retry != "failed":
                    raise RuntimeError(
                        f"failed before, runs.retry=failed runs it again: {status['error']}"
                    )
                if config.runs.overwrite:
                    directory.clear()
                print_results = _work(work, config, directory, list(hydra.overrides.task))
        except run_directory.Busy as busy:
            print(f"{busy}; left to it (runs.busy=wait waits)")
            return None
        print_results()
        return objective(config.runs.objective, directory.status())

    return task


def objective(name: str | None, status: dict[str, Any]) -> float | None:
    """The number of a finished job's summary that runs.objective names, or None without a name."""
    if name is None:
        return None
    if not isinstance(status["metrics"].get(name), int | float):
        known = ", ".join(k for k, v in status["metrics"].items() if not isinstance(v, str))
        raise ValueError(f"runs.objective={name} is no number of the summary; there are {known}")
    return float(status["metrics"][name])


def _work(
    work: Work, config: DictConfig, directory: run_directory.RunDirectory, overrides: list[str]
) -> Callable[[], None]:
    settings = configs.plain(config)
    with directory.job(config.command, overrides, settings) as running, stoppable():
        logger = build(config.logger)
        with tracked(logger, settings):
            return work(config, running, logger)


def _show(config: DictConfig, directory: Path) -> None:
    """Give a W&B sweep the record of a point that need not be run again."""
    logger = build(config.logger)
    with tracked(logger, configs.plain(config)):
        log_record(logger, directory)


@contextmanager
def stoppable() -> Iterator[None]:
    """Tell apart a job that was told to stop (`Stopped`) from one that ends itself.

    SIGTERM stops a job, unless somebody (submitit) has plans with it. An exit of the job's own is
    an error like others: a sweep goes on with its next point.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(128 + signum)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Stopped:
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # what Lightning makes of Ctrl-C
            raise Stopped(128 + signal.SIGINT) from end
        raise RuntimeError(f"the job exited with status {end.code}") from end
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
