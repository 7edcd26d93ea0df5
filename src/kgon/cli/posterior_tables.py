"""The tables that kgon posterior prints."""

import math
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table

from kgon.cli.terminal import decimal
from kgon.figures import style
from kgon.posterior.phase_diagram import LEAST_SHARE, PhaseDiagram
from kgon.posterior.transitions import Findings, PredictedTransition, neighbours
from kgon.theory.critical import parse_label

CONVENTIONS = ("exp(-n L)", "exp(-n L/2)")
"""The two conventions of the likelihood, in the order of `predicted_sizes`."""

_REMARK = (
    "Leading-order free energies miss several nats at these n; the measured crossing is the result."
)


def predicted_sizes(prediction: PredictedTransition | None) -> dict[str, float | None]:
    """The predicted n by convention; empty without a prediction."""
    if prediction is None:
        return {}
    return dict(zip(CONVENTIONS, (prediction.full, prediction.halved), strict=True))


def print_shares(console: Console, diagram: PhaseDiagram) -> None:
    """Shares of the phases, agreement of the rules, and evidence, for each n."""
    count = len(diagram.datasets)
    over = f"mean ± sd over {count} data sets" if count > 1 else "one data set"
    table = Table(title=f"Posterior by {diagram.rules[0]}, {over}")
    shares, others = diagram.share(), diagram.rules[1:]
    headings = (*(f"P({phase})" for phase in shares), *(f"={rule}" for rule in others))
    for heading in ("n", *headings, "loss", "log Z", "error", "ok"):
        table.add_column(heading, justify="right")
    for i, n in enumerate(diagram.n_samples):
        verdicts = [row.verdict for row in diagram.posteriors if row.n_samples == n]
        table.add_row(
            str(n),
            *(_spread(share[i], 2) for share in shares.values()),
            *(f"{float(diagram.agreement_with(rule)[i].mean()):.2f}" for rule in others),
            decimal(float(diagram.column("mean_loss")[i].nanmean()), 4),
            _spread(diagram.column("log_evidence")[i], 1),
            decimal(float(diagram.column("log_evidence_stderr")[i].nanmean()), 2),
            f"{verdicts.count('ok')}/{len(verdicts)}",
        )
    console.print(table)
    console.print(f"  error: {_of_log_evidence(diagram)}", highlight=False)
    if others:
        console.print(
            f"  ={', ='.join(others)}: share of draws with the same k as by {diagram.rules[0]}; "
            "where it is low, a share depends on the rule.",
            highlight=False,
        )


def _of_log_evidence(diagram: PhaseDiagram) -> str:
    if not bool(diagram.column("log_evidence_stderr").isfinite().any()):
        return "none for log Z, as there is one replicate (smc.n_replicates)."
    return "of log Z, from the replicates; two of it hold log Z 19 times out of 20."


def print_chains(console: Console, diagram: PhaseDiagram) -> None:
    """Shares by SMC beside those of the NUTS chains from each start, if NUTS ran."""
    if not diagram.starts:
        return
    # Without padding its ten columns fit into 80 characters.
    table = Table(title=f"SMC, and NUTS from each start, by {diagram.rules[0]}", padding=0)
    found = {start: diagram.share(start=start) for start in (None, *diagram.starts)}
    phases = style.phase_order(phase for shares in found.values() for phase in shares)
    table.add_column("n", justify="right")
    table.add_column("sampler", no_wrap=True)
    headings = (*(f"P({phase})" for phase in phases), "R-hat", "ESS", "passages", "diverged", "ok")
    for heading in headings:
        table.add_column(heading, justify="right")
    for i, n in enumerate(diagram.n_samples):
        for start, shares in found.items():
            cells = [_spread(shares[p][i], 3) if p in shares else decimal(0.0, 3) for p in phases]
            here = [row for row in diagram.chains if (row.n_samples, row.start) == (n, start)]
            if here:
                cells.append(_spread((row.rhat for row in here), 2))
                cells.append(_spread((row.ess for row in here), 0))
                cells.append(_spread((row.passages for row in here), 0))
                cells.append(_spread((row.divergences for row in here), 0))
                cells.append(f"{sum(row.verdict == 'ok' for row in here)}/{len(here)}")
            table.add_row(str(n) if start is None else "", f"NUTS, {start}" if start else "SMC",
                          *cells, end_section=start == diagram.starts[-1])  # fmt: skip
    console.print(table)
    console.print(
        "  passages: how often a chain's k changes from one draw to the next, all chains together; "
        "without them\n  a share is that of the start, whatever R-hat and ESS of the loss say, and "
        "chains are unchecked, not ok.",
        highlight=False,
    )


