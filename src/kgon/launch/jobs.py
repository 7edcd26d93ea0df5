"""One job of any command: its folder, status and logger."""

import functools
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import ismodule
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from kgon import files
from kgon.compiled.machine import one_torch_thread
from kgon.launch import config as configs
from kgon.launch.own_folders import make_importable, nearest, own_folders
from kgon.record import provenance, run_directory, sweeps
from kgon.tracking.logger import log_record, tracked
from kgon.tracking.opening import awaited
from kgon.training.checkpoints import FOLDER, EndedEarly, Stopped, newest

# A job is one process, whatever rank an environment such as srun's gives it: on any other rank than
# 0, Lightning's loggers write nothing.
rank_zero_only.rank = 0  # type: ignore[attr-defined]

Work = Callable[[DictConfig, run_directory.Job, Any], Callable[[], None]]


def say_finished(directory: run_directory.RunDirectory, settings: dict[str, Any]) -> None:
    """Print that a run has finished before, and whether that was with other code."""
    print(f"{directory.path} has finished before. Use runs.overwrite=true to repeat.")
    for change in provenance.changes(directory.status().get("code"), settings):
        print(f"warning: it was {change}; runs.overwrite=true repeats it", file=sys.stderr)


def build(config: Any) -> Any:
    """Instantiate a node of a config.

    Raises:
        ValueError: the constructor's own; or one line about what is wrong with a `_target_`, its
            settings or its code.
    """
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, ValueError):
            raise cause or error from None
        key = re.search(r"full_key: (\S+)", str(error))
        raise ValueError(f"{key[1]}: {_why(cause)}" if key else _why(cause)) from error


def _why(error: BaseException) -> str:
    """An error of a `_target_` in one line, with the place if it is in a user's own module."""
    inner = error.__cause__  # of Hydra's import error: the error in the module
    if isinstance(error, ImportError) and inner and not isinstance(inner, ImportError):
        error = inner
    frames = traceback.extract_tb(error.__traceback__)
    files = [(Path(frame.filename), frame.lineno) for frame in frames]
    own = [(file, line) for file, line in files if file.is_file() and provenance.is_own(file)]
    place = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    why = " ".join(str(error).split())
    if isinstance(error, TypeError) and "missing" in why and not own:
        return f"{why} (with _partial_: true, kgon gives what is missing)"
    if why.endswith("is installed?"):
        why += " The current folder and that of --config-dir were searched, too."
    if missing := _missing_name(error):
        return missing
    plain = isinstance(error, ImportError | TypeError)
    return f"{why if plain else f'{type(error).__name__}: {why}'}{place}"


def _missing_name(error: BaseException) -> str:
    """That a module has no such name, where Hydra says that it is not a package; or nothing."""
    inner = error.__cause__
    if not isinstance(inner, ModuleNotFoundError):
        return ""
    name, _, missing = (inner.name or "").rpartition(".")
    module = sys.modules.get(name)
    if module is None or not str(error).startswith(f"Error loading '{inner.name}"):
        return ""
    place = getattr(module, "__file__", None) or name
    there = [k for k, v in vars(module).items() if not (k.startswith("_") or ismodule(v))]
    return f"Error loading '{inner.name}': {place} has no {missing!r}{nearest(missing, there)}"


def dtype_of(config: DictConfig) -> torch.dtype:
    """The dtype of parameters; ValueError unless it is float64 or float32."""
    dtypes = {"float64": torch.float64, "float32": torch.float32}
    if config.dtype not in dtypes:
        raise ValueError(f"dtype must be float64 or float32, got {config.dtype}")
    return dtypes[config.dtype]


def check_runs(config: DictConfig) -> None:
    """Raise ValueError if a value of `runs` is not allowed, or runs.dir is not writable."""
    for name, allowed in {"retry": (None, "failed"), "busy": ("leave", "wait")}.items():
        if config.runs[name] not in allowed:
            words = " or ".join("null" if word is None else word for word in allowed)
            raise ValueError(f"runs.{name} must be {words}, got {config.runs[name]}")
    folder = Path(config.runs.dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"runs.dir={config.runs.dir}: {existing} is not a writable directory")
    try:
        with tempfile.TemporaryFile("w", dir=existing) as probe:
            files.try_lock(probe)
    except OSError as error:
        raise ValueError(
            f"runs.dir={config.runs.dir}: {existing} takes no locked files ({error.strerror}); it "
            "must be on a file system with flock (Lustre: mounted with -o flock)"
        ) from error


