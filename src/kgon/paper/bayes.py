"""Items about the posterior and about learning coefficients at critical points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
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
from kgon.theory.intervals import widening
from kgon.theory.loss import PopulationLoss

Rows = list[dict[str, Any]]


def diagram(run: Run) -> PhaseDiagram:
    """The phase diagram that a run of kgon posterior has left."""
    tables = {
        name: pq.read_table(run.path / f"{name}.parquet").to_pylist()
        for name in ("posteriors", "shares", "agreement", "llc")
    }
    smc = run.config["smc"]
    return PhaseDiagram.from_rows(tables, n_draws=smc["n_particles"] * smc["n_replicates"])


def figure_2(
    found: PhaseDiagram, c: int, noise_std: float, pair: tuple[str, str] | None
) -> tuple[list[Row], dict[str, Any]]:
    """Shares of phases against n, the measured crossing of a pair of families, the predictions."""
    halved = not math.isclose(noise_std, math.sqrt(0.5))
    convention = "exp(-n L / 2)" if halved else "exp(-n L)"
    data: dict[str, Any] = {
        "posteriors": [asdict(row) for row in found.posteriors],
        "shares": [asdict(row) for row in found.shares if row.by == "k"],
        "agreement": [asdict(row) for row in found.agreement if row.by == "k"],
        "n_draws": found.n_draws,
        "pair": None,
        "crossing": [None, None],
        "predicted": {},
    }
    verdicts = [row.verdict for row in found.posteriors]
    checked = Row(
        f"c = {c}, {convention}: posteriors with the verdict ok",
        verdicts.count("ok") / len(verdicts),
        text=f"{verdicts.count('ok')} of {len(verdicts)}",
        remark="replicates agree, chains move",
    )
    if pair is None:
        return [_below_four(found, c), checked], data
    name = f"c = {c}, {convention}: n of {pair[0]} → {pair[1]}"
    crossing = next((t for t in found.transitions() if (t.alpha, t.beta) == pair), None)
    mean, sd, count, stderr = math.nan, math.nan, 0, None
    if crossing is not None:
        (mean, sd), count = crossing.location, crossing.n_crossed
        stderr = finite_or_none(crossing.error)
    spread = f"{count} of {len(found.datasets)} data sets cross"
    if crossing is not None and count > 1:
        median = float(crossing.crossing.nanmedian())
        spread += f", sd {sd:.0f} between them, median {median:.0f}"
    elif count == 1:
        spread += ": one crossing has no error"
    published = None
    alpha, beta = (critical_point(label, c) for label in pair)
    predicted = {
        "exp(-n L)": critical_sample_size(alpha, beta),
        "exp(-n L / 2)": critical_sample_size(alpha, beta, halved=True),
    }
    remark = (
        f"{spread}; predicted {predicted['exp(-n L)']:.0f}, halved {predicted['exp(-n L / 2)']:.0f}"
    )
    if c == 6:
        published = Published(
            (600.0, 700.0), ("P", "I"), "Sec. 4, Fig. 2 (interval P; which likelihood: no source)"
        )
        if halved:
            remark += (
                "; leading-order free energies are not accurate at this n, and the "
                "published agreement with them is partly a coincidence (D)"
            )
    rows = [Row(name, mean, published, stderr, digits=0, remark=remark)]
    if c == 6 and halved:
        rows += [
            Row("the same, against six finite data sets of another sampler", mean,
                Published(658.0, ("D",), "tempered SMC and parallel tempering",
                          text="658 ± 116 (sd)",
                          spread=116 / math.sqrt(6) * float(widening(5))), stderr, digits=0),
            *_uncertain(found),
        ]  # fmt: skip
    rows.append(checked)
    data |= {
        "pair": list(pair),
        "crossing": [finite_or_none(mean), finite_or_none(sd)],
        "predicted": {k: finite_or_none(v) for k, v in predicted.items()},
    }
    return rows, data


def _below_four(found: PhaseDiagram, c: int) -> Row:
    """c = 4 has one family; what changes with n is how many draws have all four features on."""
    share = found.share("label").get("4")
    ends = [] if share is None else [float(share[i].mean()) for i in (0, -1)]
    sizes = found.n_samples
    return Row(
        f"c = {c}: share of the label 4 at n = {sizes[-1]}",
        ends[-1] if ends else 0.0,
        digits=3,
        remark=f"{ends[0]:.3f} at n = {sizes[0]}" if ends else "never met",
    )


def _uncertain(found: PhaseDiagram) -> list[Row]:
    """Labelling rules agree less below n = 400, as the paper says of its own."""
    agreement = found.agreement_with("hull").mean(1)
    small = [float(a) for n, a in zip(found.n_samples, agreement, strict=True) if n < 400]
    large = [float(a) for n, a in zip(found.n_samples, agreement, strict=True) if n >= 400]
    if not small or not large:
        return []
    return [
        Row("classes are less certain below n = 400: the hull rule and the descent agree on k less",
            max(small) < min(large),
            Published(True, ("P", "A"), "Sec. 4", text="increasingly uncertain"),
            text=f"agreement {min(small):.2f} .. {max(small):.2f} below, {min(large):.2f} .. "
            f"{max(large):.2f} above")
    ]  # fmt: skip


def share_table(found: PhaseDiagram, setting: str) -> Table:
    """Shares by number of vertices against n, by the reference rule and by the paper's."""
    body = []
    for i, n in enumerate(found.n_samples):
        cells = [str(n)]
        for rule in (found.rules[0], "hull"):
            share = found.share("k", rule)
            cells.append(
                ", ".join(
                    f"{k}: {float(v[i].mean()):.2f}" for k, v in share.items()
                    if float(v[i].mean()) >= 0.005
                )
            )  # fmt: skip
        cells.append(f"{float(found.agreement_with('hull')[i].mean()):.2f}")
        body.append(cells)
    header = ["n", "by descent (reference)", "by hull (the paper's rule)", "agreement"]
    return f"share of the posterior by k, {setting}", header, body


