"""One cell of a phase diagram: the posterior of one data set cut to its first n inputs.

The result is a function of (seed, n, data set) and the settings. It does not depend on other cells
or on interruptions.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loss import Descent
from kgon.data import SingleFeature, draw
from kgon.posterior.labels import (
    Labels,
    agreement,
    hull_labels,
    output_labels,
    quench,
    quench_labels,
)
from kgon.posterior.nuts import LEAST_DRAWS, NUTS, chain_share, judge, sample_nuts
from kgon.posterior.occupancy import posterior_llc
from kgon.posterior.phase_diagram import (
    PRIOR,
    AgreementRow,
    ChainsRow,
    PhaseLLCRow,
    PosteriorRow,
    ShareRow,
    Tables,
)
from kgon.posterior.smc import Posterior, sample_posterior
from kgon.theory.atlas import built, point
from kgon.theory.loss import EmpiricalLoss, Loss, importance_weights
from kgon.theory.phases import OTHER

Place = Mapping[str, Any]
"""n_samples and dataset of a cell, the first fields of each of its rows."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of all cells; ValueError if one is out of range.

    Attributes:
        n_features, n_hidden, importance: the model (`importance_weights`).
        noise_std, prior_std: the posterior (`sample_posterior`).
        seed: of the data sets and the samplers.
        smc: n_particles, n_replicates, ess, n_moves, n_leapfrog and target_acceptance of
            `sample_posterior`.
        nuts: n_chains, n_warmup and n_draws of `sample_nuts`, and start: "prior", a label, or a
            list of these. NUTS runs once from each start; None for no NUTS.
    """

    n_features: int
    n_hidden: int = 2
    importance: float | Sequence[float] | None = None
    noise_std: float = 1.0
    prior_std: float = 1.0
    seed: int = 0
    smc: Mapping[str, Any]
    nuts: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_whole("model.n_features", self.n_features, 1)
        check_whole("model.n_hidden", self.n_hidden, 1)
        check_whole("smc.n_particles", self.smc["n_particles"], 2)
        for name in ("n_replicates", "n_moves", "n_leapfrog"):
            check_whole(f"smc.{name}", self.smc[name], 1)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed}")
        for name, value in {"noise_std": self.noise_std, "prior_std": self.prior_std}.items():
            if not (_is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("ess", "target_acceptance"):
            if not (_is_number(self.smc[name]) and 0 < self.smc[name] < 1):
                raise ValueError(f"smc.{name} must lie in (0, 1), got {self.smc[name]}")
        importance_weights(self.importance, self.n_features)
        if self.nuts is not None:
            self._check_nuts(self.nuts)

    def _check_nuts(self, nuts: Mapping[str, Any]) -> None:
        for name, least in {"n_chains": 1, "n_warmup": 1, "n_draws": LEAST_DRAWS}.items():
            check_whole(f"nuts.{name}", nuts[name], least)
        if self.importance is not None:
            raise ValueError("NUTS follows the paper, where all features weigh the same: "
                             f"model.importance must be null, got {self.importance}")  # fmt: skip
        starts = self.starts
        if not starts or len(set(starts)) < len(starts):
            raise ValueError(
                f"nuts.start must be one start, or a list of different ones; got {nuts['start']}"
            )
        for label in (start for start in starts if start != PRIOR):
            try:
                point(label, self.n_features, self.n_hidden)
            except ValueError as error:
                raise ValueError(f"nuts.start must be {PRIOR} or a label: {error}") from None

    @property
    def starts(self) -> list[str]:
        """Where NUTS chains start; empty without NUTS."""
        if self.nuts is None:
            return []
        start = self.nuts["start"]
        several = isinstance(start, Sequence) and not isinstance(start, str)
        return [str(each) for each in (start if several else [start])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int) -> None:
    """ValueError unless the value is a whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value}")


