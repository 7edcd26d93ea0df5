"""Items about training: staircases, final phases, first transitions."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from kgon.paper.ensemble import Ensemble, during
from kgon.paper.rows import Published, Row, Table, share_stderr
from kgon.record.tables import LEVEL_TOLERANCE

PATH = ("4++-", "4+", "5")
"""The stages of the paper's Figure 1."""


# ---------------------------------------------------------------------------- Figures 1 and 3


def figure_1(one: Ensemble, many: Ensemble) -> tuple[list[Row], dict[str, Any]]:
    """The opposing staircases of one member, and how many of many members take its path."""
    member = one.run.members[0]["member"]
    passed, path = one.stages[member], one.path(member)
    step, loss = one.curve("loss", "loss")
    llc_step, llc = one.curve("llc", "mean")
    _, stderr = one.curve("llc", "stderr")
    ok = one.curve("llc", "verdict")[1][:, 0] == "ok"
    levels, trusted = [], []
    for stage in one.lasting(member):
        levels.append(during(llc_step, llc[:, 0], stage))
        inside = ok[(llc_step >= stage["start"]) & (llc_step <= stage["end"])]
        trusted.append(f"{stage['nearest']} {inside.sum()} of {len(inside)}")
    rises = all(
        (after[0] - before[0]) > 2 * math.hypot(after[1], before[1])
        for before, after in pairwise(levels)
        if not math.isnan(before[0] + after[0])
    )
    falls = all(a["loss"] > b["loss"] for a, b in pairwise(passed))
    where = "Fig. 1"
    taken = sum(many.path(m) == PATH for m in many.stages)
    weights = one.run.weights()
    pictures = []
    for stage in passed:
        middle = (stage["start"] + stage["end"]) / 2
        at = int(np.abs(weights["step"] - middle).argmin())
        pictures.append([stage["nearest"], int(weights["step"][at]),
                         weights["W"][at, 0].tolist(), weights["b"][at, 0].tolist()])  # fmt: skip
    data = {
        "n_features": one.n_features,
        "step": step.tolist(),
        "loss": loss[:, 0].tolist(),
        "llc_step": llc_step.tolist(),
        "llc": llc[:, 0].tolist(),
        "llc_stderr": stderr[:, 0].tolist(),
        "llc_ok": ok.tolist(),
        "plateaus": [
            {k: p[k] for k in ("start", "end", "loss", "nearest")} for p in one.run.plateaus
        ],
        "stages": pictures,
    }
    rows = [
        Row(f"stages of member {member}", path == PATH,
            Published(True, ("P", "R"), where, text=" → ".join(PATH)), text=" → ".join(path)),
        Row("the loss falls from stage to stage", falls, Published(True, ("P",), where),
            text=" > ".join(f"{s['loss']:.4f}" for s in passed)),
        Row("λ̂ rises from stage to stage, each by more than two standard errors", rises,
            Published(True, ("P",), where),
            text=" < ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in levels),
            remark=f"estimates with the verdict ok: {', '.join(trusted)}"),
        Row(f"runs from 4-gons that take the path {' → '.join(PATH)}, of {many.n_members}",
            float(taken), digits=0,
            remark="the paper shows one run and does not say how usual it is"),
    ]  # fmt: skip
    return rows, data


_ENDS_NEAR_ZERO = {"4+": 26, "4++": 14, "4": 11}
_PATHS_NEAR_ZERO = {("4+", "5"): 8, ("4++", "5+"): 5}
_ENDS_NORMAL = {"5": 25, "4": 15, "5+": 12, "6": 5, "4+": 3}
_TRIED = 64
"""How many runs of an independent reproduction end on a level, or take a path, of _TRIED runs."""
_RECORDS = 80
"""The number of steps of the loss curves in the figure, at most."""


def figure_3(many: Ensemble) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    """Many runs from 4-gons: rows about their levels, and data of the losses and of the LLCs."""
    met = {stage["nearest"] for passed in many.stages.values() for stage in passed}
    points = many.points
    gap = min(abs(a.loss - b.loss) for a, b in pairwise(points))
    settled = sum(
        min(abs(row["final_loss"] - p.loss) for p in points) <= LEVEL_TOLERANCE
        for row, passed in zip(many.run.members, many.stages.values(), strict=True)
        if passed and row["final_loss"] is not None
    )
    c = many.n_features
    rows = [
        Row(f"c = {c}: critical levels drawn", float(len(points)), digits=0,
            published=Published(18.0, ("P", "I"), "Fig. 3, Sec. 3") if c == 6 else None),
        Row(f"c = {c}: of these met as plateaus by some run", float(len(met)), digits=0,
            text=f"{len(met)}: {', '.join(p.label for p in points if p.label in met)}",
            remark=f"nearest two levels differ by {gap:.4f}, a plateau counts within "
            f"{LEVEL_TOLERANCE:g}"),
        Row(f"c = {c}: runs that end within {LEVEL_TOLERANCE:g} of a critical level",
            settled / many.n_members, digits=3,
            text=f"{settled} of {many.n_members}",
            remark="the paper shows that losses settle on the levels, without a number"),
    ]  # fmt: skip
    if c == 6:
        n_on_6 = many.final_phases.count("6")
        rows.append(
            Row("c = 6: no run from a 4-gon ends on 6", n_on_6 == 0,
                Published(True, ("P",), "Sec. 5", text="5 → 6 not seen dynamically"),
                text=f"{n_on_6} of {many.n_members}")
        )  # fmt: skip
    return rows, _loss_data(many), _llc_data(many)


