"""hydra/launcher=packed: train the jobs of a sweep as one ensemble, in one process.

Each job has its own directory, lock, status and record, the same as if it had run alone, but no
figures, because drawing them takes longer than training such a job (`kgon figures` draws them from
the record). Its W&B run is written at the end.
"""

import hashlib
import json
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kgon.callbacks import Checkpoints, Loggers, Progress, Status
from kgon.callbacks.loggers import send
from kgon.callbacks.recorder import Recorder, logged_rows
from kgon.compiled import training_steps
from kgon.compiled.machine import one_torch_thread
from kgon.launch.jobs import build, objective, stoppable
from kgon.launch.points import Point
from kgon.launch.train import build_trainer, check_memory, conclude
from kgon.record import run_directory, sweeps
from kgon.record.metrics_file import MetricsFile
from kgon.tracking.logger import tracked
from kgon.training import checkpoints, packing
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import train
from kgon.training.history import LAST
from kgon.training.model import TMS
from kgon.training.steps import next_settings

CARRIED = (
    "seed", "members", "init", "runs",
    "model.seed", "model.members", "model.init", "model.importance",
    "datamodule.seed", "datamodule.members", "datamodule.block",
    "callbacks.pictures", "callbacks.checkpoint", "callbacks.progress",
)  # fmt: skip
"""Settings in which the jobs of a pack may differ. The distribution's arguments except n_features
may differ, too, and the learning rate if the steps are compiled."""

_REPORT_SECONDS = 10.0
"""Time between two status reports, each of which writes a file per job."""


def launch(points: Sequence[Point]) -> list[JobReturn]:
    """Run the jobs of a sweep, those that can share an ensemble together; return the results."""
    wrong = {point.command for point in points} - {"train"}
    if wrong:
        raise ValueError(
            f"hydra/launcher=packed takes jobs of kgon train, not of kgon {wrong.pop()}; "
            "use hydra/launcher=joblib"
        )
    if any(point.settings["extends"] for point in points):
        raise ValueError("hydra/launcher=packed starts new runs only: extends must be null")
    # Every job keeps a lock file open, and the limit is usually 1024.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(len(points) + 200, hard)), hard))
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(_key(point.settings), []).append(point)
    results: dict[Path, JobReturn] = {}
    sweep = sweeps.Sweep.current(Path(points[0].settings["runs"]["dir"]))
    if sweep:
        for point in points:
            sweep.add(point.directory.path.name)
    with stoppable(), one_torch_thread():
        for group in groups.values():
            for pack in _that_fit(group):
                results |= _run(pack)
    return [results[point.directory.path] for point in points]


def _key(settings: dict[str, Any]) -> str:
    """A string that is the same for all jobs that can share an ensemble."""
    optimizer = build(OmegaConf.create(settings["optimizer"]))([nn.Parameter(torch.zeros(1))])
    schedule = settings.get("scheduler")
    scheduler = build(OmegaConf.create(schedule))(optimizer) if schedule else None
    only_rate = next_settings(optimizer, scheduler, 1)[1] is None
    full = settings["batch_size"] == "full"
    compiled = only_rate and not full and training_steps.has_kernel(optimizer)
    rates = ("optimizer.lr", "model.optimizer.lr") if compiled else ()
    shared = run_directory.without(settings, (*CARRIED, *rates))
    for parent, name in ((shared, "data"), (shared["datamodule"], "distribution")):
        parent[name] = {k: parent[name].get(k) for k in ("_target_", "n_features")}
    return json.dumps(shared, sort_keys=True)


def _that_fit(points: Sequence[Point]) -> list[list[Point]]:
    """The jobs in packs that fit into memory; a pack that does not fit is halved."""
    config = OmegaConf.create(points[0].settings)
    config.members = sum(len(point.settings["datamodule"]["members"]) for point in points)
    try:
        check_memory(config)
    except ValueError:
        if len(points) == 1:
            raise
        half = len(points) // 2
        return [*_that_fit(points[:half]), *_that_fit(points[half:])]
    return [list(points)]


class _Opened:
    """A job in progress; `stack` holds its lock and status."""

    def __init__(self, point: Point, running: run_directory.Job):
        self.point = point
        self.running = running
        self.stack = ExitStack()
        self.model: TMS = build(point.settings["model"])
        self.data: EnsembleData = build(point.settings["datamodule"])
        self.path = point.directory.path
        self.folder = self.path / checkpoints.FOLDER
        packing.leave_pack(self.folder, self.model)
        last = checkpoints.newest(self.folder)
        self.checkpoint = packing.load(last) if last else None
        self.step: int = self.checkpoint["global_step"] if self.checkpoint else 0


