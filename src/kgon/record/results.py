"""From a trained ensemble to its record: tables, figures, the final word on every member."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kgon.figures import style
from kgon.figures import training as training_figures
from kgon.figures import weights as weight_figures
from kgon.llc.estimate import VERDICTS
from kgon.record.run_directory import RunDirectory, long_table
from kgon.theory.critical import CriticalPoint
from kgon.theory.geometry import Geometry, geometry
from kgon.theory.phases import phase_codes, phase_labels
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS

Rows = list[dict[str, Any]]

LEVEL_TOLERANCE = 2e-3
"""A plateau counts as a stage of its member if its loss is this near to a critical level. At
n_features = 6 neighbouring levels are 0.007 apart, and members trained on 1000 samples settle
within 0.001 of one."""


@dataclass(frozen=True)
class Results:
    """What a training run found.

    Attributes:
        summary: single numbers and words.
        tables: rows by name, small enough for a dashboard.
        figures: PNG files by name.
        by_phase: phase, members, loss, theory loss, llc, theory llc: a row each.
    """

    summary: dict[str, float | str]
    tables: dict[str, Rows]
    figures: dict[str, Path]
    by_phase: Rows


def write(directory: RunDirectory, model: TMS, data: EnsembleData, *, draw: bool) -> Results:
    """Write a trained ensemble's tables and, with `draw`, figures; return what a logger and a
    person want."""
    points = data.critical_points(model.W.shape[-2], model.importance)
    phases = _phases(model)
    members = members_table(model, phases)
    plateaus = model.history.rows("plateaus")
    transitions = _transitions(plateaus, model.members)
    by_phase = phase_table(members, points)
    _write_tables(directory, model, phases, members, transitions)
    folder = directory.path / "figures"
    drawn = _draw(folder, model, phases, members, points) if draw else {}
    return Results(
        summary=_summary(members),
        tables={
            "members": members,
            "plateaus": plateaus,
            "transitions": transitions,
            "phases": by_phase,
        },
        figures=drawn,
        by_phase=by_phase,
    )


def _phases(model: TMS) -> list[list[str]] | None:
    """The label of each member at each snapshot, or None where there are no snapshots."""
    if "weights" not in model.history:
        return None
    codes = phase_codes(*(model.history.column("weights", name) for name in ("W", "b")))
    return np.array(phase_labels(model.b.shape[-1]))[codes.numpy()].tolist()


def members_table(model: TMS, phases: list[list[str]] | None) -> Rows:
    """The final word on every member, a row each.

    member, state (finished or diverged), diverged_at (step or None), final_loss, phase,
    n_transitions, stages ("4++- -> 4+ -> 5"), llc, llc_stderr, llc_verdict, and the final weights'
    features_represented, dimensionality and interference (`theory.geometry`); None where the
    callback that would know did not run.
    """
    history = model.history
    loss = history.column("loss", "loss")[-1].tolist() if "loss" in history else None
    llc = {k: v[-1].tolist() for k, v in history.columns("llc").items()} if "llc" in history else {}
    shapes = [values.tolist() for values in geometry(model.W.detach())]
    rows = []
    for i, member in enumerate(model.members):
        diverged_at = int(model.diverged_at[i])
        passed = stages(history.rows("plateaus"), member)
        rows.append(
            {
                "member": member,
                "state": "finished" if diverged_at < 0 else "diverged",
                "diverged_at": None if diverged_at < 0 else diverged_at,
                "final_loss": loss and loss[i],
                "phase": None if phases is None or diverged_at >= 0 else phases[-1][i],
                "n_transitions": max(len(passed) - 1, 0),
                "stages": " -> ".join(stage["nearest"] for stage in passed),
                "llc": llc["mean"][i] if llc else None,
                "llc_stderr": llc["stderr"][i] if llc else None,
                "llc_verdict": VERDICTS[llc["verdict"][i]] if llc else None,
                **{
                    name: values[i] if diverged_at < 0 and np.isfinite(values[i]) else None
                    for name, values in zip(Geometry._fields, shapes, strict=True)
                },
            }
        )
    return rows


def stages(plateaus: Rows, member: int) -> Rows:
    """A member's passage through critical levels: its plateaus within LEVEL_TOLERANCE of one, those
    that continue the stage before left out."""
    passed: Rows = []
    for plateau in plateaus:
        near = plateau["nearest"] is not None and plateau["distance"] <= LEVEL_TOLERANCE
        if plateau["member"] == member and near:
            if passed and passed[-1]["nearest"] == plateau["nearest"]:
                continue
            passed.append(plateau)
    return passed


def _transitions(plateaus: Rows, members: Sequence[int]) -> Rows:
    """How often each passage from one stage to the next was seen, most often first."""
    seen: Counter[tuple[str, str]] = Counter()
    for member in members:
        seen.update(pairwise(stage["nearest"] for stage in stages(plateaus, member)))
    return [
        {"from": before, "to": after, "members": count}
        for (before, after), count in seen.most_common()
    ]


def phase_table(members: Rows, points: list[CriticalPoint]) -> Rows:
    """Final phases with members, mean loss and mean LLC beside the theory's, by loss.

    The mean LLC is over estimates with the verdict ok; `llc_ok` says how many those are.
    """
    theory = {point.label: point for point in points}
    groups: dict[str, Rows] = defaultdict(list)
    for row in members:
        groups["diverged" if row["state"] == "diverged" else row["phase"] or "unknown"].append(row)
    table = []
    for phase, rows in groups.items():
        ok = [row["llc"] for row in rows if row["llc_verdict"] == "ok"]
        losses = [row["final_loss"] for row in rows if row["final_loss"] is not None]
        point = theory.get(phase)
        table.append(
            {
                "phase": phase,
                "members": len(rows),
                "loss": float(np.mean(losses)) if losses else None,
                "theory_loss": point and point.loss,
                "llc": float(np.mean(ok)) if ok else None,
                "llc_ok": len(ok),
                "theory_llc": point and point.llc,
            }
        )
    return sorted(
        table, key=lambda row: (row["phase"] in ("other", "diverged"), row["loss"] or 0.0)
    )


def _summary(members: Rows) -> dict[str, float | str]:
    """The numbers of a run that a table of runs shows."""
    alive = [row for row in members if row["state"] == "finished"]
    summary: dict[str, float | str] = {
        "final/members": float(len(members)),
        "final/diverged": float(len(members) - len(alive)),
        "final/transitions": float(sum(row["n_transitions"] for row in members)),
    }
    losses = [row["final_loss"] for row in alive if row["final_loss"] is not None]
    if losses:
        summary["final/loss"] = float(np.mean(losses))
    phases = Counter(row["phase"] for row in alive if row["phase"] is not None)
    for phase, count in phases.items():
        summary[f"final/phase/{phase}"] = float(count)
        ok = [r["llc"] for r in alive if r["phase"] == phase and r["llc_verdict"] == "ok"]
        if ok:
            summary[f"final/llc/{phase}"] = float(np.mean(ok))
    if phases:
        summary["final/most_common_phase"] = phases.most_common(1)[0][0]
    return summary


def _write_tables(
    directory: RunDirectory,
    model: TMS,
    phases: list[list[str]] | None,
    members: Rows,
    transitions: Rows,
) -> None:
    history = model.history
    directory.save_rows("members", members)
    directory.save_rows("plateaus", history.rows("plateaus"))
    directory.save_rows("transitions", transitions)
    for table in ("loss", "llc"):
        if table in history:
            columns = {k: v.numpy() for k, v in history.columns(table).items()}
            if table == "llc":
                columns["verdict"] = np.array(VERDICTS)[columns["verdict"]]
            steps = history.steps(table).numpy()
            directory.save_table(table, long_table(steps, model.members, columns))
    if phases is not None:
        step = history.steps("weights").numpy()
        labels = {"phase": np.array(phases)}
        directory.save_table("snapshots", long_table(step, model.members, labels))
        W, b = (history.column("weights", name).numpy() for name in ("W", "b"))
        directory.save_weights(step, W, b)


def _draw(
    folder: Path,
    model: TMS,
    phases: list[list[str]] | None,
    members: Rows,
    points: list[CriticalPoint],
) -> dict[str, Path]:
    """Draw what the record has the data for; the PNG files by name."""
    history = model.history
    drawn = {}
    final = [row["phase"] or "other" for row in members] if phases is not None else None
    if "loss" in history:
        step, loss = history.steps("loss").numpy(), history.column("loss", "loss").numpy()
        drawn["loss"] = training_figures.loss_curves(step, loss, points, final_phase=final)
        if phases is not None:
            drawn["staircase"] = _staircase(model, step, loss, phases, members, points)
    if phases is not None:
        snapshots = history.steps("weights").numpy()
        drawn["phases"] = training_figures.phase_counts(snapshots, np.array(phases))
        W, b = (history.column("weights", name)[-1, :16].numpy() for name in ("W", "b"))
        drawn["weights"] = weight_figures.weights(W, b, phases[-1][:16])
        if "llc" in history and "loss" in history:
            drawn["llc"] = _llc_by_phase(model, phases, points)
    return {name: style.save(figure, folder / name)[0] for name, figure in drawn.items()}


def _staircase(
    model: TMS,
    step: Any,
    loss: Any,
    phases: list[list[str]],
    members: Rows,
    points: list[CriticalPoint],
) -> Any:
    """Figure 1: the member with the most transitions, of several the one that ends lowest."""
    history = model.history
    chosen = max(
        range(len(members)),
        key=lambda i: (members[i]["n_transitions"], -(members[i]["final_loss"] or np.inf)),
    )
    plateaus = [
        row for row in history.rows("plateaus") if row["member"] == members[chosen]["member"]
    ]
    snapshots = history.steps("weights").numpy()
    W, b = (history.column("weights", name)[:, chosen].numpy() for name in ("W", "b"))
    pictures = []
    for plateau in stages(plateaus, members[chosen]["member"]):
        # The snapshot nearest to the middle of the stage's first plateau.
        middle = (plateau["start"] + plateau["end"]) / 2
        at = int(np.abs(snapshots - middle).argmin())
        pictures.append(
            training_figures.Stage(plateau["nearest"], int(snapshots[at]), W[at], b[at])
        )
    llc: dict[str, Any] = {"llc_step": None, "llc": None, "llc_stderr": None}
    if "llc" in history:
        llc = {
            "llc_step": history.steps("llc").numpy(),
            "llc": history.column("llc", "mean")[:, chosen].numpy(),
            "llc_stderr": history.column("llc", "stderr")[:, chosen].numpy(),
        }
    return training_figures.staircase(
        step, loss[:, chosen], plateaus=plateaus, stages=pictures, points=points, **llc
    )


def _llc_by_phase(model: TMS, phases: list[list[str]], points: list[CriticalPoint]) -> Any:
    history = model.history
    label_at = dict(zip(history.steps("weights").tolist(), phases, strict=True))
    loss_at = dict(
        zip(history.steps("loss").tolist(), history.column("loss", "loss").numpy(), strict=True)
    )
    known = [
        (i, step)
        for i, step in enumerate(history.steps("llc").tolist())
        if step in label_at and step in loss_at
    ]
    llc = history.column("llc", "mean").numpy()[[i for i, _ in known]]
    loss = np.stack([loss_at[step] for _, step in known])
    labels = np.array([label_at[step] for _, step in known])
    # Far above every critical level an estimate is about nothing, and would squeeze the rest.
    near = loss <= 1.3 * max((point.loss for point in points), default=np.inf)
    return training_figures.llc_by_phase(loss[near], llc[near], labels[near].tolist(), points)


def print_results(results: Results, directory: Path, looks: Sequence[str]) -> None:
    """Print the table of final phases, and what to open or type next."""
    console = Console()
    table = Table(title=f"Final phases of {int(results.summary['final/members'])} members")
    for name in ("phase", "members", "loss", "theory", "LLC", "theory", "LLC ok"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for row in results.by_phase:
        table.add_row(
            row["phase"],
            str(row["members"]),
            _number(row["loss"], 5),
            _number(row["theory_loss"], 5),
            _number(row["llc"], 2),
            _number(row["theory_llc"], 2),
            f"{row['llc_ok']} of {row['members']}",
        )
    console.print(table)
    console.print(
        f"{results.summary['final/transitions']:.0f} transitions between critical levels. "
        "LLC: mean over estimates with the verdict ok."
    )
    console.print(f"\n  [bold]{directory}[/bold]", highlight=False)
    for path in results.figures.values():
        console.print(f"    {path.relative_to(directory)}", highlight=False)
    for look in (f"kgon report {directory}", *looks):
        console.print(f"  {look}", highlight=False, soft_wrap=True)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
