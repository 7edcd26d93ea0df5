"""hydra/launcher=packed: train the jobs of a sweep as one ensemble, in one process.

Each job has its own directory, lock, status and record, the same as if it had run alone, except for
figures, which take longer to draw than such a job takes to train (kgon report draws them from the
record). Its W&B run is written at the end, from the record.
"""

import copy
import hashlib
import json
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from kgon.callbacks import Checkpoints, Progress, Status
from kgon.callbacks.loggers import send
from kgon.callbacks.recorder import Recorder, logged_rows
from kgon.compiled import training_steps
from kgon.launch import config as configs
from kgon.launch.jobs import build, objective, stoppable
from kgon.launch.points import Point
from kgon.launch.train import build_trainer, check_memory, conclude
from kgon.record import run_directory
from kgon.tracking.logger import Recording, tracked
from kgon.training import checkpoints, packing
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import train
from kgon.training.history import LAST
from kgon.training.model import TMS

CARRIED = (
    "seed", "members", "init", "runs",
    "model.seed", "model.members", "model.init", "model.importance",
    "datamodule.seed", "datamodule.members", "datamodule.block",
    "callbacks.pictures", "callbacks.checkpoint", "callbacks.progress",
)  # fmt: skip
"""Settings in which the jobs of a pack may differ. So may the distribution's arguments except
n_features, and the learning rate where the steps are compiled."""

_REPORT_SECONDS = 10.0
"""Time between two status reports, each of which writes a file per job."""


def launch(points: Sequence[Point]) -> list[JobReturn]:
    """Run the jobs of a sweep, those that can share an ensemble together; return their results."""
    wrong = {point.command for point in points} - {"train"}
    if wrong:
        raise ValueError(
            f"hydra/launcher=packed takes jobs of kgon train, not of kgon {wrong.pop()}; "
            "use hydra/launcher=joblib"
        )
    _allow_open_files(len(points) + 200)
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(_key(point.settings), []).append(point)
    results: dict[Path, JobReturn] = {}
    with stoppable():
        for group in groups.values():
            for pack in _that_fit(group):
                results |= _run(pack)
    return [results[point.directory.path] for point in points]


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files (usually 1024), because every job keeps a lock file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def _key(settings: dict[str, Any]) -> str:
    """A string that is equal for jobs that can share an ensemble."""
    shared = copy.deepcopy(settings)
    paths = list(CARRIED)
    if _has_kernel(settings):
        paths += ["optimizer.lr", "model.optimizer.lr"]
    for path in paths:
        *above, last = path.split(".")
        node = shared
        for name in above:
            node = node.get(name) or {}
        node.pop(last, None)
    for parent, name in ((shared, "data"), (shared["datamodule"], "distribution")):
        parent[name] = {k: parent[name][k] for k in ("_target_", "n_features")}
    return json.dumps(shared, sort_keys=True)


def _has_kernel(settings: dict[str, Any]) -> bool:
    make = build(OmegaConf.create(settings["optimizer"]))
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    return settings["batch_size"] != "full" and training_steps.has_kernel(optimizer)


def _that_fit(points: Sequence[Point]) -> list[list[Point]]:
    """The jobs in packs that fit into memory; a pack that does not is halved."""
    config = OmegaConf.create(copy.deepcopy(points[0].settings))
    config.datamodule.members = [m for p in points for m in p.settings["datamodule"]["members"]]
    try:
        check_memory(config)
    except ValueError:
        if len(points) == 1:
            raise
        half = len(points) // 2
        return [*_that_fit(points[:half]), *_that_fit(points[half:])]
    return [list(points)]


@dataclass
class _Opened:
    """A job in progress; `stack` holds its lock and status."""

    point: Point
    stack: ExitStack
    running: run_directory.Job
    model: TMS
    data: EnsembleData
    checkpoint: packing.Checkpoint | None

    @property
    def folder(self) -> Path:
        return self.point.directory.path / checkpoints.FOLDER


def _run(points: Sequence[Point]) -> dict[Path, JobReturn]:
    results: dict[Path, JobReturn] = {}
    opened: list[_Opened] = []
    for point in points:
        results[point.directory.path] = JobReturn(status=JobStatus.COMPLETED)
        stack = ExitStack()
        try:
            stack.enter_context(point.directory.lock(wait=False))
        except run_directory.Busy as busy:
            print(f"{busy}; skipping it")
            continue
        if point.directory.status()["state"] == "finished":
            if not point.settings["runs"]["overwrite"]:
                stack.close()
                continue
            point.directory.clear()
        running = stack.enter_context(point.directory.job("train", point.task, point.written))
        try:
            with stack:
                one = _open(point, stack, running)
                one.stack = stack.pop_all()
            opened.append(one)
        except Exception as error:
            # The job's directory records the error; the other jobs go on.
            results[point.directory.path] = JobReturn(status=JobStatus.FAILED, _return_value=error)
    steps = {_step(one) for one in opened}
    for step in sorted(steps):
        results |= _train([one for one in opened if _step(one) == step])
    return results


