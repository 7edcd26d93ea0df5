"""The record of a trained ensemble: tables and figures in its run directory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kgon.figures import style
from kgon.figures import training as training_figures
from kgon.figures import weights as weight_figures
from kgon.files import finite_or_none
from kgon.llc.verdict import REASONS, VERDICTS, verdict, words
from kgon.record import tables
from kgon.record.run_directory import RunDirectory, long_table
from kgon.record.tables import Member, Phase, Plateau, Row, Transition
from kgon.theory.critical import CriticalPoint
from kgon.theory.geometry import geometry
from kgon.theory.phases import phase_codes, phase_labels
from kgon.training.datamodule import EnsembleData
from kgon.training.history import History
from kgon.training.model import TMS

Rows = list[dict[str, Any]]
Labels = list[list[str]]
"""The phase of each member at each snapshot."""


@dataclass(frozen=True)
class Results:
    """What a training run found.

    Attributes:
        summary: numbers and strings by name.
        tables: rows by name, few enough for a dashboard.
        figures: PNG files by name.
        by_phase: the final phases, with theory.
    """

    summary: dict[str, float | str]
    tables: dict[str, Rows]
    figures: dict[str, Path]
    by_phase: list[Phase]


def write(directory: RunDirectory, model: TMS, data: EnsembleData, *, draw: bool) -> Results:
    """Write a trained ensemble's tables and, with `draw`, its figures.

    Returns:
        What is logged and printed.
    """
    points = data.critical_points(model.W.shape[-2], model.importance)
    labels = _labels(model)
    plateaus = [Plateau.of(row) for row in model.history.rows("plateaus")]
    members = _members(model, labels, plateaus)
    transitions, by_phase = tables.transitions(members), tables.phases(members, points)
    directory.save_table("members", Member.table(members))
    directory.save_table("plateaus", Plateau.table(plateaus))
    directory.save_table("transitions", Transition.table(transitions))
    _write_history(directory, model, labels)
    drawn = _draw(model, labels, members, plateaus, points) if draw else {}
    folder = directory.path / "figures"
    rows: dict[str, Sequence[Row]] = {
        "members": members,
        "plateaus": plateaus,
        "transitions": transitions,
        "phases": by_phase,
    }
    return Results(
        summary=_summary(members),
        tables={name: [row.plain() for row in some] for name, some in rows.items()},
        figures={name: style.save(figure, folder / name)[0] for name, figure in drawn.items()},
        by_phase=by_phase,
    )


def _labels(model: TMS) -> Labels | None:
    """The phases at the snapshots, or None if there are no snapshots."""
    if "weights" not in model.history:
        return None
    codes = phase_codes(*(model.history.column("weights", name) for name in ("W", "b")))
    labels: Labels = np.array(phase_labels(model.b.shape[-1]))[codes.numpy()].tolist()
    return labels


def _members(model: TMS, labels: Labels | None, plateaus: Sequence[Plateau]) -> list[Member]:
    history = model.history
    loss = history.column("loss", "loss")[-1].tolist() if "loss" in history else None
    llc = {k: v[-1].tolist() for k, v in history.columns("llc").items()} if "llc" in history else {}
    geometries = geometry(model.W.detach().cpu())._asdict()
    shapes = {name: values.tolist() for name, values in geometries.items()}
    members = []
    for i, member in enumerate(model.members):
        diverged_at = int(model.diverged_at[i])
        passed = tables.stages(plateaus, member)
        members.append(
            Member(
                member=member,
                state="finished" if diverged_at < 0 else "diverged",
                diverged_at=None if diverged_at < 0 else diverged_at,
                final_loss=finite_or_none(loss[i]) if loss else None,
                phase=None if labels is None or diverged_at >= 0 else labels[-1][i],
                n_transitions=max(len(passed) - 1, 0),
                stages=tables.ARROW.join(str(stage.nearest) for stage in passed),
                llc=finite_or_none(llc["mean"][i]) if llc else None,
                llc_stderr=finite_or_none(llc["stderr"][i]) if llc else None,
                llc_verdict=_verdicts(history)[-1, i] if llc else None,
                **{
                    name: finite_or_none(values[i]) if diverged_at < 0 else None
                    for name, values in shapes.items()
                },
            )
        )
    return members


def _summary(members: Sequence[Member]) -> dict[str, float | str]:
    """The results of a run that a table of runs shows."""
    alive = [m for m in members if m.state == "finished"]
    summary: dict[str, float | str] = {
        "final/members": float(len(members)),
        "final/diverged": float(len(members) - len(alive)),
        "final/transitions": float(sum(m.n_transitions for m in members)),
    }
    losses = [m.final_loss for m in alive if m.final_loss is not None]
    if losses:
        summary["final/loss"] = float(np.mean(losses))
    phases = Counter(m.phase for m in alive if m.phase is not None)
    for phase, count in phases.items():
        summary[f"final/phase/{phase}"] = float(count)
        ok = [m.llc for m in alive if m.phase == phase and m.llc_verdict == "ok"]
        if ok:
            summary[f"final/llc/{phase}"] = float(np.mean([v for v in ok if v is not None]))
    if phases:
        summary["final/most_common_phase"] = phases.most_common(1)[0][0]
    return summary


def _write_history(directory: RunDirectory, model: TMS, labels: Labels | None) -> None:
    history = model.history
    for table in ("loss", "llc"):
        if table in history:
            columns = {k: v.numpy() for k, v in history.columns(table).items()}
            if table == "llc":
                columns["verdict"] = _verdicts(history)
                columns["reason"] = words(history.column("llc", "reason"), REASONS)
            steps = history.steps(table).numpy()
            directory.save_table(table, long_table(steps, model.members, columns))
    if labels is not None:
        step = history.steps("weights").numpy()
        phases = {"phase": np.array(labels)}
        directory.save_table("snapshots", long_table(step, model.members, phases))
        W, b = (history.column("weights", name).numpy() for name in ("W", "b"))
        directory.save_weights(step, W, b)


def _verdicts(history: History) -> NDArray[Any]:
    """The verdicts on all estimates, (n_estimates, n_members) words."""
    return words(verdict(history.column("llc", "reason")), VERDICTS)


def _draw(
    model: TMS,
    labels: Labels | None,
    members: Sequence[Member],
    plateaus: Sequence[Plateau],
    points: list[CriticalPoint],
) -> dict[str, Figure]:
    """The figures for which there are data."""
    history = model.history
    drawn = {}
    if "loss" in history:
        step, loss = history.steps("loss").numpy(), history.column("loss", "loss").numpy()
        final = None if labels is None else [m.phase or "other" for m in members]
        drawn["loss"] = training_figures.loss_curves(step, loss, points, final_phase=final)
        if labels is not None:
            drawn["staircase"] = _staircase(history, step, loss, members, plateaus, points)
    if labels is not None:
        snapshots = history.steps("weights").numpy()
        drawn["phases"] = training_figures.phase_counts(snapshots, np.array(labels))
        shown = slice(weight_figures.MAX_WEIGHTS)
        W, b = (history.column("weights", name)[-1, shown].numpy() for name in ("W", "b"))
        drawn["weights"] = weight_figures.weights(W, b, labels[-1][shown])
        if "llc" in history and "loss" in history:
            drawn["llc"] = _llc_by_phase(history, labels, points)
    return drawn


def _staircase(
    history: History,
    step: NDArray[Any],
    loss: NDArray[Any],
    members: Sequence[Member],
    plateaus: Sequence[Plateau],
    points: list[CriticalPoint],
) -> Figure:
    """Figure 1 for the member with the most transitions; of several, for the lowest final loss."""
    place, chosen = max(
        enumerate(members),
        key=lambda pair: (pair[1].n_transitions, -(pair[1].final_loss or np.inf)),
    )
    own = [plateau for plateau in plateaus if plateau.member == chosen.member]
    snapshots = history.steps("weights").numpy()
    W, b = (history.column("weights", name)[:, place].numpy() for name in ("W", "b"))
    pictures = []
    for stage in tables.stages(own, chosen.member):
        # The snapshot nearest to the middle of the stage's first plateau.
        at = int(np.abs(snapshots - (stage.start + stage.end) / 2).argmin())
        pictures.append(
            training_figures.Stage(str(stage.nearest), int(snapshots[at]), W[at], b[at])
        )
    llc: dict[str, Any] = {"llc_step": None, "llc": None, "llc_stderr": None}
    if "llc" in history:
        llc = {
            "llc_step": history.steps("llc").numpy(),
            "llc": history.column("llc", "mean")[:, place].numpy(),
            "llc_stderr": history.column("llc", "stderr")[:, place].numpy(),
            "llc_ok": _verdicts(history)[:, place] == "ok",
        }
    return training_figures.staircase(
        step,
        loss[:, place],
        plateaus=[plateau.plain() for plateau in own],
        stages=pictures,
        points=points,
        **llc,
    )


def _llc_by_phase(history: History, labels: Labels, points: list[CriticalPoint]) -> Figure:
    """The estimates at steps at which phase and loss are known too."""
    label_at = dict(zip(history.steps("weights").tolist(), labels, strict=True))
    losses = history.column("loss", "loss").numpy()
    loss_at = dict(zip(history.steps("loss").tolist(), losses, strict=True))
    steps = history.steps("llc").tolist()
    known = [i for i, step in enumerate(steps) if step in label_at and step in loss_at]
    llc, verdicts = history.column("llc", "mean").numpy()[known], _verdicts(history)[known]
    loss = np.stack([loss_at[steps[i]] for i in known])
    label = np.array([label_at[steps[i]] for i in known])
    # Far above every critical level an estimate is meaningless, and it would compress the others.
    near = loss <= 1.3 * max((point.loss for point in points), default=np.inf)
    return training_figures.llc_by_phase(
        loss[near],
        llc[near],
        label[near].tolist(),
        points,
        verdicts[near].tolist(),
    )
