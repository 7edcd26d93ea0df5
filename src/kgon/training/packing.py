"""The ensembles of several jobs, trained as one ensemble, a *pack*.

The jobs must have inputs of the same kind and number, models of the same shape, and the same
optimizer except for its learning rate. A member's result depends only on its own settings, so a job
has the same result as if trained alone. Only this module and `launch.packed` know that members
belong to jobs.
"""

import json
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kgon.data import Distribution
from kgon.files import write_text
from kgon.theory.loss import Loss, SplitLoss
from kgon.training import checkpoints
from kgon.training.datamodule import EnsembleData
from kgon.training.history import History
from kgon.training.model import TMS
from kgon.training.steps import next_settings

Checkpoint = dict[str, Any]


def places(jobs: Sequence[TMS] | Sequence[EnsembleData]) -> list[slice]:
    """The slice of each job among the pack's members."""
    ends = torch.tensor([0, *(len(job.members) for job in jobs)]).cumsum(0).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def packed_model(jobs: Sequence[TMS]) -> TMS:
    """One model with the members of all jobs."""
    first = jobs[0]
    W, b = (torch.cat([getattr(job, name).detach() for job in jobs]) for name in ("W", "b"))
    rates = JobRates(jobs)
    return TMS(
        n_features=W.shape[-1],
        n_hidden=W.shape[-2],
        members=[member for job in jobs for member in job.members],
        seed=[seed for job in jobs for seed in job.seeds],
        init=lambda keys, m, n: (W, b),
        optimizer=first.make_optimizer,
        scheduler=first.make_scheduler,
        importance=_importance(jobs),
        dtype=W.dtype,
        learning_rates=rates if rates.differ else None,
    )


def _importance(jobs: Sequence[TMS]) -> Tensor | None:
    """The importance weights, one row per member; a single row or None if all jobs agree."""
    if all(job.importance is None for job in jobs):
        return None
    ones = torch.ones(jobs[0].W.shape[-1], dtype=torch.float64)
    rows = [ones if job.importance is None else job.importance for job in jobs]
    if all(bool((row == rows[0]).all()) for row in rows):
        return rows[0]
    return torch.cat(
        [row.expand(len(job.members), -1) for row, job in zip(rows, jobs, strict=True)]
    )


class JobRates:
    """The `learning_rates` of a `TMS`, (n_members, n_steps), where those of its jobs `differ`.

    Calls must be in order of steps, each step at most once.
    """

    def __init__(self, jobs: Sequence[TMS]):
        self.clocks = [_Clock(job) for job in jobs]
        self.n_members = torch.tensor([len(job.members) for job in jobs])
        self.differ = len({float(c.optimizer.param_groups[0]["lr"]) for c in self.clocks}) > 1

    def __call__(self, start: int, n_steps: int) -> Tensor:
        rates = torch.stack([clock.rates(start, n_steps) for clock in self.clocks])
        return rates.repeat_interleave(self.n_members, 0)


class _Clock:
    """A copy of a job's optimizer and scheduler, for its learning rate."""

    def __init__(self, job: TMS):
        self.optimizer = job.make_optimizer([nn.Parameter(torch.zeros(1))])
        make = job.make_scheduler
        self.scheduler = None if make is None else make(self.optimizer)
        self.step = 0

    def rates(self, start: int, n_steps: int) -> Tensor:
        next_settings(self.optimizer, self.scheduler, start - self.step)
        self.step = start + n_steps
        return next_settings(self.optimizer, self.scheduler, n_steps)[0]


class JobDistributions(Distribution):
    """Distributions of one kind, each for the inputs of some members.

    `distributions` are pairs (slice, distribution) whose slices cover the axis of members in order.
    """

    def __init__(self, distributions: Sequence[tuple[slice, Distribution]]):
        super().__init__(distributions[0][1].n_features)
        self.distributions = list(distributions)
        self.n_uniforms = distributions[0][1].n_uniforms

    def inputs(self, u: Tensor) -> Tensor:
        return torch.cat([each.inputs(u[place]) for place, each in self.distributions])

    def expected_loss(self, importance: Tensor | None) -> Loss:
        shared = importance is None or importance.ndim == 1
        return SplitLoss(
            [
                (place, each.expected_loss(importance if shared else importance[place]))  # type: ignore[index]
                for place, each in self.distributions
            ]
        )

    def sample_loss(self, x: Tensor, importance: Tensor | None) -> Loss:
        return self.distributions[0][1].sample_loss(x, importance)


