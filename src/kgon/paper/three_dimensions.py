"""The item on three dimensions: phases of the posterior against n, and transitions of training."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kgon.paper import bayes
from kgon.paper.antecedents import (
    ANTECEDENT,
    INCONCLUSIVE,
    NONE,
    TransitionInTraining,
    antecedent_table,
    antecedents,
)
from kgon.paper.jobs import Results
from kgon.paper.rows import Row
from kgon.paper.section import Block, Picture, Section, job_command
from kgon.posterior.phase_diagram import PhaseDiagram
from kgon.posterior.transitions import sampled_transitions
from kgon.theory.atlas import built
from kgon.theory.free_energy import critical_sample_size

PAIR, LABELS = ("6", "7"), ("2x2x2", "7d3a")
"""Two families and the phase of each: octahedra and capped octahedra."""


def rows(found: PhaseDiagram) -> tuple[list[Row], dict[str, Any]]:
    """Rows and the figure's data: shares against n, the measured and the predicted crossing."""
    crossing = bayes.crossing_of(found, PAIR)
    alpha, beta = (built(7, 3)[label] for label in LABELS)
    predicted = critical_sample_size(alpha, beta, halved=True)
    shown = [
        Row("7 features in 3 dimensions, exp(-n L / 2): n of 6 → 7", crossing.mean,
            stderr=crossing.error, digits=0,
            remark=f"{crossing.n_crossed} of {len(found.datasets)} data sets cross, "
            f"sd {crossing.sd:.0f} between them"),
        Row("where leading-order free energies cross, exp(-n L / 2)", predicted, digits=0,
            remark=f"λ({alpha.label}) = {alpha.llc:g}, a volume exponent, λ({beta.label}) = "
            f"{beta.llc:g}; terms of order 1 are left out"),
        bayes.ok_row(found, "posteriors with the verdict ok"),
    ]  # fmt: skip
    return shown, bayes.shares_data(found, PAIR, {"exp(-n L / 2)": predicted})


def _kinds(table: Sequence[TransitionInTraining], n_runs: int) -> Row:
    """How many kinds of transitions have a Bayesian antecedent."""
    verdicts = Counter(row.verdict for row in table)
    against = [f"{row.alpha} → {row.beta}" for row in table if row.verdict == NONE]
    return Row(
        f"kinds of transitions in training with a Bayesian antecedent, of {n_runs} runs",
        float(verdicts[ANTECEDENT]), digits=0, text=f"{verdicts[ANTECEDENT]} of {len(table)}",
        remark=f"{verdicts[INCONCLUSIVE]} inconclusive, {verdicts[NONE]} without"
        + (f" ({', '.join(against)})" if against else ""),
    )  # fmt: skip


def section(results: Results) -> Section:
    found = bayes.diagram(results.one("three_dimensions"))
    own, data = rows(found)
    many = results.ensemble("three_dimensions_training")
    table = antecedents(many, sampled_transitions(found))
    caption = (
        "Share of the posterior by number of live columns k against the sample size n (inputs), 7 "
        "features in 3 dimensions, likelihood exp(-n L / 2), "
        f"{len(found.datasets)} data sets, {found.n_draws} draws each by tempered SMC. Lines: "
        "mean, bands: range over data sets. 6: octahedron, 7: capped octahedron."
    )
    return Section(
        [Block(job_command("three_dimensions", results), own),
         Block(job_command("three_dimensions_training", results),
               [_kinds(table, many.n_members)])],
        [antecedent_table(table)],
        [Picture("three_dimensions", "shares", data, caption)],
        ["Training starts near octahedra with biases N(0, 1), as the paper's near 4-gons. The "
         "rules of the hypothesis are those of "
         "[the plane](#bayesian-antecedents-of-dynamical-transitions)."],
    )  # fmt: skip
