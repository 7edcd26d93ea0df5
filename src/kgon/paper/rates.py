"""Items about the rate at which a phase is left, by Langevin dynamics and by SGD."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kgon.paper.ensemble import Ensemble
from kgon.paper.jobs import Results
from kgon.paper.rows import Published, Row
from kgon.paper.section import Block, Picture, Section, job_command
from kgon.theory.phases import OTHER

_LAW = Published(1.0, ("D",), "Eyring-Kramers law, T → 0", text="1")

Rows = Sequence[Mapping[str, Any]]


def langevin_rows(rates: Rows) -> list[Row]:
    """Measured rates divided by those of the Eyring-Kramers law, and how they fall with 1 / T.

    Args:
        rates: rows of `landscape.rates.Escape`.
    """
    ends = Counter[str]()
    for rate in rates:
        ends[rate["end"]] += rate["n_escapes"]
    most = ends.most_common(1)[0][0]
    to_most = [r for r in rates if r["end"] == most and r["n_escapes"]]
    shown = [
        Row(f"{r['start']} → {most}, barrier {r['barrier'] / r['temperature']:.0f} T: measured / "
            "predicted rate", r["measured"] / r["predicted"], _LAW, r["error"] / r["predicted"],
            digits=2, remark=f"{r['n_escapes']} escapes")
        for r in to_most
    ]  # fmt: skip
    if len(to_most) > 1:
        slope, error, _ = fall([r["barrier"] / r["temperature"] for r in to_most],
                            [r["measured"] for r in to_most],
                            [r["n_escapes"] for r in to_most])  # fmt: skip
        shown.append(
            Row(f"{to_most[0]['start']} → {most}: the log of the measured rate falls, per unit of "
                "barrier / T, by", slope,
                Published(1.0, ("D",), "Arrhenius and Eyring-Kramers, T → 0", text="1"), error,
                digits=3)
        )  # fmt: skip
    for end, n in ends.items():
        known = [r for r in rates if r["end"] == end and r["predicted"] > 0]
        expected = sum(r["predicted"] * _exposure(r) for r in known)
        if end != most and n and expected > 0:
            shown.append(
                Row(f"{known[0]['start']} → {end}, all temperatures: escapes / predicted",
                    n / expected, _LAW, math.sqrt(n) / expected, digits=2,
                    remark=f"{n} escapes; barrier {known[0]['barrier']:.4f}")
            )  # fmt: skip
    unknown = {r["end"]: ends[r["end"]] for r in rates if math.isnan(r["barrier"])}
    shown.append(
        Row("escapes to a phase to which the atlas has no pass",
            sum(unknown.values()) / max(ends.total(), 1),
            text=f"{sum(unknown.values())} of {ends.total()}",
            remark=", ".join(f"{n} to {end}" for end, n in unknown.items())
            + "; between two looks a chain can pass through a third phase" * bool(unknown))
    )  # fmt: skip
    return shown


def _exposure(rate: Mapping[str, Any]) -> float:
    """The time in the phase, summed over chains: the error is max(1, sqrt(escapes)) / time."""
    return math.sqrt(rate["n_escapes"] or 1) / float(rate["error"])


def fall(
    x: Sequence[float], rates: Sequence[float], counts: Sequence[int]
) -> tuple[float, float, float]:
    """The slope of -log(rate) against x, its standard error, and the fitted log(rate) at x = 0.

    Least squares with weights `counts`, as the log of a rate of n events has the variance 1 / n.
    """
    at, y, weight = np.array(x), -np.log(rates), np.array(counts, dtype=float)
    centred = at - np.average(at, weights=weight)
    square = float((weight * centred**2).sum())
    slope = float((weight * centred * y).sum()) / square
    start = slope * np.average(at, weights=weight) - np.average(y, weights=weight)
    return slope, 1 / math.sqrt(square), float(start)


def langevin_section(results: Results) -> Section:
    run = results.one("escape_rates")
    rates = pq.read_table(run.path / "escapes.parquet").to_pylist()
    caption = (
        "Rate of leaving the irregular heptagon 7d2a of 7 features in 2 dimensions, per unit of "
        "gradient flow's time, against 1 / T: Langevin dynamics on the population loss, with "
        "standard errors, and the Eyring-Kramers law over the known passes, without a free factor "
        "(none is known to 6)."
    )
    return Section(
        [Block(job_command("escape_rates", results), langevin_rows(rates))],
        pictures=[Picture("escape_rates", "escapes", {"rates": rates}, caption)],
        notes=["The law is the limit T → 0: ratios should tend to 1 as barriers grow to many T. "
               "([More, and three dimensions](../atlas.md#passes-and-rates).)"],
    )  # fmt: skip


@dataclass(frozen=True)
class Left:
    """How the members of a run left the phase of their start.

    Attributes:
        ratio: batch size / learning rate.
        members, left: how many there are, and how many left.
        ends: how many left for which phase.
        rate: left / (learning rate x steps in the phase, summed over members).
    """

    batch_size: int
    lr: float
    ratio: float
    members: int
    left: int
    ends: dict[str, int]
    rate: float


def leaving(run: Ensemble) -> Left:
    """The rate at which SGD leaves the phase of its start.

    A member leaves halfway between its first snapshot in another phase of the atlas and the last
    one before it in the phase of the start.
    """
    config = run.run.config
    start, lr = str(config["model"]["init"]["label"]), float(config["optimizer"]["lr"])
    step, phases = run.curve("snapshots", "phase")
    ends, spent = Counter[str](), 0.0
    for own in phases.T:
        away = np.flatnonzero((own != start) & (own != OTHER))
        if not len(away):
            spent += float(step[-1])
            continue
        ends[str(own[away[0]])] += 1
        inside = max(np.flatnonzero(own[: away[0]] == start), default=0)
        spent += float(step[inside] + step[away[0]]) / 2
    batch_size = int(config["batch_size"])
    return Left(batch_size, lr, round(batch_size / lr, 6), run.n_members, ends.total(),
                dict(ends.most_common()), ends.total() / (spent * lr))  # fmt: skip


FROM = 20.0
"""The least batch size / learning rate in the fit of the rate; below it members leave within a few
snapshots."""


def sgd_rows(runs: Sequence[Left]) -> list[Row]:
    """Whether the rate is a function of batch size / learning rate, and how it falls with it."""
    groups = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.ratio, run.lr)):
        groups[run.ratio].append(run)
    shown = []
    for ratio, own in groups.items():
        for one, other in combinations([run for run in own if run.left], 2):
            value = other.rate / one.rate
            shown.append(
                Row(f"batch / learning rate = {ratio:g}: rate at learning rate {other.lr:g} / at "
                    f"{one.lr:g}", value,
                    Published(1.0, ("D",), "noise of temperature ∝ learning rate / batch",
                              text="1"),
                    value * math.sqrt(1 / one.left + 1 / other.left), digits=2,
                    remark=f"{other.left} and {one.left} of {one.members} left")
            )  # fmt: skip
    fitted = [run for run in runs if run.ratio >= FROM and run.left]
    if fit := arrhenius(runs):
        slope, error, _ = fit
        steeper = arrhenius(runs, 2 * FROM)
        shown.append(
            Row(f"from batch / learning rate = {FROM:g} on the log of the rate falls, per unit of "
                "it, by", slope, stderr=error, digits=3,
                remark="Arrhenius is one straight line; the standard error is that of counts"
                + (f"; from {2 * FROM:g} on {steeper[0]:.3f} ± {steeper[1]:.3f}"
                   if steeper else ""))
        )  # fmt: skip
    ends = Counter[str]()
    for run in fitted:
        ends.update(run.ends)
    for end, n in ends.most_common():
        shown.append(
            Row(f"of those that left at {FROM:g} or more, for {end}", n / ends.total(),
                digits=3, text=f"{n} of {ends.total()}")
        )  # fmt: skip
    return shown


def arrhenius(runs: Sequence[Left], least: float = FROM) -> tuple[float, float, float] | None:
    """`fall` of the rate with batch size / learning rate, from `least` on; None for fewer than two
    ratios."""
    fitted = [run for run in runs if run.ratio >= least and run.left]
    if len({run.ratio for run in fitted}) < 2:
        return None
    ratios, rates = [run.ratio for run in fitted], [run.rate for run in fitted]
    return fall(ratios, rates, [run.left for run in fitted])


def sgd_section(results: Results) -> Section:
    runs = [leaving(Ensemble(run)) for run in results.all("escape_sgd")]
    config = results.all("escape_sgd")[0].config
    caption = (
        "Rate of leaving 7d3a+ of 8 features in 3 dimensions, per unit of step × learning rate, "
        f"against batch size / learning rate: {runs[0].members} members each, SGD on fresh inputs, "
        f"{config['trainer']['max_steps']:,} steps. Bars: standard errors; dashed: "
        "the fit below; runs in which none left are not shown."
    )
    data = {"rows": [asdict(run) for run in runs], "fit": arrhenius(runs)}
    return Section(
        [Block(job_command("escape_sgd", results), sgd_rows(runs))],
        pictures=[Picture("escape_sgd", "sgd_escapes", data, caption)],
        notes=["7d3a is higher in loss than 7d3a+: the way to it is where the positive bias "
               "reaches 0, 0.00395 above the phase. The lowest pass, 0.00069 high, leads to 8d3a. "
               "Why SGD does not take it, and what temperature its noise has: "
               "[the atlas](../atlas.md#escapes-of-sgd)."],
    )  # fmt: skip