def packed_data(jobs: Sequence[EnsembleData], *, same_inputs: bool) -> EnsembleData:
    """The data of all jobs, in the order of `packed_model`; `same_inputs` says whether all have the
    same distribution."""
    first = jobs[0]
    distribution: Distribution = first.distribution
    if not same_inputs:
        each = [job.distribution for job in jobs]
        distribution = JobDistributions(list(zip(places(jobs), each, strict=True)))
    return EnsembleData(
        distribution=distribution,
        n_samples=first.n_samples,
        batch_size="full" if first.full_batch else first.batch_size,
        seed=[seed for job in jobs for seed in job.seeds],
        members=[member for job in jobs for member in job.members],
        stops=first.stops,
        block=first.block,
        dtype=first.dtype,
    )


def unpack(jobs: Sequence[TMS], whole: TMS) -> None:
    """Copy each job's parameters and history from the pack to the job."""
    for job, place in zip(jobs, places(jobs), strict=True):
        with torch.no_grad():
            job.W.copy_(whole.W[place])
            job.b.copy_(whole.b[place])
        job.diverged_at.copy_(whole.diverged_at[place])
        job.history = whole.history.of_members(place)


def checkpoint_of_job(checkpoint: Checkpoint, place: slice, job: TMS) -> Checkpoint:
    """The checkpoint that a job would have written alone, from that of its pack."""
    n_members = len(checkpoint["state_dict"]["b"])
    clock = _Clock(job)
    clock.rates(0, checkpoint["global_step"])
    own_group = clock.optimizer.param_groups[0]
    (optimizer,) = checkpoint["optimizer_states"]
    groups = [
        group | {name: own_group[name] for name in ("lr", "initial_lr") if name in group}
        for group in optimizer["param_groups"]
    ]

    def own(value: Any) -> Any:
        per_member = isinstance(value, Tensor) and value.ndim > 0 and len(value) == n_members
        return value[place].clone() if per_member else value

    state = {
        i: {name: own(value) for name, value in values.items()}
        for i, values in optimizer["state"].items()
    }
    return checkpoint | {
        "state_dict": {name: own(value) for name, value in checkpoint["state_dict"].items()},
        "optimizer_states": [{"state": state, "param_groups": groups}],
        "lr_schedulers": [clock.scheduler.state_dict()] if clock.scheduler else [],
        "history": History(checkpoint["history"]).of_members(place).state_dict(),
    }


def joined_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint of a pack, from those of its jobs at the same step."""
    first = checkpoints[0]

    def joined(values: Sequence[Any]) -> Any:
        tensors = isinstance(values[0], Tensor) and values[0].ndim > 0
        return torch.cat(list(values)) if tensors else values[0]

    optimizers = [checkpoint["optimizer_states"][0] for checkpoint in checkpoints]
    histories = [History(checkpoint["history"]) for checkpoint in checkpoints]
    state = {
        i: {name: joined([o["state"][i][name] for o in optimizers]) for name in values}
        for i, values in optimizers[0]["state"].items()
    }
    return first | {
        "state_dict": {
            name: joined([each["state_dict"][name] for each in checkpoints])
            for name in first["state_dict"]
        },
        "optimizer_states": [{"state": state, "param_groups": optimizers[0]["param_groups"]}],
        "history": History.joined(histories).state_dict(),
    }


POINTER = "pack.json"
"""Name of a file among a job's checkpoints: where its pack is, and which members are the job's."""


def load(path: Path) -> Checkpoint:
    checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoints.check_writer(checkpoint)
    return checkpoint


def join_pack(folder: Path, pack: Path, job: str, place: slice) -> None:
    """Note in a job's folder of checkpoints that its state is in a pack, and in the pack's folder
    that the job needs it."""
    (pack / "jobs").mkdir(parents=True, exist_ok=True)
    (pack / "jobs" / job).touch()
    folder.mkdir(parents=True, exist_ok=True)
    where = os.path.relpath(pack, folder)
    pointer = {"job": job, "place": [place.start, place.stop], "pack": where}
    write_text(folder / POINTER, json.dumps(pointer), sync=False)


def leave_pack(folder: Path, job: TMS | None) -> None:
    """Undo `join_pack`, if the job is in a pack. The last job to leave removes the pack's folder.

    An interrupted job gets its own checkpoint out of the pack's, so that it can resume alone or in
    another pack. Pass None for a finished job, which needs no checkpoint.
    """
    if not (folder / POINTER).exists():
        return
    pointer = json.loads((folder / POINTER).read_text())
    pack = folder / pointer["pack"]
    last = checkpoints.newest(pack / checkpoints.FOLDER) if job is not None else None
    if job is not None and last is not None:
        own = checkpoint_of_job(load(last), slice(*pointer["place"]), job)
        checkpoints.save(folder, lambda path: torch.save(own, path))
    (folder / POINTER).unlink()
    (pack / "jobs" / pointer["job"]).unlink(missing_ok=True)
    if pack.is_dir() and not any((pack / "jobs").iterdir()):
        shutil.rmtree(pack)
