"""Items about training: staircases, transitions, their Bayesian antecedents, what changes them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgon.paper.rows import Published, Row, share_stderr
from kgon.paper.theory import Table
from kgon.record.run_directory import Run
from kgon.record.tables import LEVEL_TOLERANCE, Plateau, stages
from kgon.theory.critical import CriticalPoint, critical_points
from kgon.theory.free_energy import critical_sample_size

Rows = list[dict[str, Any]]
Array = NDArray[Any]

PATH = ("4++-", "4+", "5")
"""The stages of the paper's Figure 1."""


@dataclass(frozen=True)
class Ensemble:
    """A training run with its stages by member."""

    run: Run

    @cached_property
    def stages(self) -> dict[int, Rows]:
        """Each member's passage through critical levels (`record.tables.stages`)."""
        plateaus = defaultdict(list)
        for plateau in self.run.plateaus:
            plateaus[plateau["member"]].append(Plateau.of(plateau))
        return {
            m["member"]: [stage.plain() for stage in stages(plateaus[m["member"]], m["member"])]
            for m in self.run.members
        }

    @property
    def n_members(self) -> int:
        return len(self.run.members)

    @property
    def n_features(self) -> int:
        return int(self.run.config["model"]["n_features"])

    @property
    def points(self) -> list[CriticalPoint]:
        return critical_points(self.n_features)

    def path(self, member: int) -> tuple[str, ...]:
        """The levels that a member passes, in order."""
        return tuple(stage["nearest"] for stage in self.stages[member])

    def curve(self, table: str, column: str) -> tuple[Array, Array]:
        """step (S,) and a column (S, M) of the tables loss, llc or snapshots."""
        rows = getattr(self.run, table)
        if rows is None:
            raise ValueError(f"{self.run.path} has no table {table}")
        step = np.unique(rows["step"].to_numpy())
        values = rows[column].to_numpy(zero_copy_only=False)
        return step, values.reshape(len(step), self.n_members)

    @cached_property
    def final_phases(self) -> list[str]:
        return [row["phase"] or "other" for row in self.run.members]


# ---------------------------------------------------------------------------- Figures 1 and 3


def figure_1(one: Ensemble, many: Ensemble) -> tuple[list[Row], dict[str, Any]]:
    """The opposing staircases of one member, and how usual its path is among many."""
    member = one.run.members[0]["member"]
    passed, path = one.stages[member], one.path(member)
    step, loss = one.curve("loss", "loss")
    llc_step, llc = one.curve("llc", "mean")
    _, stderr = one.curve("llc", "stderr")
    levels = [_during(llc_step, llc[:, 0], stage) for stage in _lasting(one, member)]
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
            text=" < ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in levels)),
        Row(f"runs from 4-gons that take the path {' → '.join(PATH)}, of {many.n_members}",
            float(taken), digits=0,
            remark="the paper shows one run and does not say how usual it is"),
    ]  # fmt: skip
    return rows, data


def _lasting(one: Ensemble, member: int) -> Rows:
    """The stages with the end of the last plateau at their level, instead of the first's."""
    plateaus = [p for p in one.run.plateaus if p["member"] == member]
    lasting = []
    for stage in one.stages[member]:
        following = [s["start"] for s in one.stages[member] if s["start"] > stage["start"]]
        until = min(following, default=math.inf)
        ends = [
            p["end"]
            for p in plateaus
            if p["nearest"] == stage["nearest"] and stage["start"] <= p["start"] < until
        ]
        lasting.append({**stage, "end": max(ends)})
    return lasting


def _during(step: Array, llc: Array, stage: Mapping[str, Any]) -> tuple[float, float]:
    """Mean of the estimates within a stage, and its standard error over them."""
    inside = llc[(step >= stage["start"]) & (step <= stage["end"]) & np.isfinite(llc)]
    if not len(inside):
        return math.nan, math.nan
    error = float(inside.std(ddof=1)) / math.sqrt(len(inside)) if len(inside) > 1 else math.nan
    return float(inside.mean()), error


_ENDS_NEAR_ZERO = {"4+": 26, "4++": 14, "4": 11}
_PATHS_NEAR_ZERO = {("4+", "5"): 8, ("4++", "5+"): 5}
_ENDS_NORMAL = {"5": 25, "4": 15, "5+": 12, "6": 5, "4+": 3}
_TRIED = 64