def population_posterior(
    sizes: Sequence[int], n_particles: int, n_replicates: int
) -> dict[str, Any]:
    """The posterior of the expected loss, halved likelihood, c = 6: shares, and each replicate's
    crossing 5 -> 6 (None where it does not cross)."""
    n = torch.tensor([float(size) for size in sizes], dtype=torch.float64)
    posterior = sample_posterior(
        PopulationLoss(), n_samples=n, n_features=6, n_particles=n_particles,
        n_replicates=n_replicates,
    )  # fmt: skip
    labels = quench_labels(quench(posterior.W, posterior.b))
    by_k = {
        k: [[float(x) for x in column] for column in value]
        for k, value in shares(posterior, labels, "k").items()
    }
    crossings = []
    for r in range(n_replicates):
        each = {str(k): (labels.k[:, r] == k).double().mean(0).unsqueeze(-1) for k in (5, 6)}
        found = bayesian_transitions(n, each, n_particles)
        crossings += [
            finite_or_none(float(t.crossing[0])) for t in found if (t.alpha, t.beta) == ("5", "6")
        ]
    return {"sizes": list(sizes), "shares": by_k, "crossings": crossings,
            "n_particles": n_particles}  # fmt: skip


def population_crossing(found: Mapping[str, Any]) -> tuple[Row, Table]:
    """The crossing of `population_posterior`: mean over replicates, and its error.

    The error has Student's factor for so few replicates (`widening`).
    """
    crossings = found["crossings"]
    inside = [x for x in crossings if x is not None]
    mean = float(np.mean(inside)) if inside else math.nan
    stderr, n = None, len(inside)
    if n > 1:
        stderr = float(np.std(inside, ddof=1) / math.sqrt(n) * widening(n - 1))
    row = Row(
        "c = 6, exp(-n L / 2), expected loss instead of data: n of 5 → 6", mean,
        Published((510.0, 550.0), ("D",), "two samplers: n β of 256 to 275"), stderr, digits=0,
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
    """The rows that a run of kgon llc has left."""
    rows: Rows = pq.read_table(run.path / "estimates.parquet").to_pylist()
    return rows


def llc_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Estimates against published ones."""
    rows = []
    for row in found:
        protocol = ", SGLD as published" if row["exact"] is not None else ""
        name = f"λ̂({row['label']}), n = {row['n_samples']:,}, {_of(row)}{protocol}"
        remark = judged(row)
        published = None
        if row["published"] is not None:
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


def judged(row: Mapping[str, Any]) -> str:
    """The verdict on an estimate, its reason, and what exact chains with its settings read."""
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
    """Estimates move towards theory as n grows."""
    rows = llc_rows(found)
    for label in dict.fromkeys(row["label"] for row in found):
        own = sorted((r for r in found if r["label"] == label), key=lambda r: r["n_samples"])
        first, last = own[0], own[-1]
        rows.append(
            Row(f"λ̂({label}), n = {last['n_samples']:,}, against theory", last["llc"],
                Published(last["theory"], ("P", "D"), "theory, n → ∞"), last["stderr"], digits=2)
        )  # fmt: skip
        rows.append(
            Row(f"λ̂({label}) is nearer to theory at n = {last['n_samples']:,} than at "
                f"{first['n_samples']:,}",
                abs(last["llc"] - last["theory"]) < abs(first["llc"] - first["theory"]),
                Published(True, ("R",), "ztreisman/arc-llc", text="approaches"),
                text=" → ".join(f"{r['llc']:.2f}" for r in own) + f" ({last['theory']:g})")
        )  # fmt: skip
    return rows


def four_gon_rows(found: Sequence[Mapping[str, Any]], along: bool) -> list[Row]:
    """Estimates at 4-gons beside both theory values; others have estimated 4+ only.

    Args:
        along: whether the settings are those along SGD trajectories, which the reproduction's
            number is taken to have.
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
