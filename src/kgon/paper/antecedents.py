"""Bayesian antecedents of the transitions in training (Sec. 5)."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kgon.files import finite_or_none
from kgon.paper.ensemble import Array, Ensemble, during
from kgon.paper.rows import Published, Row, Table
from kgon.posterior.transitions import SampledTransition
from kgon.theory.critical import CriticalPoint
from kgon.theory.free_energy import critical_sample_size
from kgon.theory.intervals import mean_and_error

ANTECEDENT, NONE, INCONCLUSIVE = "antecedent", "no antecedent", "inconclusive"
LEAST_CROSSED = 0.5
"""The sampled posterior makes a transition if at least this share of data sets does."""
SURE = 2.0
"""Estimates have changed if they differ by more than so many standard errors."""


@dataclass(frozen=True)
class TransitionInTraining:
    """A transition between critical levels in training, beside the same one of the posterior.

    Attributes:
        alpha, beta: the labels of the levels before and after.
        members: how many members make it.
        delta_loss, delta_llc_theory: beta's value minus alpha's, by theory.
        delta_llc_estimate, delta_llc_stderr: the same from the estimates, paired by member
            (`mean_and_error`).
        paired: how many members have estimates in both stages.
        n_cr_theory, n_cr_estimate: the n at which free energies with these lambdas cross.
        posterior_crossed: the share of data sets in which the sampled posterior makes it, too.
        posterior_crossing: the mean n at which it does.
        in_posterior: what the sampled posterior does, in words.
        verdict, reason: by the rules of `antecedents`.
    """

    alpha: str
    beta: str
    members: int
    delta_loss: float
    delta_llc_theory: float | None
    delta_llc_estimate: float | None
    delta_llc_stderr: float | None
    paired: int
    n_cr_theory: float | None
    n_cr_estimate: float | None
    posterior_crossed: float | None
    posterior_crossing: float | None
    in_posterior: str
    verdict: str
    reason: str


def antecedents(
    many: Ensemble, posterior: Sequence[SampledTransition]
) -> list[TransitionInTraining]:
    """Every dynamical transition, most frequent first, beside the Bayesian one.

    The estimate of a stage is the mean of a member's estimates in it. The verdict is

    1. *antecedent* if in the sampled posterior (`posterior`, by label) the odds of beta against
       alpha pass through 1 in at least LEAST_CROSSED of the data sets;
    2. otherwise *no antecedent* if the loss does not fall;
    3. otherwise by the order of the estimates, as in the paper: *antecedent* if lambda-hat rises by
       more than SURE errors (the free energies with these estimates then cross at n_cr), *no
       antecedent* if it falls by as much, and *inconclusive* if it does neither or if too few
       members have estimates in both stages.
    """
    points = {point.label: point for point in many.points}
    sampled = {(t.alpha, t.beta): t for t in posterior if t.by == "label"}
    seen = sorted(_passages(many).items(), key=lambda item: -len(item[1]))
    return [
        _compared(points[alpha], points[beta], np.array(estimates), sampled.get((alpha, beta)))
        for (alpha, beta), estimates in seen
    ]


def _passages(many: Ensemble) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The mean estimates before and after each transition, of each member that makes it."""
    step, llc = many.curve("llc", "mean")
    column = {row["member"]: i for i, row in enumerate(many.run.members)}
    seen = defaultdict(list)
    for member in many.stages:
        lasting = many.lasting(member)
        means = [during(step, llc[:, column[member]], stage)[0] for stage in lasting]
        for (a, before), (b, after) in pairwise(zip(lasting, means, strict=True)):
            seen[a["nearest"], b["nearest"]].append((before, after))
    return seen


def _compared(
    alpha: CriticalPoint, beta: CriticalPoint, estimates: Array, sampled: SampledTransition | None
) -> TransitionInTraining:
    """One transition, from the estimates before and after it, (n_members, 2)."""
    change = np.diff(estimates)[:, 0]
    mean, error = map(finite_or_none, mean_and_error(change))
    before, after = (mean_and_error(column)[0] for column in estimates.T)
    n_cr_theory = n_cr_estimate = theory = None
    if alpha.llc is not None and beta.llc is not None:
        theory = beta.llc - alpha.llc
        n_cr_theory = finite_or_none(critical_sample_size(alpha, beta))
    if math.isfinite(before + after):
        llc = {alpha.label: before, beta.label: after}
        n_cr_estimate = finite_or_none(critical_sample_size(alpha, beta, llc=llc))
    crossed = None if sampled is None else sampled.crossed
    verdict, reason = _verdict(beta.loss - alpha.loss, mean, error, crossed)
    return TransitionInTraining(
        alpha=alpha.label,
        beta=beta.label,
        members=len(estimates),
        delta_loss=beta.loss - alpha.loss,
        delta_llc_theory=theory,
        delta_llc_estimate=mean,
        delta_llc_stderr=error,
        paired=int(np.isfinite(change).sum()),
        n_cr_theory=n_cr_theory,
        n_cr_estimate=n_cr_estimate,
        posterior_crossed=crossed,
        posterior_crossing=sampled.crossing if sampled else None,
        in_posterior=_in_words(sampled),
        verdict=verdict,
        reason=reason,
    )


