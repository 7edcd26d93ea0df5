"""Items about the posterior and about learning coefficients at critical points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from kgon.files import finite_or_none
from kgon.paper.rows import Published, Row, Table
from kgon.posterior.labels import quench, quench_labels
from kgon.posterior.occupancy import bayesian_transitions, shares
from kgon.posterior.phase_diagram import PhaseDiagram
from kgon.posterior.smc import sample_posterior
from kgon.record.run_directory import Run
from kgon.theory.critical import critical_point
from kgon.theory.free_energy import critical_sample_size
from kgon.theory.intervals import mean_and_error, widening
from kgon.theory.loss import PopulationLoss

Rows = list[dict[str, Any]]


def diagram(run: Run) -> PhaseDiagram:
    """The phase diagram of a run of kgon posterior."""
    tables = {
        name: pq.read_table(run.path / f"{name}.parquet").to_pylist()
        for name in ("posteriors", "shares", "agreement", "llc")
    }
    smc = run.config["smc"]
    return PhaseDiagram.from_rows(tables, n_draws=smc["n_particles"] * smc["n_replicates"])


def figure_2(
    found: PhaseDiagram, c: int, noise_std: float, pair: tuple[str, str] | None
) -> tuple[list[Row], dict[str, Any]]:
    """Rows and the figure's data: shares against n, measured and predicted crossings of a pair."""
    halved = not math.isclose(noise_std, math.sqrt(0.5))
    setting = f"c = {c}, {'exp(-n L / 2)' if halved else 'exp(-n L)'}"
    checked = ok_row(found, f"{setting}: posteriors with the verdict ok")
    if pair is None:
        return [_four_row(found), checked], shares_data(found)
    crossing = crossing_of(found, pair)
    spread = f"{crossing.n_crossed} of {len(found.datasets)} data sets cross"
    if crossing.n_crossed > 1:
        spread += f", sd {crossing.sd:.0f} between them, median {crossing.median:.0f}"
    elif crossing.n_crossed == 1:
        spread += ": one crossing has no error"
    alpha, beta = (critical_point(label, c) for label in pair)
    full, half = (critical_sample_size(alpha, beta, halved=half) for half in (False, True))
    remark = f"{spread}; predicted {full:.0f}, halved {half:.0f}"
    published = None
    if c == 6:
        published = Published(
            (600.0, 700.0), ("P", "I"), "Sec. 4, Fig. 2 (interval P; which likelihood: no source)"
        )
        if halved:
            remark += (
                "; leading-order free energies are not accurate at this n, and the "
                "published agreement with them is partly a coincidence (D)"
            )
    rows = [
        Row(f"{setting}: n of {pair[0]} → {pair[1]}", crossing.mean, published, crossing.error,
            digits=0, remark=remark)
    ]  # fmt: skip
    if c == 6 and halved:
        rows += [
            Row("the same, against six finite data sets of another sampler", crossing.mean,
                Published(658.0, ("D",), "tempered SMC and parallel tempering",
                          text="658 ± 116 (sd)",
                          spread=116 / math.sqrt(6) * float(widening(5))), crossing.error,
                digits=0),
            *_uncertain(found),
        ]  # fmt: skip
    predicted = {"exp(-n L)": full, "exp(-n L / 2)": half}
    return [*rows, checked], shares_data(found, pair, predicted)


class Crossing(NamedTuple):
    """The n at which the odds of a pair pass through 1, over the data sets that cross."""

    n_crossed: int
    mean: float
    sd: float
    median: float
    error: float | None


def crossing_of(found: PhaseDiagram, pair: tuple[str, str]) -> Crossing:
    """The crossing of a pair of families; `n_crossed` is 0 if neither of them occurs."""
    for each in found.transitions():
        if (each.alpha, each.beta) == pair:
            median = float(each.crossing.nanmedian())
            return Crossing(each.n_crossed, *each.location, median, finite_or_none(each.error))
    return Crossing(0, math.nan, math.nan, math.nan, None)


