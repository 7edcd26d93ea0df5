"""Several jobs' ensembles as one: what a tensor axis can carry need not cost a process.

Jobs that see inputs of the same kind and number, in models of the same shape, with the same
optimizer up to its learning rate, are stacked along the axis of members. A member's result depends
on its own settings only, so each job gets what it would have got alone.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgon.training import checkpoints
from kgon.training.datamodule import EnsembleData
from kgon.training.history import History
from kgon.training.model import TMS, Clock

Checkpoint = dict[str, Any]


def packed_model(parts: Sequence[TMS]) -> TMS:
    """One model with the members of all parts, which it keeps as its `parts`."""
    first = parts[0]
    W, b = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("W", "b"))
    whole = TMS(
        n_features=W.shape[-1],
        n_hidden=W.shape[-2],
        members=[member for part in parts for member in part.members],
        seed=[seed for part in parts for seed in part.seeds],
        init=lambda keys, m, n: (W, b),
        optimizer=first.make_optimizer,
        scheduler=first.make_scheduler,
        importance=_importance(parts),
        dtype=W.dtype,
    )
    whole.parts = list(zip(places([len(part.members) for part in parts]), parts, strict=True))
    clocks = [Clock(part) for part in parts]
    rates = {float(clock.optimizer.param_groups[0]["lr"]) for clock in clocks}
    whole.clocks = clocks if len(rates) > 1 else []
    return whole


def places(sizes: Sequence[int]) -> list[slice]:
    """Neighbouring slices of these sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _importance(parts: Sequence[TMS]) -> Tensor | None:
    """The weights of all members' features, a row each; one row or None where all agree."""
    weights = [part.importance for part in parts]
    if all(w is None for w in weights):
        return None
    ones = torch.ones(parts[0].W.shape[-1], dtype=torch.float64)
    rows = [ones if w is None else w for w in weights]
    if all(bool((row == rows[0]).all()) for row in rows):
        return rows[0]
    return torch.cat(
        [row.expand(len(part.members), -1) for row, part in zip(rows, parts, strict=True)]
    )


def packed_data(parts: Sequence[EnsembleData]) -> EnsembleData:
    """The data of all parts, in the order of `packed_model`."""
    return EnsembleData.pack(parts)


def unpack(whole: TMS) -> None:
    """Give each part its members' parameters and record, as if it had been trained alone.

    What was logged stays with the whole: `History.logged_of` gives a part's.
    """
    for where, part in whole.parts:
        with torch.no_grad():
            part.W.copy_(whole.W[where])
            part.b.copy_(whole.b[where])
        part.diverged_at.copy_(whole.diverged_at[where])
        part.history = whole.history.of_members(where)
        part._n_loaded = whole._n_loaded


def of_job(checkpoint: Checkpoint, where: slice, part: TMS) -> Checkpoint:
    """The checkpoint that `part`, whose members are at these places, would have written alone."""
    n_members = len(checkpoint["state_dict"]["b"])
    clock = Clock(part)
    clock.rates(0, checkpoint["global_step"])
    groups = [
        group | {"lr": float(clock.optimizer.param_groups[0]["lr"])}
        for group in checkpoint["optimizer_states"][0]["param_groups"]
    ]
    if "initial_lr" in groups[0]:
        groups = [g | {"initial_lr": clock.optimizer.param_groups[0]["initial_lr"]} for g in groups]
    whole = History()
    whole.load_state_dict(checkpoint["history"])
    history = whole.of_members(where)
    job = [place.start for place in places(checkpoint["sizes"])].index(where.start)
    history.logged = whole.logged_of(job)

    def own(value: Any) -> Any:
        stacked = isinstance(value, Tensor) and value.ndim > 0 and len(value) == n_members
        return value[where].clone() if stacked else value

    optimizer = checkpoint["optimizer_states"][0]
    return checkpoint | {
        "state_dict": {name: own(value) for name, value in checkpoint["state_dict"].items()},
        "optimizer_states": [
            {
                "state": {
                    i: {k: own(v) for k, v in state.items()}
                    for i, state in optimizer["state"].items()
                },
                "param_groups": groups,
            }
        ],
        "lr_schedulers": [clock.scheduler.state_dict()] if clock.scheduler else [],
        "history": history.state_dict(),
        "sizes": [where.stop - where.start],
    }


def joined(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint of a pack, from those that its parts wrote at the same step."""
    first = checkpoints[0]
    steps = {checkpoint["global_step"] for checkpoint in checkpoints}
    if len(steps) > 1:
        raise ValueError(f"the checkpoints are of different steps: {sorted(steps)}")

    def stacked(values: Sequence[Any]) -> Any:
        tensors = isinstance(values[0], Tensor) and values[0].ndim > 0
        return torch.cat(list(values)) if tensors else values[0]

    optimizers = [checkpoint["optimizer_states"][0] for checkpoint in checkpoints]
    histories = []
    for checkpoint in checkpoints:
        history = History()
        history.load_state_dict(checkpoint["history"])
        histories.append(history)
    return first | {
        "state_dict": {
            name: stacked([checkpoint["state_dict"][name] for checkpoint in checkpoints])
            for name in first["state_dict"]
        },
        "optimizer_states": [
            {
                "state": {
                    i: {k: stacked([o["state"][i][k] for o in optimizers]) for k in state}
                    for i, state in optimizers[0]["state"].items()
                },
                "param_groups": optimizers[0]["param_groups"],
            }
        ],
        "history": History.joined(histories).state_dict(),
        "sizes": [size for checkpoint in checkpoints for size in checkpoint["sizes"]],
    }


POINTER = "pack.json"
"""Beside a job's own checkpoints: where its pack is, and its place there."""


def load(path: Path) -> Checkpoint:
    """A checkpoint, read."""
    return torch.load(path, map_location="cpu", weights_only=True)


def join_pack(folder: Path, pack: Path, job: str, where: slice) -> None:
    """Leave word in a job's folder of checkpoints that its state is in a pack's, and in the pack's
    that this job needs it."""
    (pack / "jobs").mkdir(parents=True, exist_ok=True)
    (pack / "jobs" / job).touch()
    folder.mkdir(parents=True, exist_ok=True)
    word = {"pack": os.path.relpath(pack, folder), "job": job, "place": [where.start, where.stop]}
    partial = folder / f".{POINTER}"
    partial.write_text(json.dumps(word))
    partial.replace(folder / POINTER)


def leave_pack(folder: Path, part: TMS | None) -> None:
    """End what `join_pack` began, if it did; the last job to leave takes the pack along.

    A job that was interrupted, `part`, first gets a checkpoint of its own from the pack's, so that
    it can go on alone or in other company. One that is done (None) needs none.
    """
    if not (folder / POINTER).exists():
        return
    word = json.loads((folder / POINTER).read_text())
    pack = folder / word["pack"]
    last = checkpoints.newest(pack / checkpoints.FOLDER) if part is not None else None
    if part is not None and last is not None:
        own = of_job(load(last), slice(*word["place"]), part)
        checkpoints.save(folder, lambda path: torch.save(own, path))
    (folder / POINTER).unlink()
    (pack / "jobs" / word["job"]).unlink(missing_ok=True)
    if pack.is_dir() and not any((pack / "jobs").iterdir()):
        shutil.rmtree(pack)