def _run(points: Sequence[Point]) -> dict[Path, JobReturn]:
    results: dict[Path, JobReturn] = {}
    opened: list[_Opened] = []
    for point in points:
        results[point.directory.path] = JobReturn(status=JobStatus.COMPLETED)
        try:
            with ExitStack() as stack:
                stack.enter_context(point.directory.lock(wait=False))
                if point.settings["runs"]["overwrite"]:
                    point.directory.clear()
                elif point.directory.status()["state"] == "finished":
                    continue
                job = point.directory.job("train", point.task, point.written)
                one = _Opened(point, stack.enter_context(job))
                one.stack = stack.pop_all()
            opened.append(one)
        except run_directory.Busy as busy:
            print(f"{busy}; skipping it")
        except Exception as error:
            # The job's directory records the error; the other jobs go on.
            results[point.directory.path] = JobReturn(status=JobStatus.FAILED, _return_value=error)
    # How many uniform numbers an input takes may depend on the distribution's arguments.
    together = sorted({(one.step, one.data.distribution.n_uniforms) for one in opened})
    for step, n in together:
        alike = [o for o in opened if (o.step, o.data.distribution.n_uniforms) == (step, n)]
        results |= _train(alike)
    return results


def _train(opened: Sequence[_Opened]) -> dict[Path, JobReturn]:
    """Train jobs that are at the same step as one ensemble, and write each job's record."""
    names = "\n".join(one.path.name for one in opened)
    pack = opened[0].path.parent / "packs" / hashlib.sha256(names.encode()).hexdigest()[:10]
    waiting = list(opened)
    jobs = [one.model for one in opened]
    try:
        whole = packing.packed_model(jobs)
        whole.log = _refuse_log  # type: ignore[method-assign]
        inputs = [one.point.settings["datamodule"]["distribution"] for one in opened]
        same = all(settings == inputs[0] for settings in inputs)
        data = packing.packed_data([one.data for one in opened], same_inputs=same)
        if opened[0].step:
            joined = packing.joined_checkpoint([o.checkpoint for o in opened if o.checkpoint])
            checkpoints.save(pack / checkpoints.FOLDER, lambda path: torch.save(joined, path))
        for one, place in zip(opened, packing.places(jobs), strict=True):
            packing.join_pack(one.folder, pack, one.path.name, place)
        config = OmegaConf.create(opened[0].point.settings)
        callbacks, recorders = _callbacks(config, opened, pack)
        trainer = build_trainer(config, callbacks, False, pack)
        print(f"{len(opened)} jobs as one ensemble of {len(whole.members)} members")
        train(whole, data, trainer, pack)
        packing.unpack(jobs, whole)
        results = {}
        for one in opened:
            waiting.remove(one)
            results[one.path] = _conclude(one, recorders)
    except BaseException as error:
        for one in waiting:
            try:
                with one.stack:
                    raise error
            except type(error):
                continue
        if not isinstance(error, Exception):
            raise
        if isinstance(error, checkpoints.EndedEarly):
            print(error)
            return {}
        failed = JobReturn(status=JobStatus.FAILED, _return_value=error)
        return {one.path: failed for one in opened}
    return results


def _refuse_log(name: str, value: Any, *_: Any, logger: bool | None = None, **__: Any) -> None:
    """Refuse `LightningModule.log` in callbacks: its number is of the pack, not of a job."""
    if logger is not False:
        raise ValueError(
            f"a callback logs {name!r} by self.log, one number of all members of a pack; with "
            "hydra/launcher=packed a kgon.callbacks.Recorder logs numbers of each job (its method "
            "metrics), or use hydra/launcher=joblib"
        )


def _callbacks(
    config: DictConfig, opened: Sequence[_Opened], pack: Path
) -> tuple[list[L.Callback], list[Recorder]]:
    """The callbacks of a pack, and the recorders among them, which also record for each job."""
    nodes = dict((config.get("callbacks") or {}).items())
    checkpoint = nodes.pop("checkpoint", None) or {}
    for name in ("pictures", "progress"):
        nodes.pop(name, None)
    callbacks = list(build(OmegaConf.create(nodes)).values())
    recorders = [each for each in callbacks if isinstance(each, Recorder)]
    jobs = [one.model for one in opened]

    def report(done: float, whole: TMS) -> None:
        for one, place in zip(opened, packing.places(jobs), strict=True):
            one.model.history = whole.history.of_members(place, LAST)
            rows = logged_rows(recorders, one.model, LAST)
            metrics = {k: v for row in rows for k, v in row.metrics.items()}
            # Without sync, because waiting for the disk for each of a thousand jobs is slow.
            one.running.report(done, metrics, sync=False)

    own = [
        Loggers(recorders),
        Status(report, config.trainer.max_steps, _REPORT_SECONDS),
        Checkpoints(str(pack / checkpoints.FOLDER), checkpoint.get("every_seconds", 20.0)),
        Progress(config.trainer.max_steps),
    ]
    return [*callbacks, *own], recorders


def _conclude(one: _Opened, recorders: Sequence[Recorder]) -> JobReturn:
    """Write the record of a trained job, and its logger's run."""
    try:
        with one.stack:
            logger = build(one.point.logger)
            with tracked(logger, one.point.written):
                one.model.check_alive()
                for recorder in recorders:
                    recorder.finish(one.model, one.data)
                loggers = [*([logger] if logger else []), MetricsFile(one.path)]
                for row in logged_rows(recorders, one.model):
                    send(row, loggers)
                conclude(one.running, one.model, one.data, logger, draw=False)
            packing.leave_pack(one.folder, None)
        found = objective(one.point.settings["runs"]["objective"], one.point.directory.status())
        return JobReturn(status=JobStatus.COMPLETED, _return_value=found)
    except Exception as error:
        # The job's directory records the error; the other jobs go on.
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