def _loss_data(many: Ensemble) -> dict[str, Any]:
    """The loss of all members with their final phases, at steps that are about evenly spaced on the
    figure's logarithmic axis."""
    step, loss = many.curve("loss", "loss")
    place = np.log1p(step / max(float(step[step > 0].min()), 1.0))
    wanted = np.linspace(place[0], place[-1], _RECORDS)
    kept = np.unique(np.abs(place[None] - wanted[:, None]).argmin(1))
    return {
        "n_features": many.n_features,
        "step": step[kept].tolist(),
        "loss": loss[kept].tolist(),
        "final_phase": many.final_phases,
    }


def _llc_data(many: Ensemble) -> dict[str, Any]:
    """Quartiles of the estimates at each step over the members that are then in each phase."""
    step, llc = many.curve("llc", "mean")
    at, phases = many.curve("snapshots", "phase")
    rows = []
    for s, values in zip(step, llc, strict=True):
        labels = phases[int(np.searchsorted(at, s))]
        for label in np.unique(labels):
            here = values[(labels == label) & np.isfinite(values)]
            if len(here):
                low, median, high = np.quantile(here, [0.25, 0.5, 0.75])
                rows.append({"step": int(s), "phase": str(label), "members": len(here),
                             "low": low, "median": median, "high": high})  # fmt: skip
    return {"n_features": many.n_features, "rows": rows}


def near_zero_starts(runs: Ensemble) -> list[Row]:
    """Starts with biases near 0: shares that stay on a level or take a path."""
    paths = Counter(runs.path(member) for member in runs.stages)
    name = "biases near 0: share that"
    return [
        *(_share_row(f"{name} ends on {label} without a transition", paths[(label,)], runs, count)
          for label, count in _ENDS_NEAR_ZERO.items()),
        *(_share_row(f"{name} goes {' → '.join(path)}", paths[path], runs, count)
          for path, count in _PATHS_NEAR_ZERO.items()),
    ]  # fmt: skip


def normal_starts(runs: Ensemble) -> list[Row]:
    """Starts W, b ~ N(0, 1): the level of the last stage."""
    ends = Counter(path[-1] for member in runs.stages if (path := runs.path(member)))
    return [
        _share_row(f"W, b ~ N(0, 1): share that ends on {label}", ends[label], runs, count)
        for label, count in _ENDS_NORMAL.items()
    ]


def _share_row(name: str, count: int, runs: Ensemble, published: int) -> Row:
    """A share of runs beside the share in the independent reproduction."""
    reference = Published(
        published / _TRIED, ("D",), "64 runs of an independent reproduction",
        spread=share_stderr(published, _TRIED), text=f"{published}/{_TRIED}",
    )  # fmt: skip
    total = runs.n_members
    return Row(name, count / total, reference, share_stderr(count, total), digits=3)


# ------------------------------------------------------------------------------ beyond the paper


@dataclass(frozen=True)
class FirstTransition:
    """When the members of a run leave their first plateau; times are learning rate x steps.

    Attributes:
        members: how many have a plateau at all; the others are left out.
        left: how many of them leave it by the end of the run.
        share, share_stderr: left / members.
        low, median, high: quartiles of the time, over those that leave.
        end: the time of the run's end.
    """

    batch_size: int
    lr: float
    members: int
    left: int
    share: float
    share_stderr: float
    low: float
    median: float
    high: float
    end: float


def first_transition(ensemble: Ensemble) -> FirstTransition:
    """When the members of a run leave their first plateau."""
    config = ensemble.run.config
    lr = float(config["model"]["optimizer"]["lr"])
    lasting = [stages for m in ensemble.stages if (stages := ensemble.lasting(m))]
    left = [stages[0]["end"] * lr for stages in lasting if len(stages) > 1]
    low, median, high = np.quantile(left, [0.25, 0.5, 0.75]) if left else (math.nan,) * 3
    members = max(len(lasting), 1)
    return FirstTransition(
        batch_size=config["datamodule"]["batch_size"],
        lr=lr,
        members=len(lasting),
        left=len(left),
        share=len(left) / members,
        share_stderr=share_stderr(len(left), members),
        low=low,
        median=median,
        high=high,
        end=int(config["trainer"]["max_steps"]) * lr,
    )


@dataclass(frozen=True)
class Survival:
    """How many members of a run are still in the phase of their start, and where members end."""

    sparsity: float
    label: str
    members: int
    survived: int
    ends: dict[str, int]


def survival(ensemble: Ensemble) -> Survival:
    """How many members are still in the phase of their start."""
    config = ensemble.run.config
    label = str(config["model"]["init"]["label"])
    counts = Counter(ensemble.final_phases)
    return Survival(
        sparsity=float(config["datamodule"]["distribution"]["sparsity"]),
        label=label,
        members=ensemble.n_members,
        survived=counts[label],
        ends=dict(counts.most_common()),
    )


def final_phases(runs: Iterable[Ensemble]) -> Table:
    """How many members end in which phase, for each run."""
    body = []
    for ensemble in runs:
        config = ensemble.run.config
        counts = Counter(ensemble.final_phases).most_common()
        sparsity = config["datamodule"]["distribution"].get("sparsity")
        body.append(
            [str(ensemble.n_features), "→ 1" if sparsity is None else f"{sparsity:g}",
             str(ensemble.n_members), ", ".join(f"{label}: {n}" for label, n in counts)]
        )  # fmt: skip
    return "final phases", ["c", "sparsity", "members", "phases"], body