def _in_words(sampled: SampledTransition | None) -> str:
    if sampled is None:
        return "not both met"
    first, last = sampled.log_odds_first, sampled.log_odds_last
    words = "crosses" if sampled.crossed >= LEAST_CROSSED else _preferred(first, last)
    # A phase without a draw has infinite odds, which have no mean.
    ends = ["-" if v is None else f"{v:+.1f}" for v in (first, last)]
    return f"{words} ({ends[0]} .. {ends[1]})"


def _preferred(first: float | None, last: float | None) -> str:
    """Which phase the log odds at the smallest and at the largest n prefer."""
    known = [v for v in (first, last) if v is not None]
    if known and min(known) > 0:
        return "`to` preferred at all n"
    if known and max(known) < 0:
        return "`from` preferred at all n"
    return "unclear"


def _verdict(
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


def antecedent_rows(table: Sequence[TransitionInTraining], n_runs: int) -> list[Row]:
    """The claims of the hypothesis, compared with the table."""
    verdicts = Counter(row.verdict for row in table)
    where = "Sec. 5, Bayesian antecedent hypothesis"
    seen = any((row.alpha, row.beta) == ("5", "6") for row in table)
    measured = sum(
        row.posterior_crossed is not None and row.posterior_crossed >= LEAST_CROSSED
        for row in table
    )
    others = Counter(row.in_posterior.partition(" (")[0] for row in table).most_common()
    against = [f"{row.alpha} → {row.beta}" for row in table if row.verdict == NONE]
    return [
        Row("no observed dynamical transition is without a Bayesian antecedent",
            verdicts[NONE] == 0,
            Published(True, ("P",), where, text="all observed ones have one, two inconclusive"),
            text=f"{verdicts[ANTECEDENT]} kinds with, {verdicts[INCONCLUSIVE]} inconclusive, "
            f"{verdicts[NONE]} without" + (f" ({', '.join(against)})" if against else ""),
            remark="the rule for existence is kgon's (above the table); the paper's is an order of "
            "estimates"),
        Row("inconclusive transitions", float(verdicts[INCONCLUSIVE]), digits=0,
            published=Published(2.0, ("P",), where),
            stderr=max(1.0, math.sqrt(verdicts[INCONCLUSIVE])),
            remark="another number of runs sees other rare transitions; the error is Poisson's"),
        Row("the Bayesian 5 → 6 is not seen dynamically", not seen,
            Published(True, ("P",), where), text="seen" if seen else "not seen"),
        Row("kinds of transitions whose crossing is seen in the sampled posterior too",
            float(measured), digits=0, text=f"{measured} of {len(table)}",
            remark="labels by descent; " + ", ".join(f"{n}: {words}" for words, n in others)),
        Row("runs looked at", float(n_runs), digits=0,
            remark="number of runs in the paper: no source"),
    ]  # fmt: skip


def antecedent_table(table: Sequence[TransitionInTraining]) -> Table:
    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    body = []
    for row in table:
        estimate = cell(row.delta_llc_estimate, 2)
        if row.delta_llc_stderr is not None:
            estimate += f" ± {row.delta_llc_stderr:.2f}"
        body.append(
            [f"{row.alpha} → {row.beta}", str(row.members), cell(row.delta_loss, 4),
             cell(row.delta_llc_theory, 1), f"{estimate} ({row.paired})",
             cell(row.n_cr_theory, 0), cell(row.n_cr_estimate, 0),
             row.in_posterior, cell(row.posterior_crossing, 0),
             row.verdict, row.reason]
        )  # fmt: skip
    header = ["from → to", "runs", "ΔL", "Δλ theory", "Δλ̂ (pairs)", "n_cr theory", "n_cr λ̂",
              "sampled posterior (log odds)", "at n", "hypothesis", "by"]  # fmt: skip
    return "every transition between critical levels in training", header, body
