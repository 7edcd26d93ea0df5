"""The figures of a training run, from what it recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kgon.data import WATCHED
from kgon.figures import style
from kgon.figures import training as training_figures
from kgon.figures import weights as weight_figures
from kgon.figures.film import film
from kgon.figures.training import Curves, staircase
from kgon.record import tables
from kgon.record.run_directory import Run
from kgon.record.tables import Member, Plateau
from kgon.theory.critical import CriticalPoint
from kgon.theory.loss import importance_weights
from kgon.training.history import History


def critical_points(run: Run) -> list[CriticalPoint]:
    """The critical points of the loss that the run was trained on, as its data know them.

    None where the run has no losses: its config may be what made it fail.
    """
    model, data = run.config.get("model") or {}, run.config.get("data")
    if not data or not (run.loss or run.members):
        return []
    try:
        distribution = instantiate(data)
    except InstantiationException:  # a distribution of the user's, not importable from here
        return []
    importance = importance_weights(model.get("importance"), distribution.n_features)
    found: list[CriticalPoint] = distribution.critical_points(model.get("n_hidden"), importance)
    return found


def loss_name(run: Run) -> str:
    """What the loss of a run is called in figures."""
    estimated = any(row.get("loss_stderr") is not None for row in run.members)
    importance = (run.config.get("model") or {}).get("importance")
    weighted = importance is not None and set(np.ravel(importance)) != {1}
    return style.loss_name(WATCHED if estimated else None, weighted)


@dataclass(frozen=True)
class Drawing:
    """What the figures of a trained ensemble show.

    Attributes:
        history: the tables `loss`, `llc` and `weights`, as far as they were recorded.
        points: the known critical points.
        members: the final results.
        plateaus: of all members.
        labels: phases (n_snapshots, n_members); None without snapshots.
        verdicts: on the LLC estimates (n_estimates, n_members); None without estimates.
        loss_name: what the loss is called (`figures.style.loss_name`).
    """

    history: History
    points: Sequence[CriticalPoint]
    members: Sequence[Member]
    plateaus: Sequence[Plateau]
    labels: NDArray[Any] | None
    verdicts: NDArray[Any] | None
    loss_name: str

    @classmethod
    def of(cls, run: Run) -> "Drawing":
        """What a finished run recorded."""
        steps: dict[str, Any] = {}
        columns: dict[str, Any] = {}

        def block(table: pa.Table, name: str) -> NDArray[Any]:
            values: NDArray[Any] = table[name].to_numpy().reshape(-1, len(run.members))
            return values

        for name, table, shown in (("loss", run.loss, ["loss"]),
                                   ("llc", run.llc, ["mean", "stderr"])):  # fmt: skip
            if table is not None:
                steps[name] = block(table, "step")[:, 0].tolist()
                columns[name] = {k: torch.tensor(block(table, k)) for k in shown}
        if run.snapshots is not None:
            weights = {k: torch.from_numpy(value) for k, value in run.weights().items()}
            steps["weights"] = weights.pop("step").tolist()
            columns["weights"] = weights
        return cls(
            history=History({"steps": steps, "columns": columns}),
            points=critical_points(run),
            members=[Member.of(row) for row in run.members],
            plateaus=[Plateau.of(row) for row in run.plateaus],
            labels=None if run.snapshots is None else block(run.snapshots, "phase"),
            verdicts=None if run.llc is None else block(run.llc, "verdict"),
            loss_name=loss_name(run),
        )

    def column(self, table: str, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self.history.column(table, name).numpy()
        return column

    def figures(self) -> dict[str, Figure]:
        """The figures for which there are data."""
        drawn = {}
        if "loss" in self.history:
            drawn["loss"] = training_figures.loss_curves(
                self.history.steps("loss").numpy(),
                self.column("loss", "loss"),
                self.points,
                final_phase=None if self.labels is None
                else [m.phase or "other" for m in self.members],
                name=self.loss_name,
            )  # fmt: skip
            if self.labels is not None:
                drawn["staircase"] = staircase(self.curves(self.most_transitions()))
        if self.labels is not None:
            steps = self.history.steps("weights").numpy()
            drawn["phases"] = training_figures.phase_counts(steps, self.labels)
            shown = slice(weight_figures.MAX_WEIGHTS)
            W, b = (self.column("weights", name)[-1, shown] for name in ("W", "b"))
            drawn["weights"] = weight_figures.weights(W, b, self.labels[-1, shown].tolist())
            if self.verdicts is not None and "loss" in self.history:
                drawn["llc"] = self._llc_by_phase(self.labels, self.verdicts)
        return drawn

    def most_transitions(self) -> int:
        """The number of the member with most transitions; of several, with lowest final loss."""
        chosen = max(self.members, key=lambda m: (m.n_transitions or 0, -(m.final_loss or np.inf)))
        return chosen.member

    def curves(self, member: int) -> Curves:
        """A member's loss, stages and LLC along training."""
        place = self.place(member)
        own = [plateau for plateau in self.plateaus if plateau.member == member]
        snapshots = self.history.steps("weights").numpy()
        W, b = (self.column("weights", name)[:, place] for name in ("W", "b"))
        pictures = []
        for stage in tables.stages(own, member):
            # The snapshot nearest to the middle of the stage's first plateau.
            at = int(np.abs(snapshots - (stage.start + stage.end) / 2).argmin())
            pictures.append((str(stage.nearest), int(snapshots[at]), W[at], b[at]))
        llc: dict[str, Any] = {}
        if self.verdicts is not None:
            mean, stderr = (self.column("llc", name)[:, place] for name in ("mean", "stderr"))
            llc = {"llc_step": self.history.steps("llc").numpy(), "llc": mean}
            llc |= {"llc_stderr": stderr, "llc_ok": self.verdicts[:, place] == "ok"}
        return Curves(
            step=self.history.steps("loss").numpy(),
            loss=self.column("loss", "loss")[:, place],
            plateaus=[tables.plain(plateau) for plateau in own],
            stages=pictures,
            points=self.points,
            name=self.loss_name,
            **llc,
        )

    def film(self, path: Path, member: int | None = None, *, log: bool = False) -> Path:
        """Write the film of a member, of the one with most transitions by default, to `path`.

        Raises:
            ValueError: there is no such member, or losses or snapshots were not recorded.
        """
        if "loss" not in self.history or self.labels is None:
            raise ValueError("a film needs recorded losses and snapshots")
        member = self.most_transitions() if member is None else member
        place = self.place(member)
        steps = self.history.steps("weights").numpy()
        W, b = (self.column("weights", name)[:, place] for name in ("W", "b"))
        return film(path, steps, W, b, self.labels[:, place].tolist(), self.curves(member), log=log)

    def place(self, member: int) -> int:
        """The position of a member in the columns."""
        numbers = [m.member for m in self.members]
        if member not in numbers:
            there = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
            raise ValueError(f"member must be one of the run's ({there}), got {member}")
        return numbers.index(member)

    def _llc_by_phase(self, labels: NDArray[Any], verdicts: NDArray[Any]) -> Figure:
        """The estimates at steps at which phase and loss are known too."""
        at = {name: self.history.steps(name).numpy() for name in ("llc", "loss", "weights")}
        known = np.isin(at["llc"], at["loss"]) & np.isin(at["llc"], at["weights"])
        steps = at["llc"][known]
        loss = self.column("loss", "loss")[np.searchsorted(at["loss"], steps)]
        label = labels[np.searchsorted(at["weights"], steps)]
        llc, verdicts = self.column("llc", "mean")[known], verdicts[known]
        # Far above every critical level an estimate is meaningless, and it would compress the rest.
        near = loss <= 1.3 * max((point.loss for point in self.points), default=np.inf)
        return training_figures.llc_by_phase(
            loss[near], llc[near], label[near].tolist(), self.points, verdicts[near].tolist(),
            name=self.loss_name,
        )  # fmt: skip
