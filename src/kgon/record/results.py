"""The record of a trained ensemble: tables and figures in its run directory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kgon.callbacks.recorder import Recorder
from kgon.data import WATCHED
from kgon.figures import style
from kgon.files import finite_or_none
from kgon.llc.verdict import REASONS, VERDICTS, verdict, words
from kgon.record import tables
from kgon.record.drawing import Drawing
from kgon.record.run_directory import RunDirectory
from kgon.record.tables import RECORDED, Member, Phase, Plateau, Row, Snapshot, Transition
from kgon.theory.geometry import geometry
from kgon.theory.phases import phase_codes, phase_labels
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS

Rows = list[dict[str, Any]]

_KGONS = {"weights", "phases", "plateau_count", "pictures"}
"""Tables of the history that are recorded in other forms."""


def check_table(recorder: Recorder) -> None:
    """ValueError if the table of a recorder of a user's own cannot be a file of the record."""
    table, own = recorder.table, type(recorder).__module__.partition(".")[0] != "kgon"
    if own and (not table.isidentifier() or table in _KGONS | RECORDED.keys()):
        taken = ", ".join(sorted(_KGONS | RECORDED.keys()))
        raise ValueError(
            f"{type(recorder).__name__}.table must be a word other than {taken}; got {table!r}"
        )


@dataclass(frozen=True)
class Results:
    """What a training run found: a summary, tables and PNG files by name, the final phases."""

    summary: dict[str, float | str]
    tables: dict[str, Rows]
    figures: dict[str, Path]
    by_phase: list[Phase]


def write(directory: RunDirectory, model: TMS, data: EnsembleData, *, draw: bool) -> Results:
    """Write a trained ensemble's tables and, with `draw`, its figures; return what is logged."""
    trained = _Trained(model, data)
    by_phase = tables.phases(trained.members, trained.points)
    transitions = tables.transitions(trained.members)
    directory.save_table("members", tables.table(Member, trained.members))
    directory.save_table("plateaus", tables.table(Plateau, trained.plateaus))
    directory.save_table("transitions", tables.table(Transition, transitions))
    trained.write_history(directory)
    rows: dict[str, Sequence[Row]] = {
        "members": trained.members,
        "plateaus": trained.plateaus,
        "transitions": transitions,
        "phases": by_phase,
    }
    drawn = trained.drawing().figures() if draw else {}
    return Results(
        summary=_summary(trained.members, by_phase),
        tables={name: [tables.plain(row) for row in some] for name, some in rows.items()},
        figures={k: style.save(v, directory.path / "figures" / k)[0] for k, v in drawn.items()},
        by_phase=by_phase,
    )


def _summary(members: Sequence[Member], by_phase: Sequence[Phase]) -> dict[str, float | str]:
    """The results of a run that a table of runs shows."""
    alive = [m for m in members if m.state == "finished"]
    summary: dict[str, float | str] = {
        "final/members": float(len(members)),
        "final/diverged": float(len(members) - len(alive)),
    }
    counts = [m.n_transitions for m in members if m.n_transitions is not None]
    if counts:
        summary["final/transitions"] = float(sum(counts))
    losses = [m.final_loss for m in alive if m.final_loss is not None]
    if losses:
        summary["final/loss"] = float(np.mean(losses))
    # All members' losses are of the same inputs: their errors do not cancel in the mean.
    errors = [m.loss_stderr for m in alive if m.loss_stderr is not None]
    if errors:
        summary["final/loss_stderr"] = float(np.mean(errors))
    found = {row.phase: row for row in by_phase}
    phases = Counter(m.phase for m in alive if m.phase is not None)
    for phase, count in phases.items():
        summary[f"final/phase/{phase}"] = float(count)
        if (llc := found[phase].llc) is not None:
            summary[f"final/llc/{phase}"] = llc
    if phases:
        summary["final/most_common_phase"] = phases.most_common(1)[0][0]
    return summary