def figure_3(many: Ensemble) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    """Many runs from 4-gons: which levels they meet, where they end."""
    met = {stage["nearest"] for passed in many.stages.values() for stage in passed}
    points = many.points
    gaps = [abs(a.loss - b.loss) for a, b in pairwise(points)]
    resting = [
        row["final_loss"]
        for row, passed in zip(many.run.members, many.stages.values(), strict=True)
        if passed
    ]
    off = [min(abs(loss - p.loss) for p in points) for loss in resting]
    where = "Fig. 3"
    c = many.n_features
    settled = sum(d <= LEVEL_TOLERANCE for d in off)
    lowest = ["6"] if c == 6 else []
    rows = [
        Row(f"c = {c}: critical levels drawn", float(len(points)), digits=0,
            published=Published(18.0, ("P", "I"), f"{where}, Sec. 3") if c == 6 else None),
        Row(f"c = {c}: of these met as plateaus by some run", float(len(met)), digits=0,
            text=f"{len(met)}: {', '.join(p.label for p in points if p.label in met)}",
            remark=f"nearest two levels differ by {min(gaps):.4f}, a plateau counts within "
            f"{LEVEL_TOLERANCE:g}" if len(gaps) else ""),
        Row(f"c = {c}: runs that end within {LEVEL_TOLERANCE:g} of a critical level",
            settled / many.n_members, digits=3,
            text=f"{settled} of {many.n_members}",
            remark="the paper shows that losses settle on the levels, without a number"),
        *(Row(f"c = {c}: no run from a 4-gon ends on {label}",
              many.final_phases.count(label) == 0,
              Published(True, ("P",), "Sec. 5", text="5 → 6 not seen dynamically"),
              text=f"{many.final_phases.count(label)} of {many.n_members}")
          for label in lowest),
    ]  # fmt: skip
    return rows, loss_data(many), llc_data(many)


def loss_data(many: Ensemble, most_records: int = 80) -> dict[str, Any]:
    """The loss of all members, thinned in steps, with final phases."""
    step, loss = many.curve("loss", "loss")
    kept = _thinned(step, most_records)
    return {
        "n_features": many.n_features,
        "step": step[kept].tolist(),
        "loss": loss[kept].tolist(),
        "final_phase": many.final_phases,
    }


def _thinned(step: Array, most: int) -> Array:
    """Indices of about `most` steps that look even on the logarithmic axis of the figure."""
    place = np.log1p(step / max(float(step[step > 0].min()), 1.0))
    wanted = np.linspace(place[0], place[-1], most)
    return np.unique(np.abs(place[None] - wanted[:, None]).argmin(1))


def llc_data(many: Ensemble) -> dict[str, Any]:
    """Estimates against time: for each phase at the step, quartiles over the members in it."""
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


def starts(near_zero: Ensemble | None, normal: Ensemble | None) -> list[Row]:
    """Other starts against what 64 runs gave whoever collected the facts about the paper."""
    where = "64 runs of an independent reproduction"
    rows = []
    for name, ensemble, ends in (
        ("biases near 0", near_zero, _ENDS_NEAR_ZERO),
        ("W, b ~ N(0, 1)", normal, _ENDS_NORMAL),
    ):
        if ensemble is None:
            continue
        # "Ends on" is where the last plateau is, and a run that moved is counted as a passage.
        finals = Counter(
            path[-1]
            for m in ensemble.stages
            if (path := ensemble.path(m)) and (len(path) == 1 or ensemble is normal)
        )
        rows += [
            _share_row(f"{name}: share that ends on {label}" + (" without a transition"
                       if ensemble is near_zero else ""),
                       finals[label], ensemble.n_members, count, where)
            for label, count in ends.items()
        ]  # fmt: skip
        if ensemble is near_zero:
            paths = Counter(ensemble.path(m) for m in ensemble.stages)
            rows += [
                _share_row(f"{name}: share that goes {' → '.join(path)}", paths[path],
                           ensemble.n_members, count, where)
                for path, count in _PATHS_NEAR_ZERO.items()
            ]  # fmt: skip
    return rows


def _share_row(name: str, count: int, total: int, published: int, where: str) -> Row:
    reference = Published(
        published / _TRIED, ("D",), where, spread=share_stderr(published, _TRIED),
        text=f"{published}/{_TRIED}",
    )  # fmt: skip
    return Row(name, count / total, reference, share_stderr(count, total), digits=3)


# ------------------------------------------------------------------------ Bayesian antecedents

ANTECEDENT, NONE, INCONCLUSIVE = "antecedent", "no antecedent", "inconclusive"
LEAST_CROSSED = 0.5
"""Share of data sets in which the sampled posterior must move for its transition to count."""
SURE = 2.0