def _open(point: Point, stack: ExitStack, running: run_directory.Job) -> _Opened:
    model: TMS = build(point.settings["model"])
    folder = point.directory.path / checkpoints.FOLDER
    packing.leave_pack(folder, model)
    last = checkpoints.newest(folder)
    return _Opened(
        point=point,
        stack=stack,
        running=running,
        model=model,
        data=build(point.settings["datamodule"]),
        checkpoint=packing.load(last) if last else None,
    )


def _step(one: _Opened) -> int:
    return one.checkpoint["global_step"] if one.checkpoint else 0


def _train(opened: Sequence[_Opened]) -> dict[Path, JobReturn]:
    """Train jobs that are at the same step as one ensemble, and write each job's record."""
    runs_dir = opened[0].point.directory.path.parent
    names = "\n".join(one.point.directory.path.name for one in opened)
    pack = runs_dir / "packs" / hashlib.sha256(names.encode()).hexdigest()[:10]
    waiting = list(opened)
    jobs = [one.model for one in opened]
    try:
        whole = packing.packed_model(jobs)
        data = packing.packed_data([one.data for one in opened])
        if _step(opened[0]):
            joined = packing.joined_checkpoint([o.checkpoint for o in opened if o.checkpoint])
            checkpoints.save(pack / checkpoints.FOLDER, lambda path: torch.save(joined, path))
        for one, place in zip(opened, packing.places(jobs), strict=True):
            packing.join_pack(one.folder, pack, one.point.directory.path.name, place)
        config = OmegaConf.create(opened[0].point.settings)
        callbacks = _callbacks(config)
        recorders = [each for each in callbacks if isinstance(each, Recorder)]
        own = _own_callbacks(config, recorders, opened, pack)
        trainer = build_trainer(config, [*callbacks, *own], False)
        print(f"{len(opened)} jobs as one ensemble of {len(whole.members)} members")
        train(whole, data, trainer, pack)
        packing.unpack(jobs, whole)
        results = {}
        for one in opened:
            waiting.remove(one)
            results[one.point.directory.path] = _conclude(one, recorders)
    except BaseException as error:
        for one in waiting:
            try:
                with one.stack:
                    raise error
            except type(error):
                continue
        if not isinstance(error, Exception):
            raise
        failed = JobReturn(status=JobStatus.FAILED, _return_value=error)
        return {one.point.directory.path: failed for one in opened}
    return results


def _callbacks(config: DictConfig) -> list[L.Callback]:
    """The jobs' callbacks, except those that a pack replaces or leaves out."""
    nodes = {
        name: node
        for name, node in (config.get("callbacks") or {}).items()
        if name not in ("pictures", "checkpoint", "progress")
    }
    return list(build(OmegaConf.create(nodes)).values())


def _own_callbacks(
    config: DictConfig, recorders: Sequence[Recorder], opened: Sequence[_Opened], pack: Path
) -> list[L.Callback]:
    jobs = [one.model for one in opened]

    def report(done: float, whole: TMS) -> None:
        for one, place in zip(opened, packing.places(jobs), strict=True):
            packing.take_record(one.model, whole, place, LAST)
            rows = logged_rows(recorders, one.model, LAST)
            one.running.report(done, {k: v for row in rows for k, v in row.metrics.items()})

    own = config.callbacks.get("checkpoint") or {}
    return [
        Status(report, config.trainer.max_steps, _REPORT_SECONDS),
        Checkpoints(str(pack / checkpoints.FOLDER), own.get("every_seconds", 20.0)),
        Progress(config.trainer.max_steps),
    ]


def _conclude(one: _Opened, recorders: Sequence[Recorder]) -> JobReturn:
    """Write the record of a trained job, and its logger's run."""
    try:
        with one.stack:
            logger = build(one.point.logger)
            with tracked(logger, configs.logged(one.point.written)):
                one.model.check_alive()
                for recorder in recorders:
                    recorder.finish(one.model, one.data)
                loggers = [*([logger] if logger else []), Recording(one.point.directory.path)]
                for row in logged_rows(recorders, one.model):
                    send(row, loggers)
                conclude(one.running, one.model, one.data, logger, draw=False)
            packing.leave_pack(one.folder, None)
    except Exception as error:
        # The job's directory records the error; the other jobs go on.
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
    status = one.point.directory.status()
    return JobReturn(
        status=JobStatus.COMPLETED,
        _return_value=objective(one.point.settings["runs"]["objective"], status),
    )