def shares_data(
    found: PhaseDiagram,
    pair: tuple[str, str] | None = None,
    predicted: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """The data of `drawings.shares`."""
    crossing = crossing_of(found, pair) if pair else None
    return {
        "posteriors": [asdict(row) for row in found.posteriors],
        "shares": [asdict(row) for row in found.shares if row.by == "k"],
        "agreement": [asdict(row) for row in found.agreement if row.by == "k"],
        "n_draws": found.n_draws,
        "pair": pair,
        "crossing": [crossing.mean, crossing.sd] if crossing else [None, None],
        "predicted": predicted,
    }


def ok_row(found: PhaseDiagram, quantity: str) -> Row:
    """The share of posteriors with the verdict ok."""
    verdicts = [row.verdict for row in found.posteriors]
    n_ok = verdicts.count("ok")
    return Row(quantity, n_ok / len(verdicts), text=f"{n_ok} of {len(verdicts)}",
               remark="replicates agree, chains move")  # fmt: skip


def _four_row(found: PhaseDiagram) -> Row:
    """c = 4 has one family; only the share of draws with all four features on changes with n."""
    share = found.share("label").get("4")
    first, last = (0.0, 0.0) if share is None else (float(share[i].mean()) for i in (0, -1))
    remark = "never met" if share is None else f"{first:.3f} at n = {found.n_samples[0]}"
    name = f"c = 4: share of the label 4 at n = {found.n_samples[-1]}"
    return Row(name, last, digits=3, remark=remark)


def _uncertain(found: PhaseDiagram) -> list[Row]:
    """The labelling rules agree less below n = 400, as the paper says of its own rules."""
    agreement = found.agreement_with("hull").mean(1)
    few = torch.tensor(found.n_samples) < 400
    small, large = agreement[few], agreement[~few]
    if not len(small) or not len(large):
        return []
    return [
        Row("classes are less certain below n = 400: the hull rule and the descent agree on k less",
            bool(small.max() < large.min()),
            Published(True, ("P", "A"), "Sec. 4", text="increasingly uncertain"),
            text=f"agreement {small.min():.2f} .. {small.max():.2f} below, {large.min():.2f} .. "
            f"{large.max():.2f} above")
    ]  # fmt: skip


def share_table(found: PhaseDiagram, setting: str) -> Table:
    """Shares by number of vertices against n, by the reference rule and by the paper's rule."""
    agreement = found.agreement_with("hull").mean(1)
    body = []
    for i, n in enumerate(found.n_samples):
        cells = [str(n)]
        for rule in (found.rules[0], "hull"):
            means = {k: float(v[i].mean()) for k, v in found.share("k", rule).items()}
            cells.append(", ".join(f"{k}: {v:.2f}" for k, v in means.items() if v >= 0.005))
        body.append([*cells, f"{agreement[i]:.2f}"])
    header = ["n", "by descent (reference)", "by hull (the paper's rule)", "agreement"]
    return f"share of the posterior by k, {setting}", header, body


def population_posterior(
    sizes: Sequence[int], n_particles: int, n_replicates: int
) -> dict[str, Any]:
    """The posterior of the expected loss under exp(-n L / 2), c = 6.

    Returns its shares, and the crossing 5 -> 6 of each replicate (None if it does not cross).
    """
    n = torch.tensor([float(size) for size in sizes], dtype=torch.float64)
    posterior = sample_posterior(
        PopulationLoss(), n_samples=n, n_features=6, n_particles=n_particles,
        n_replicates=n_replicates,
    )  # fmt: skip
    labels = quench_labels(quench(posterior.W, posterior.b))
    by_k = {k: [x.tolist() for x in value] for k, value in shares(posterior, labels, "k").items()}
    # Replicates in place of data sets: (n_sizes, n_replicates).
    each = {str(k): (labels.k == k).double().mean(0).T for k in (5, 6)}
    crossings = [
        finite_or_none(n)
        for transition in bayesian_transitions(n, each, n_particles)
        if (transition.alpha, transition.beta) == ("5", "6")
        for n in transition.crossing.tolist()
    ]
    return {"sizes": list(sizes), "shares": by_k, "crossings": crossings,
            "n_particles": n_particles}  # fmt: skip


def population_crossing(found: Mapping[str, Any]) -> tuple[Row, Table]:
    """The crossing of `population_posterior` as a row, and its shares as a table."""
    crossings = found["crossings"]
    inside = [x for x in crossings if x is not None]
    (mean, error), n = mean_and_error(inside), len(inside)
    row = Row(
        "c = 6, exp(-n L / 2), expected loss instead of data: n of 5 → 6", mean,
        Published((510.0, 550.0), ("D",), "two samplers: n β of 256 to 275"),
        finite_or_none(error), digits=0,
        remark=f"{n} of {len(crossings)} replicates of {found['n_particles']} particles cross"
        + (": one crossing has no error" if n == 1 else f", the error is from these {n}" * (n > 1)),
    )  # fmt: skip
    shares = found["shares"]
    body = [
        [str(size), *(f"{shares[k][0][i]:.3f} ± {shares[k][1][i]:.3f}" if k in shares else "-"
                      for k in ("4", "5", "6"))]
        for i, size in enumerate(found["sizes"])
    ]  # fmt: skip
    return row, ("posterior of the expected loss, c = 6", ["n", "P(4)", "P(5)", "P(6)"], body)


# -------------------------------------------------------------------------- learning coefficients


def estimates(run: Run) -> Rows:
    """The estimates of a run of kgon llc."""
    rows: Rows = pq.read_table(run.path / "estimates.parquet").to_pylist()
    return rows


def llc_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Estimates beside published ones."""
    rows = []
    for row in found:
        name = _named(row) + f", {_of(row)}"
        remark = judged(row)
        published = None
        # The published numbers are by SGLD (which has `exact`) with its own localization.
        if row["published"] is not None and row["exact"] is not None:
            paper = row["published_spread"] is not None
            published = Published(
                row["published"], ("P", "R", "I") if paper else ("R",), row["source"],
                spread=row["published_spread"], digits=None if paper else 2,
                text=f"{row['published']:.3f} ± {row['published_spread']:g}" if paper else None,
            )  # fmt: skip
            if paper:
                remark += "; what the paper's ± is of is inferred, the protocol too"
        rows.append(Row(name, row["llc"], published, row["stderr"], digits=2, remark=remark))
    return rows


def _named(row: Mapping[str, Any]) -> str:
    by = ", SGLD as published" if row["exact"] is not None else ""
    return f"λ̂({row['label']}), n = {row['n_samples']:,}{by}"


def judged(row: Mapping[str, Any]) -> str:
    """The verdict on an estimate, its reason, and the estimate of exact chains at its settings."""
    said = str(row["verdict"]) + (f" ({row['reason']})" if row["reason"] else "")
    if row["kept"] < row["n_chains"]:
        said += f", {row['kept']} of {row['n_chains']} chains kept"
    if row["exact"] is None:
        return f"{said}, by Hamiltonian Monte Carlo at localization {row['localization']:.2g}"
    exact = f"{row['exact']:.2f} ± {row['exact_stderr']:.2f}"
    exact = exact if row["exact_verdict"] == "ok" else row["exact_verdict"]
    return f"{said}; exact chains with these settings: {exact}"


def _of(row: Mapping[str, Any]) -> str:
    return "expected loss" if row["loss"] == "population" else "a data set"


def approach_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Estimates as n grows, beside theory."""
    rows = llc_rows(found)
    for label in dict.fromkeys(row["label"] for row in found):
        own = sorted((r for r in found if r["label"] == label), key=lambda r: r["n_samples"])
        first, last = own[0], own[-1]
        rows.append(
            Row(f"{_named(last)}, against theory", last["llc"],
                Published(last["theory"], ("P", "D"), "theory, n → ∞"), last["stderr"], digits=2)
        )  # fmt: skip
        if last["exact"] is None:
            continue
        rows.append(
            Row(f"λ̂({label}) is nearer to theory at n = {last['n_samples']:,} than at "
                f"{first['n_samples']:,}",
                abs(last["llc"] - last["theory"]) < abs(first["llc"] - first["theory"]),
                Published(True, ("R",), "ztreisman/arc-llc", text="approaches"),
                text=" → ".join(f"{r['llc']:.2f}" for r in own) + f" ({last['theory']:g})")
        )  # fmt: skip
    return rows


def four_gon_rows(found: Sequence[Mapping[str, Any]], along: bool) -> list[Row]:
    """Estimates at 4-gons beside both theory values.

    Args:
        along: whether the settings are those along SGD trajectories. The reproduction's number for
            4+ is taken to have these settings.
    """
    rows = []
    for row in found:
        published, remark = None, ""
        if row["label"] == "4+" and along:
            published = Published(4.3, ("R", "I"), "ztreisman/arc-llc (value R, settings I)",
                                  spread=0.1, text="about 4.3")  # fmt: skip
            remark = (
                '; "about" is read as one unit of the last digit, and the settings of that '
                "number are not known"
            )
        rows.append(
            Row(f"λ̂({row['label']}), n = {row['n_samples']:,}, {_of(row)}", row["llc"], published,
                row["stderr"], digits=2,
                remark=f"volume exponent {row['theory']:g} (D), by direction 4, 4.5, 5, 5.5 (P); "
                f"{judged(row)}{remark}")
        )  # fmt: skip
    return rows