class _Trained:
    """A trained ensemble, and what follows from its history.

    `labels` are the phases (n_snapshots, n_members), `verdicts` those on LLC estimates
    (n_estimates, n_members); None where there are none.
    """

    def __init__(self, model: TMS, data: EnsembleData):
        self.model = model
        self.history = model.history
        self.points = data.critical_points(model.W.shape[-2], model.importance)
        self.reported = data.distribution.reported_loss(model.importance)
        self.loss_name = style.loss_name(
            None if self.reported is None else WATCHED, model.importance is not None
        )
        self.labels: NDArray[Any] | None = None
        self.verdicts: NDArray[Any] | None = None
        if "llc" in self.history:
            self.verdicts = words(verdict(self.history.column("llc", "reason")), VERDICTS)
        if "weights" in self.history:
            codes = phase_codes(*(self.history.column("weights", name) for name in ("W", "b")))
            self.labels = np.array(phase_labels(model.b.shape[-1], model.W.shape[-2]))[
                codes.numpy()
            ]
        self.plateaus = [Plateau.of(row) for row in self.history.rows("plateaus")]
        self.members = self._members()

    def drawing(self) -> Drawing:
        return Drawing(
            self.history, self.points, self.members, self.plateaus, self.labels, self.verdicts,
            self.loss_name,
        )  # fmt: skip

    def column(self, table: str, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self.history.column(table, name).numpy()
        return column

    def _members(self) -> list[Member]:
        loss, loss_stderr = self._final_losses()
        llc, stderr = (
            self.column("llc", name)[-1].tolist() if self.verdicts is not None else None
            for name in ("mean", "stderr")
        )
        known = bool(self.points) and "plateaus" in self.history.lists
        geometries = geometry(self.model.W.detach().cpu())._asdict()
        members = []
        for i, member in enumerate(self.model.members):
            diverged_at = int(self.model.diverged_at[i])
            alive = diverged_at < 0
            passed = tables.stages(self.plateaus, member)
            members.append(
                Member(
                    member=member,
                    state="finished" if alive else "diverged",
                    diverged_at=None if alive else diverged_at,
                    final_loss=finite_or_none(loss[i]) if loss else None,
                    loss_stderr=finite_or_none(loss_stderr[i]) if loss_stderr else None,
                    phase=str(self.labels[-1, i]) if self.labels is not None and alive else None,
                    n_transitions=max(len(passed) - 1, 0) if known else None,
                    stages=tables.ARROW.join(str(stage.nearest) for stage in passed),
                    llc=finite_or_none(llc[i]) if llc else None,
                    llc_stderr=finite_or_none(stderr[i]) if stderr else None,
                    llc_verdict=None if self.verdicts is None else str(self.verdicts[-1, i]),
                    **{
                        name: finite_or_none(values[i].item()) if alive else None
                        for name, values in geometries.items()
                    },
                )
            )
        return members

    def _final_losses(self) -> tuple[list[float] | None, list[float] | None]:
        """Each member's final loss, and its standard error if it is an estimate."""
        if "loss" not in self.history:
            return None, None
        last = self.column("loss", "loss")[-1]
        if self.reported is None:
            return last.tolist(), None
        W, b = (parameter.double() for parameter in self.model.on_cpu())
        value, stderr = self.reported.with_stderr(W, b)
        return np.where(np.isfinite(last), value, np.nan).tolist(), stderr.tolist()

    def write_history(self, directory: RunDirectory) -> None:
        """Write the tables with a row for each step and member, and the weights."""
        members = self.model.members
        for table in ("loss", "llc"):
            if table in self.history:
                columns = {k: v.numpy() for k, v in self.history.columns(table).items()}
                if table == "llc" and self.verdicts is not None:
                    columns["verdict"] = self.verdicts
                    columns["reason"] = words(self.history.column("llc", "reason"), REASONS)
                steps = self.history.steps(table).numpy()
                directory.save_table(table, RECORDED[table].long_table(steps, members, columns))
        if self.labels is not None:
            steps = self.history.steps("weights").numpy()
            snapshots = Snapshot.long_table(steps, members, {"phase": self.labels})
            directory.save_table("snapshots", snapshots)
            W, b = self.column("weights", "W"), self.column("weights", "b")
            directory.save_weights(steps, W, b)
        for name, table in self._own_tables().items():
            directory.save_table(name, table)

    def _own_tables(self) -> dict[str, pa.Table]:
        """What callbacks of a user's own added to the history, with a row for each step and member,
        or, of a list, for each of its rows."""
        found = {}
        members = self.model.members
        for name in self.history.tables - _KGONS - RECORDED.keys():
            columns = self.history.columns(name)
            steps = self.history.steps(name).numpy()
            if columns:
                found[name] = tables.own_table(steps, members, columns)
        for name, lists in self.history.lists.items():
            if name not in RECORDED:
                pairs = zip(members, lists, strict=True)
                found[name] = pa.Table.from_pylist(
                    [{"member": member, **row} for member, rows in pairs for row in rows]
                )
        return found