def antecedents(many: Ensemble, posterior: Rows) -> list[dict[str, Any]]:
    """Every dynamical transition, most frequent first, beside the Bayesian one.

    Changes of lambda are the theory's, where it has both values, and the estimates': means over
    each member's estimates while it is in the stage, paired by member. The verdict:

    1. *antecedent*, if in the sampled posterior the odds of `to` against `from` pass through 1 in
       at least LEAST_CROSSED of the data sets (`posterior`, the rows of `transition_rows` by
       label), at the mean crossing n;
    2. else, as the loss falls in all of them, by the order of the estimates, which is what the
       paper uses them for: *antecedent* if lambda-hat rises by more than SURE standard errors (the
       free energies with these estimates cross at n_cr), *no antecedent* if it falls by as much,
       *inconclusive* else, or where too few members have estimates in both stages.

    `in_posterior` says in words what the sampled posterior does, whatever the verdict is.
    """
    points = {point.label: point for point in many.points}
    step, llc = many.curve("llc", "mean")
    column = {row["member"]: i for i, row in enumerate(many.run.members)}
    seen: dict[tuple[str, str], Rows] = defaultdict(list)
    for member in many.stages:
        lasting = _lasting(many, member)
        means = [_during(step, llc[:, column[member]], stage)[0] for stage in lasting]
        for (a, left), (b, right) in pairwise(zip(lasting, means, strict=True)):
            seen[a["nearest"], b["nearest"]].append({"before": left, "after": right})
    measured = {(r["from"], r["to"]): r for r in posterior if r["by"] == "label"}
    table = []
    for (alpha, beta), members in sorted(seen.items(), key=lambda item: -len(item[1])):
        before, after = (
            np.array([m[side] for m in members], dtype=float) for side in ("before", "after")
        )
        both = np.isfinite(before) & np.isfinite(after)
        change = (after - before)[both]
        mean = float(change.mean()) if len(change) else None
        error = float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else None
        p, q = points[alpha], points[beta]
        theory = None if p.llc is None or q.llc is None else q.llc - p.llc
        estimates = {alpha: _nanmean(before), beta: _nanmean(after)}
        n_cr = None
        if all(math.isfinite(v) for v in estimates.values()):
            n_cr = _number(critical_sample_size(p, q, llc=estimates))
        row = measured.get((alpha, beta))
        crossed = None if row is None else row["crossed"]
        verdict, reason = _antecedent(q.loss - p.loss, mean, error, crossed)
        words = "not both met"
        if row is not None:
            first, last = row["log_odds_first"], row["log_odds_last"]
            crosses = crossed is not None and crossed >= LEAST_CROSSED
            words = "crosses" if crosses else _preferred(first, last)
            # Infinite odds have no mean: a phase that never has a draw at that end.
            ends = ["-" if v is None else f"{v:+.1f}" for v in (first, last)]
            words += f" ({ends[0]} .. {ends[1]})"
        table.append(
            {
                "from": alpha,
                "to": beta,
                "members": len(members),
                "delta_loss": q.loss - p.loss,
                "delta_llc_theory": theory,
                "delta_llc_estimate": mean,
                "delta_llc_stderr": error,
                "paired": len(change),
                "n_cr_theory": None if theory is None else _number(critical_sample_size(p, q)),
                "n_cr_estimate": n_cr,
                "posterior_crossed": crossed,
                "posterior_crossing": None if row is None or not crossed else row["crossing"],
                "in_posterior": words,
                "verdict": verdict,
                "reason": reason,
            }
        )
    return table


def _preferred(first: float | None, last: float | None) -> str:
    """Which phase the log odds prefer between the smallest and the largest n."""
    known = [v for v in (first, last) if v is not None]
    if known and min(known) > 0:
        return "`to` preferred at all n"
    if known and max(known) < 0:
        return "`from` preferred at all n"
    return "unclear"


def _antecedent(
    fall: float, mean: float | None, error: float | None, crossed: float | None
) -> tuple[str, str]:
    if crossed is not None and crossed >= LEAST_CROSSED:
        return ANTECEDENT, "sampled posterior"
    if fall >= 0:
        return NONE, "the loss does not fall"
    if mean is None or error is None or not error > 0:
        return INCONCLUSIVE, "too few estimates"
    if abs(mean) <= SURE * error:
        return INCONCLUSIVE, "λ̂ unchanged within errors"
    return (ANTECEDENT, "λ̂ rises") if mean > 0 else (NONE, "λ̂ falls")