def sample_cell(n_samples: int, dataset: int, settings: Settings) -> Tables:
    """Sample a cell by SMC and, if the settings ask for it, by NUTS."""
    place = {"n_samples": n_samples, "dataset": dataset}
    keys = streams.member_keys(settings.seed, [dataset], "posterior data")
    x = draw(SingleFeature(settings.n_features), keys, 0, n_samples)[0]
    weights = importance_weights(settings.importance, settings.n_features)
    loss = EmpiricalLoss(x, weights)
    posterior = sample_posterior(
        loss, n_hidden=settings.n_hidden, noise_std=settings.noise_std,
        prior_std=settings.prior_std, **settings.smc,
        seed=streams.member_keys(settings.seed, [dataset], f"posterior {n_samples}").reshape(()),
    )  # fmt: skip
    # The quench descends the loss of equal weights, so it says nothing about other weights.
    quenched = quench(posterior.W, posterior.b) if weights is None else None
    rules = _labels(posterior.W, posterior.b, quenched)
    tables = Tables(
        posteriors=[_posterior_row(posterior, place)],
        shares=_shares(rules, posterior.mean, **place, sampler="smc"),
        agreement=_agreement(posterior, rules, place),
        llc=[],
        chains=[],
    )
    if quenched is not None:
        reference = next(iter(rules.values()))
        tables.llc.extend(_llc(posterior, loss, quenched, reference, place))
    for start in settings.starts:
        chains = _run_nuts(x, start, place, settings)
        rules = _labels(chains.W, chains.b, quench(chains.W, chains.b))
        k = next(iter(rules.values())).k
        tables.chains.append(
            ChainsRow.of(
                **place, start=start, verdict=judge(chains, k), rhat=chains.rhat, ess=chains.ess,
                passages=int((k.diff(dim=0) != 0).sum()), divergences=chains.divergences,
                leapfrogs=chains.leapfrogs,
            )
        )  # fmt: skip
        tables.shares.extend(_shares(rules, chain_share, **place, sampler="nuts", start=start))
    return tables


def _labels(W: Tensor, b: Tensor, quenched: Descent | None) -> dict[str, Labels]:
    """The labels of draws by every rule that applies; the first is the reference."""
    rules = {}
    if quenched is not None and built(W.shape[-1], W.shape[-2]).phases:
        rules["quench"] = quench_labels(quenched)
    rules["output"] = output_labels(W, b)
    if W.shape[-2] == 2:
        rules["hull"] = hull_labels(W, b)
    return rules


def _posterior_row(posterior: Posterior, place: Place) -> PosteriorRow:
    mean_loss, loss_stderr = posterior.mean(posterior.loss)
    return PosteriorRow.of(
        **place,
        verdict=posterior.verdicts,
        log_evidence=posterior.log_evidence,
        log_evidence_stderr=posterior.log_evidence_stderr,
        mean_loss=mean_loss,
        mean_loss_stderr=loss_stderr,
        rhat=posterior.rhat,
        acceptance=posterior.acceptance[posterior.beta == 1].amin(),
        n_rungs=len(posterior.beta),
    )


def _shares(
    rules: Mapping[str, Labels], share_of: Callable[[Tensor], tuple[Any, Any]], **fields: Any
) -> list[ShareRow]:
    """The shares of the phases by every rule; `share_of` maps a mask to a share and its error."""
    rows = []
    for rule, labels in rules.items():
        for by in ("k", "label"):
            for phase, where in labels.masks(by).items():
                share, stderr = share_of(where)
                of_phase = dict(rule=rule, by=by, phase=phase, share=share, stderr=stderr)
                rows.append(ShareRow.of(**fields, **of_phase))
    return rows


def _agreement(
    posterior: Posterior, rules: Mapping[str, Labels], place: Place
) -> list[AgreementRow]:
    rows = []
    for rule, other in itertools.combinations(rules, 2):
        for by in ("k", "label"):
            share, _ = posterior.mean(agreement(rules[rule], rules[other], by))
            rows.append(AgreementRow.of(**place, rule=rule, other=other, by=by, share=share))
    return rows


def _llc(
    posterior: Posterior, loss: Loss, quenched: Descent, labels: Labels, place: Place
) -> list[PhaseLLCRow]:
    n_hidden, n_features = posterior.W.shape[-2:]
    theory = {p.label: p.llc for p in built(n_features, n_hidden).phases}
    rows = []
    for phase in labels.present:
        if phase != OTHER:
            where = labels.where(phase)
            llc, stderr = posterior_llc(posterior, loss, quenched, where)
            rows.append(
                PhaseLLCRow.of(
                    **place, phase=phase, share=posterior.mean(where)[0], llc=llc, stderr=stderr,
                    theory=theory.get(phase),
                )
            )  # fmt: skip
    return rows


def _run_nuts(x: Tensor, start: str, place: Place, settings: Settings) -> NUTS:
    assert settings.nuts is not None
    options = {name: value for name, value in settings.nuts.items() if name != "start"}
    at = None
    if start != PRIOR:
        from_here = point(start, settings.n_features, settings.n_hidden)
        at = from_here.W, from_here.b
    purpose = f"nuts {place['n_samples']} {start}"
    key = streams.member_keys(settings.seed, [place["dataset"]], purpose)[0]
    return sample_nuts(
        x, n_hidden=settings.n_hidden, noise_std=settings.noise_std, prior_std=settings.prior_std,
        start=at, seed=int(key) % 2**31, **options,
    )  # fmt: skip
