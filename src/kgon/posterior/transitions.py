"""Transitions of the posterior between phases: sampled, and predicted by free energies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations

from kgon.files import finite_or_none
from kgon.posterior.occupancy import Transition
from kgon.posterior.phase_diagram import LEAST_SHARE, PhaseDiagram
from kgon.posterior.smc import VERDICTS
from kgon.theory.atlas import built
from kgon.theory.free_energy import critical_sample_size
from kgon.theory.phases import OTHER


@dataclass(frozen=True, kw_only=True)
class SampledTransition:
    """The odds of phase `beta` against `alpha` in the sampled posterior, over data sets.

    Attributes:
        by: whether phases are families of k-gons (k) or labels (label).
        alpha: phase at smaller n.
        beta: phase at larger n.
        crossed: share of data sets whose odds pass through 1 towards beta.
        n_crossed: number of these data sets.
        crossing (samples): mean over these of the n at which they do; blank without any.
        crossing_error (samples): error of that mean (`Transition.error`); blank for fewer than two
            data sets.
        crossing_sd (samples): standard deviation of that n between these data sets; blank for fewer
            than two.
        log_odds_first (nats): mean log odds at the smallest n.
        log_odds_last (nats): mean log odds at the largest n.
        largest_share_from: largest mean share of alpha at any n.
        largest_share_to: largest mean share of beta at any n.
    """

    by: str
    alpha: str = field(metadata={"column": "from"})
    beta: str = field(metadata={"column": "to"})
    crossed: float
    n_crossed: int
    crossing: float | None
    crossing_error: float | None
    crossing_sd: float | None
    log_odds_first: float | None
    log_odds_last: float | None
    largest_share_from: float
    largest_share_to: float

    @property
    def notable(self) -> bool:
        """Whether some data set crosses, and both phases reach LEAST_SHARE."""
        smaller = min(self.largest_share_from, self.largest_share_to)
        return self.crossed > 0 and smaller >= LEAST_SHARE


@dataclass(frozen=True, kw_only=True)
class PredictedTransition:
    """Where the free energies of two critical points cross, by eq. (9), constants included.

    Attributes:
        alpha: critical point that is preferred at smaller n.
        beta: critical point that is preferred at larger n.
        llc: learning coefficients used in place of the theory's, in words; often empty.
        delta_loss (loss): beta's loss less alpha's.
        delta_llc: beta's learning coefficient less alpha's.
        full (samples): n of the crossing under exp(-n L); blank where one critical point is
            preferred at all n.
        halved (samples): n of the crossing under exp(-n L / 2), likewise.
    """

    alpha: str = field(metadata={"column": "from"})
    beta: str = field(metadata={"column": "to"})
    llc: str
    delta_loss: float
    delta_llc: float
    full: float | None
    halved: float | None


def sampled_transitions(diagram: PhaseDiagram) -> list[SampledTransition]:
    """The transitions between families of k-gons, then between labels: every ordered pair."""
    found = []
    for by in ("k", "label"):
        top = {phase: float(v.mean(1).max()) for phase, v in diagram.share(by).items()}
        for transition in diagram.transitions(by):
            mean, sd = transition.location
            found.append(
                SampledTransition(
                    by=by,
                    alpha=transition.alpha,
                    beta=transition.beta,
                    crossed=transition.crossed,
                    n_crossed=transition.n_crossed,
                    crossing=finite_or_none(mean),
                    crossing_error=finite_or_none(transition.error),
                    crossing_sd=finite_or_none(sd),
                    log_odds_first=finite_or_none(transition.log_odds[0].nanmean()),
                    log_odds_last=finite_or_none(transition.log_odds[-1].nanmean()),
                    largest_share_from=top[transition.alpha],
                    largest_share_to=top[transition.beta],
                )
            )
    return found


def predicted_transitions(
    n_features: int,
    n_hidden: int = 2,
    *,
    prior_std: float = 1.0,
    llc: Mapping[str, float] | None = None,
) -> list[PredictedTransition]:
    """The predictions for every pair of critical points with a transition: beta has the smaller
    loss and the larger learning coefficient (Chen et al. 2023, Sec. 4).

    Args:
        llc: learning coefficients by label, in place of the theory's; pairs with one of these
            labels are listed a second time.
    """
    found = []
    phases = built(n_features, n_hidden).phases
    points = [p for p in phases if p.llc is not None or p.label in (llc or {})]
    for other in ({}, dict(llc or {})):
        for alpha, beta in permutations(points, 2):
            before, after = (other.get(p.label, p.llc) for p in (alpha, beta))
            if before is None or after is None or beta.loss >= alpha.loss or after <= before:
                continue
            replaced = {k: v for k, v in other.items() if k in (alpha.label, beta.label)}
            if other and not replaced:
                continue
            full, halved = (
                critical_sample_size(alpha, beta, halved=half, prior_std=prior_std, llc=other)
                for half in (False, True)
            )
            found.append(
                PredictedTransition(
                    alpha=alpha.label,
                    beta=beta.label,
                    llc=", ".join(f"{k}: {v:g}" for k, v in replaced.items()),
                    delta_loss=beta.loss - alpha.loss,
                    delta_llc=after - before,
                    full=finite_or_none(full),
                    halved=finite_or_none(halved),
                )
            )
    return found


def neighbours(phases: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of successive families of k-gons, among those that occur."""
    return list(pairwise(sorted((p for p in phases if p != OTHER), key=int)))