def _nanmean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def antecedent_rows(table: Sequence[Mapping[str, Any]], n_runs: int) -> list[Row]:
    """What the hypothesis says, and what the table shows."""
    verdicts = Counter(row["verdict"] for row in table)
    runs = Counter[str]()
    for row in table:
        runs[row["verdict"]] += row["members"]
    where = "Sec. 5, Bayesian antecedent hypothesis"
    final = any((row["from"], row["to"]) == ("5", "6") for row in table)
    measured = sum(
        row["posterior_crossed"] is not None and row["posterior_crossed"] >= LEAST_CROSSED
        for row in table
    )
    others = Counter(row["in_posterior"].partition(" (")[0] for row in table).most_common()
    against = [f"{row['from']} → {row['to']}" for row in table if row["verdict"] == NONE]
    return [
        Row("no observed dynamical transition is without a Bayesian antecedent",
            verdicts[NONE] == 0,
            Published(True, ("P",), where, text="all observed ones have one, two inconclusive"),
            text=f"{verdicts[ANTECEDENT]} kinds with, {verdicts[INCONCLUSIVE]} inconclusive, "
            f"{verdicts[NONE]} without" + (f" ({', '.join(against)})" if against else ""),
            remark="the rule for existence is kgon's (above the table); the paper's is an order of "
            "estimates"),
        Row("inconclusive transitions", float(verdicts[INCONCLUSIVE]), digits=0,
            published=Published(2.0, ("P",), where), stderr=None if n_runs == 0 else
            max(1.0, math.sqrt(verdicts[INCONCLUSIVE])),
            remark="another number of runs sees other rare transitions; the error is Poisson's"),
        Row("the Bayesian 5 → 6 is not seen dynamically", not final,
            Published(True, ("P",), where),
            text="not seen" if not final else "seen"),
        Row("kinds of transitions whose crossing is seen in the sampled posterior too",
            float(measured), digits=0, text=f"{measured} of {len(table)}",
            remark="labels by descent; " + ", ".join(f"{n}: {words}" for words, n in others)),
        Row("runs looked at", float(n_runs), digits=0,
            remark="number of runs in the paper: no source"),
    ]  # fmt: skip


def antecedent_table(table: Sequence[Mapping[str, Any]]) -> Table:
    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    body = []
    for row in table:
        estimate = cell(row["delta_llc_estimate"], 2)
        if row["delta_llc_stderr"] is not None:
            estimate += f" ± {row['delta_llc_stderr']:.2f}"
        body.append(
            [f"{row['from']} → {row['to']}", str(row["members"]), cell(row["delta_loss"], 4),
             cell(row["delta_llc_theory"], 1), f"{estimate} ({row['paired']})",
             cell(row["n_cr_theory"], 0), cell(row["n_cr_estimate"], 0),
             row["in_posterior"], cell(row["posterior_crossing"], 0),
             row["verdict"], row["reason"]]
        )  # fmt: skip
    header = ["from → to", "runs", "ΔL", "Δλ theory", "Δλ̂ (pairs)", "n_cr theory", "n_cr λ̂",
              "sampled posterior (log odds)", "at n", "hypothesis", "by"]  # fmt: skip
    return "every transition between critical levels in training", header, body


# ------------------------------------------------------------------------------ beyond the paper


def first_transition(runs: Iterable[Ensemble]) -> Rows:
    """When members leave their first plateau, in units of learning rate times steps.

    Members without any plateau are left out. The share that leaves is of the others by the end of
    the run, the quartiles are over those that leave: they say less where few do.
    """
    table = []
    for ensemble in runs:
        config = ensemble.run.config
        lr = float(config["model"]["optimizer"]["lr"])
        last = int(config["trainer"]["max_steps"])
        times = []
        for member in ensemble.stages:
            lasting = _lasting(ensemble, member)
            if lasting:
                times.append(lasting[0]["end"] * lr if len(lasting) > 1 else math.inf)
        left = sorted(t for t in times if math.isfinite(t))
        low, median, high = np.quantile(left, [0.25, 0.5, 0.75]) if left else (math.nan,) * 3
        table.append(
            {
                "batch_size": config["datamodule"]["batch_size"],
                "lr": lr,
                "members": len(times),
                "left": len(left),
                "share": len(left) / max(len(times), 1),
                "share_stderr": share_stderr(len(left), max(len(times), 1)),
                "low": low,
                "median": median,
                "high": high,
                "end": last * lr,
            }
        )
    return table


def survival(runs: Iterable[Ensemble]) -> Rows:
    """Which share of members is still in the phase where it began, and where the others are."""
    table = []
    for ensemble in runs:
        config = ensemble.run.config
        label = str(config["model"]["init"]["label"])
        counts = Counter(ensemble.final_phases)
        table.append(
            {
                "sparsity": float(config["datamodule"]["distribution"]["sparsity"]),
                "label": label,
                "members": ensemble.n_members,
                "survived": counts[label],
                "ends": dict(counts.most_common()),
                "loss": float(np.mean([r["final_loss"] for r in ensemble.run.members])),
            }
        )
    return table


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