def print_transitions(console: Console, found: Findings, noise_std: float) -> None:
    """Transitions of the sampled posterior beside the predicted ones."""
    table = Table(title="Bayesian transitions, and where free energies (eq. (9)) cross")
    table.add_column("from -> to")
    for heading in ("by", "crossed", "n", "sd", "log odds", *CONVENTIONS):
        table.add_column(heading, justify="left" if heading == "by" else "right")
    diagram = found.diagram
    families = neighbours([*diagram.share()])
    shown = [t for t in found.sampled if t.by == "k" and (t.alpha, t.beta) in families]
    shown += [t for t in found.sampled if t.by == "label" and t.notable]
    for t in shown:
        predicted = predicted_sizes(found.prediction((t.alpha, t.beta)))
        crossing = decimal(t.crossing, 0)
        if t.crossing_error is not None:
            crossing += f" ± {t.crossing_error:.0f}"
        table.add_row(
            f"{t.alpha} -> {t.beta}",
            t.by,
            f"{t.n_crossed}/{len(diagram.datasets)}",
            crossing,
            decimal(t.crossing_sd, 0),
            f"{decimal(t.log_odds_first, 1)} .. {decimal(t.log_odds_last, 1)}",
            *(decimal(predicted.get(convention), 0) for convention in CONVENTIONS),
        )
    for p in found.predicted:
        if p.llc and parse_label(p.beta)[0] == parse_label(p.alpha)[0] + 1:
            table.add_row(f"{p.alpha} -> {p.beta}, llc {p.llc}", "theory", "", "", "", "",
                          decimal(p.full, 0), decimal(p.halved, 0))  # fmt: skip
    console.print(table)
    console.print(
        "  n: mean over the data sets that cross; two of its errors hold it 19 times out of 20; "
        "one crossing has\n  none. sd: between data sets.",
        highlight=False,
    )
    if found.predicted:
        console.print(
            f"  {_REMARK}\n  noise_std = {noise_std:g} samples "
            f"exp(-{1 / (2 * noise_std**2):.3g} n L).",
            highlight=False,
        )


def print_llc(console: Console, diagram: PhaseDiagram) -> None:
    """The learning coefficient within each phase, at the n where its share is largest."""
    if not diagram.llc:
        return
    table = Table(title="LLC within a phase at its largest share")
    for heading in ("phase", "n", "share", "LLC", "theory"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    labels = diagram.share("label")
    for phase, share in sorted(labels.items(), key=lambda item: -float(item[1].mean(1).max())):
        top = int(share.mean(1).argmax())
        n = diagram.n_samples[top]
        here = [
            row
            for row in diagram.llc
            if (row.phase, row.n_samples) == (phase, n)
            and row.llc is not None
            and (row.share or 0.0) >= LEAST_SHARE
        ]
        if here:
            llc = _spread((row.llc for row in here), 2)
            theory = decimal(here[0].theory, 1)
            table.add_row(phase, str(n), f"{share[top].mean():.2f}", llc, theory)
    console.print(table)


def _spread(values: Iterable[float | None] | torch.Tensor, digits: int) -> str:
    """Mean ± standard deviation of the values that are finite."""
    numbers = [math.nan if value is None else float(value) for value in values]
    finite = torch.tensor([x for x in numbers if math.isfinite(x)], dtype=torch.float64)
    if not len(finite):
        return "-"
    mean = f"{float(finite.mean()):.{digits}f}"
    return f"{mean} ± {float(finite.std()):.{digits}f}" if len(finite) > 1 else mean