@dataclass(frozen=True)
class Findings:
    """A phase diagram with its transitions.

    Attributes:
        sampled: the transitions of the sampled posterior.
        predicted: those of the free energies; empty where there is no theory.
        pair: the two families of k-gons whose crossing is the headline, if there are two.
    """

    diagram: PhaseDiagram
    sampled: list[SampledTransition]
    predicted: list[PredictedTransition]
    pair: tuple[str, str] | None

    @property
    def crossing(self) -> Transition | None:
        """The transition of the pair; None if neither of its families occurs."""
        found = (t for t in self.diagram.transitions() if (t.alpha, t.beta) == self.pair)
        return next(found, None)

    def prediction(self, pair: tuple[str, str] | None) -> PredictedTransition | None:
        """The prediction for a pair with the theory's learning coefficients, if there is one."""
        found = (p for p in self.predicted if (p.alpha, p.beta) == pair and not p.llc)
        return next(found, None)

    def summary(self) -> dict[str, float | str]:
        """The numbers that a table of runs shows."""
        diagram = self.diagram
        verdicts = [row.verdict for row in diagram.posteriors]
        summary: dict[str, float | str] = {
            f"posterior/share_{verdict}": verdicts.count(verdict) / len(verdicts)
            for verdict in VERDICTS
        }
        crossing, predicted = self.crossing, self.prediction(self.pair)
        if self.pair and crossing:
            mean, sd = crossing.location
            numbers: dict[str, float | None] = {
                "crossed": crossing.crossed, "n_crossed": crossing.n_crossed, "mean": mean,
                "error": crossing.error, "sd": sd,
            }  # fmt: skip
            if predicted:
                numbers |= {"predicted_full": predicted.full, "predicted_halved": predicted.halved}
            for name, value in numbers.items():
                if value is not None and math.isfinite(value):
                    summary[f"crossing/{'-'.join(self.pair)}/{name}"] = value
        for phase, share in diagram.share().items():
            for n, value in zip(diagram.n_samples, share.mean(1).tolist(), strict=True):
                summary[f"share/{phase}/{n}"] = value
        for rule in diagram.rules[1:]:
            summary[f"agreement/{rule}"] = float(diagram.agreement_with(rule).mean())
        last = diagram.column("log_evidence")[-1]
        if bool(last.isfinite().all()):
            summary[f"log_evidence/{diagram.n_samples[-1]}"] = float(last.mean())
        return summary