def job(work: Work) -> Callable[[DictConfig], float | None]:
    """Make a Hydra task from `work(config, job, logger)`, which returns a function that prints.

    The task does nothing if the job has finished before (unless runs.overwrite=true) or another
    process is running it. In a sweep, a job that failed before fails again at once unless
    runs.retry=failed. The task returns the result that runs.objective names.
    """

    @functools.wraps(work)
    def task(config: DictConfig) -> float | None:
        end_with_launcher()
        hydra = HydraConfig.get()
        make_importable(own_folders(hydra.searchpath))
        directory = run_directory.RunDirectory(Path(hydra.runtime.output_dir))
        sweep = sweeps.Sweep.current(Path(config.runs.dir))
        if sweep:
            sweep.add(directory.path.name)
        in_sweep = hydra.mode == RunMode.MULTIRUN
        try:
            print_results = perform(work, config, directory, list(hydra.overrides.task), in_sweep)
        except run_directory.Busy as busy:
            print(f"{busy}; skipping it. Use runs.busy=wait to wait for it.")
            return None
        except EndedEarly as early:
            print(f"{directory.path}: {early}")
            return None
        except Stopped:
            saved = newest(directory.path / FOLDER) is not None
            how = "goes on from its last checkpoint" if saved else "starts again"
            print(f"{directory.path} is interrupted; the same command {how}", file=sys.stderr)
            raise
        if print_results:
            print_results()
        return objective(config.runs.objective, directory.status())

    return task


def perform(
    work: Work,
    config: DictConfig,
    directory: run_directory.RunDirectory,
    overrides: list[str],
    in_sweep: bool = False,
) -> Callable[[], None] | None:
    """Do a job in its folder.

    Returns a function that prints its results, or None if the job has finished before.
    """
    settings = configs.written(config)
    with directory.lock(wait=config.runs.busy == "wait"):
        status = directory.status()
        if status["state"] == "finished" and not config.runs.overwrite:
            say_finished(directory, settings)
            if awaited():
                # The agent of a W&B sweep waits for the results.
                logger = build(config.logger)
                with tracked(logger, settings):
                    log_record(logger, directory.path)
            return None
        again = config.runs.overwrite or config.runs.retry == "failed"
        if run_directory.has_failed(status) and in_sweep and not again:
            raise RuntimeError(
                f"failed before (use runs.retry=failed to try again): {status['error']}"
            )
        if config.runs.overwrite:
            directory.clear()
        # Instantiating a node resolves its references in place, which would change the identity.
        plain = OmegaConf.create(configs.resolved(config))
        with (
            directory.job(plain.command, overrides, settings) as running,
            stoppable(),
            one_torch_thread(),
        ):
            logger = build(plain.logger)
            with tracked(logger, settings):
                return work(plain, running, logger)


def objective(name: str | None, status: dict[str, Any]) -> float | None:
    """The result of a finished job that runs.objective names; None if it names none."""
    if name is None:
        return None
    if not isinstance(status["metrics"].get(name), int | float):
        known = ", ".join(k for k, v in status["metrics"].items() if not isinstance(v, str))
        raise ValueError(f"runs.objective={name} is not a number in the summary, which has {known}")
    return float(status["metrics"][name])


PARENT = "KGON_PARENT"
"""Environment variable with the process id of the launcher, for its worker processes."""


def end_with_launcher() -> None:
    """Let a worker process send itself SIGTERM every second once its launcher is gone.

    The first SIGTERM stops the job. The next one stops the worker's next job, or else the process.
    """
    parent = os.environ.get(PARENT)
    if parent == str(os.getppid()):
        threading.Thread(target=_watch, args=[int(parent)], daemon=True).start()
        del os.environ[PARENT]


def _watch(parent: int) -> None:
    while True:
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` if a signal stops the job (`signals_stop`), and RuntimeError if it exits.

    The exit of a job is an error like any other, after which a sweep runs its next job.
    """
    try:
        with signals_stop():
            yield
    except Stopped:
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise Stopped(128 + signal.SIGINT) from end
        raise RuntimeError(f"the job exited with status {end.code}") from end


@contextmanager
def signals_stop() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise `Stopped`, unless they have other handlers, as submitit's.

    A second Ctrl-C ends the process at once.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        # A later signal may arrive while the status is being written.
        for each in ours:
            signal.signal(each, signal.SIG_DFL if each == signal.SIGINT else signal.SIG_IGN)
        raise Stopped(128 + signum)

    defaults: dict[int, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [s for s, own in defaults.items() if in_main_thread and signal.getsignal(s) is own]
    for signum in ours:
        signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum in ours:
            signal.signal(signum, defaults[signum])
