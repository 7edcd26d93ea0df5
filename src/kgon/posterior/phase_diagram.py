"""Phases of the posterior against the sample size: posteriors over (n, data set), one at a time.

A point of the diagram is the posterior of one data set cut to its first n inputs, so that a data
set's points show one experimenter's posterior as inputs arrive. What a point gives is a function of
(seed, n, data set) and of the settings: the same alone, in company, before and after an
interruption. Each is written when it is done, and not computed again.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgon import streams
from kgon.data import SingleFeature, draw
from kgon.posterior import occupancy
from kgon.posterior.labels import (
    Labels,
    Quench,
    agreement,
    hull_labels,
    output_labels,
    quench,
    quench_labels,
)
from kgon.posterior.nuts import LEAST_DRAWS, sample_nuts
from kgon.posterior.smc import Posterior, sample_posterior
from kgon.theory.critical import CriticalPoint, critical_point, critical_points
from kgon.theory.free_energy import critical_sample_size
from kgon.theory.loss import EmpiricalLoss, importance_weights
from kgon.theory.phases import OTHER

Rows = list[dict[str, Any]]

LEAST_SHARE = 0.05
"""A phase with a smaller share than this everywhere is left out of printed tables and figures, and
its learning coefficient is an average over too few draws to be shown."""

PRIOR = "prior"
"""The start of chains that is a draw from the prior instead of a critical point."""

_TABLES = ("posteriors", "shares", "agreement", "llc", "chains")


@dataclass(frozen=True)
class PhaseDiagram:
    """The rows of all points, by n and then by data set. None stands for what has no value.

    Attributes:
        posteriors: n_samples, dataset, verdict, log_evidence and its stderr, mean_loss and its
            stderr, rhat, the last rung's acceptance (least over replicates), n_rungs.
        shares: n_samples, dataset, sampler (smc, nuts), start (of NUTS' chains), rule (quench,
            output, hull), by (k, label), phase, share, stderr.
        agreement: n_samples, dataset, rule, other, by, share of draws on which two rules agree.
        llc: n_samples, dataset, phase (by the first rule), share, llc, stderr, theory.
        chains: NUTS only: n_samples, dataset, start, rhat and ess of the loss, passages (how often
            k by the first rule changes from one draw of a chain to the next), divergences,
            leapfrogs.
        n_draws: of each posterior.
    """

    posteriors: Rows
    shares: Rows
    agreement: Rows
    llc: Rows
    chains: Rows
    n_draws: int

    @property
    def n_samples(self) -> list[int]:
        """The sample sizes, ascending."""
        return sorted({row["n_samples"] for row in self.posteriors})

    @property
    def datasets(self) -> list[int]:
        """The data sets' numbers."""
        return sorted({row["dataset"] for row in self.posteriors})

    @property
    def rules(self) -> list[str]:
        """The labelling rules, the reference first."""
        return list(dict.fromkeys(row["rule"] for row in self.shares))

    @property
    def starts(self) -> list[str]:
        """Where NUTS' chains start; empty without NUTS."""
        return list(dict.fromkeys(row["start"] for row in self.chains))

    def share(self, by: str = "k", rule: str = "", start: str | None = None) -> dict[str, Tensor]:
        """For each phase its posterior probability, (n_sizes, n_datasets).

        Args:
            rule: the reference's unless another is named.
            start: None for SMC, which has none; else the share in NUTS' chains from there.
        """
        rule = rule or self.rules[0]
        at = {
            (n, d): (i, j)
            for i, n in enumerate(self.n_samples)
            for j, d in enumerate(self.datasets)
        }
        found: dict[str, Tensor] = {}
        for row in self.shares:
            mine = row["sampler"] == "smc" if start is None else row["start"] == start
            if mine and (row["rule"], row["by"]) == (rule, by):
                values = found.setdefault(
                    row["phase"],
                    torch.zeros(len(self.n_samples), len(self.datasets), dtype=torch.float64),
                )
                values[at[row["n_samples"], row["dataset"]]] = row["share"]
        return dict(sorted(found.items()))

    def column(self, name: str) -> Tensor:
        """A column of `posteriors` as (n_sizes, n_datasets); NaN where it has no value."""
        values = [math.nan if row[name] is None else row[name] for row in self.posteriors]
        return torch.tensor(values, dtype=torch.float64).view(len(self.n_samples), -1)

    def agreement_with(self, other: str, by: str = "k") -> Tensor:
        """Agreement of the reference with another rule, (n_sizes, n_datasets)."""
        values = [
            row["share"]
            for row in self.agreement
            if (row["rule"], row["other"], row["by"]) == (self.rules[0], other, by)
        ]
        return torch.tensor(values, dtype=torch.float64).view(len(self.n_samples), -1)

    def transitions(self, by: str = "k") -> list[occupancy.Transition]:
        """Every ordered pair of phases with its odds against n (`occupancy`)."""
        n = torch.tensor(self.n_samples, dtype=torch.float64)
        return occupancy.bayesian_transitions(n, self.share(by), self.n_draws)


def check_settings(
    n_samples: Any,
    n_datasets: int,
    *,
    n_features: int,
    n_hidden: int,
    importance: Any,
    noise_std: float,
    prior_std: float,
    seed: int,
    smc: Mapping[str, Any],
    nuts: Mapping[str, Any] | None,
) -> None:
    """Refuse what cannot be sampled, before anything starts: a ValueError names the field."""
    sizes = list(n_samples) if isinstance(n_samples, Sequence) else None
    if isinstance(n_samples, str) or not sizes or not all(_whole(n, 1) for n in sizes):
        raise ValueError(
            f"n_samples must be a list of whole numbers >= 1 such as [100,200], got {n_samples}"
        )
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"n_samples has a number twice: {sizes}")
    least = {"n_datasets": (n_datasets, 1), "model.n_features": (n_features, 1),
             "model.n_hidden": (n_hidden, 1), "smc.n_particles": (smc["n_particles"], 2),
             "smc.n_replicates": (smc["n_replicates"], 1), "smc.n_moves": (smc["n_moves"], 1),
             "smc.n_leapfrog": (smc["n_leapfrog"], 1)}  # fmt: skip
    if nuts is not None:
        least |= {f"nuts.{k}": (nuts[k], 1) for k in ("n_chains", "n_warmup")}
        least["nuts.n_draws"] = (nuts["n_draws"], LEAST_DRAWS)
    for name, (value, bound) in least.items():
        if not _whole(value, bound):
            raise ValueError(f"{name} must be a whole number >= {bound}, got {value}")
    if not _whole(seed, -math.inf):
        raise ValueError(f"seed must be a whole number, got {seed}")
    for name, value in {"noise_std": noise_std, "prior_std": prior_std}.items():
        if not (_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name in ("ess", "target_acceptance"):
        if not (_number(smc[name]) and 0 < smc[name] < 1):
            raise ValueError(f"smc.{name} must lie in (0, 1), got {smc[name]}")
    importance_weights(importance, n_features)
    if nuts is not None:
        if importance is not None:
            raise ValueError("NUTS follows the paper, whose features weigh the same: "
                             f"model.importance must be null, got {importance}")  # fmt: skip
        _check_starts(nuts["start"], n_features, n_hidden)


def _starts(start: Any) -> list[str]:
    """One start or several, as words."""
    several = isinstance(start, Sequence) and not isinstance(start, str)
    return [str(each) for each in (start if several else [start])]


def _check_starts(start: Any, n_features: int, n_hidden: int) -> None:
    starts = _starts(start)
    if not starts or len(set(starts)) < len(starts):
        raise ValueError(f"nuts.start must be one start, or a list of different ones; got {start}")
    for name in starts:
        if name == PRIOR:
            continue
        if n_hidden != 2:
            raise ValueError(
                f"nuts.start must be {PRIOR} where model.n_hidden={n_hidden}: critical points "
                f"are known for n_hidden = 2; got {name}"
            )
        try:
            critical_point(name, n_features)
        except ValueError as error:
            raise ValueError(f"nuts.start must be {PRIOR} or a label: {error}") from None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any, least: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def phase_diagram(
    folder: Path,
    n_samples: Sequence[int],
    n_datasets: int,
    *,
    n_features: int,
    n_hidden: int = 2,
    importance: float | Sequence[float] | None = None,
    noise_std: float = 1.0,
    prior_std: float = 1.0,
    seed: int = 0,
    smc: Mapping[str, Any],
    nuts: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> PhaseDiagram:
    """Sample the posterior of every data set at every n; go on where an earlier call ended.

    Args:
        folder: where each finished point is written, as n<n>-d<data set>.json.
        n_samples: the sample sizes, in any order.
        n_datasets: how many data sets; number d is the same in any count.
        smc: n_particles, n_replicates, ess, n_moves, n_leapfrog, target_acceptance of
            `sample_posterior`.
        nuts: start ("prior", a label, or a list of such), n_chains, n_warmup, n_draws of
            `sample_nuts`, which is then run beside, once from each start; None to leave it out.
        workers: points that are sampled at a time, each on one core; without effect on results.
        progress: called with (finished, all, point) after each.

    Raises:
        ValueError: a setting out of range, or a folder with points of other settings.
    """
    settings: dict[str, Any] = dict(
        n_features=n_features, n_hidden=n_hidden, importance=importance, noise_std=noise_std,
        prior_std=prior_std, seed=seed, smc=dict(smc), nuts=None if nuts is None else dict(nuts),
    )  # fmt: skip
    check_settings(n_samples, n_datasets, **settings)
    if not _whole(workers, 1):
        raise ValueError(f"workers must be a whole number >= 1, got {workers}")
    folder.mkdir(parents=True, exist_ok=True)
    places = [(n, d) for n in sorted(n_samples) for d in range(n_datasets)]
    points: dict[tuple[int, int], dict[str, Any]] = {}
    for n, d in places:
        file = _file(folder, n, d)
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(f"{file} is of other settings: {stored['settings']}")
            points[n, d] = stored

    def finish(n: int, d: int) -> dict[str, Any]:
        point = {"settings": settings, **sample_point(n, d, **settings)}
        file = _file(folder, n, d)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(point, allow_nan=False))
        partial.replace(file)
        return point

    # The largest first: so no worker is left alone with it at the end.
    waiting = [place for place in reversed(places) if place not in points]
    # One thread a point is less in each other's way than threads that share a point.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = {pool.submit(finish, *place): place for place in waiting}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                place = running.pop(future)
                points[place] = future.result()
                if progress:
                    progress(len(points), len(places), points[place])
    finally:
        pool.shutdown(cancel_futures=True)
    tables = {name: [row for p in places for row in points[p][name]] for name in _TABLES}
    return PhaseDiagram(**tables, n_draws=smc["n_particles"] * smc["n_replicates"])


def _file(folder: Path, n: int, d: int) -> Path:
    return folder / f"n{n:06d}-d{d:03d}.json"


def sample_point(
    n_samples: int,
    dataset: int,
    *,
    n_features: int,
    n_hidden: int,
    importance: float | Sequence[float] | None,
    noise_std: float,
    prior_std: float,
    seed: int,
    smc: Mapping[str, Any],
    nuts: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The rows of one point of the diagram, by table (`PhaseDiagram`)."""
    place = {"n_samples": n_samples, "dataset": dataset}
    keys = streams.member_keys(seed, [dataset], "posterior data")
    x = draw(SingleFeature(n_features), keys, 0, n_samples)[0]
    weights = importance_weights(importance, n_features)
    loss = EmpiricalLoss(x, weights)
    posterior = sample_posterior(
        loss, n_hidden=n_hidden, noise_std=noise_std, prior_std=prior_std, **smc,
        seed=streams.member_keys(seed, [dataset], f"posterior {n_samples}").reshape(()),
    )  # fmt: skip
    # The quench descends the loss of equal weights: with others it leads to no phase of theirs.
    quenched = quench(posterior.W, posterior.b) if weights is None else None
    rules = _labels(posterior.W, posterior.b, quenched)
    mean_loss, loss_stderr = posterior.mean(posterior.loss)
    row = place | {
        "verdict": posterior.verdicts,
        "log_evidence": _value(posterior.log_evidence),
        "log_evidence_stderr": _value(posterior.log_evidence_stderr),
        "mean_loss": _value(mean_loss),
        "mean_loss_stderr": _value(loss_stderr),
        "rhat": _value(posterior.rhat),
        "acceptance": _value(posterior.acceptance[posterior.beta == 1].amin()),
        "n_rungs": len(posterior.beta),
    }
    shares: Rows = []
    for rule, labels in rules.items():
        by_k = occupancy.shares_by_k(posterior, labels)
        named = {_family(k): value for k, value in by_k.items()}
        for by, found in (("k", named), ("label", occupancy.shares(posterior, labels))):
            for phase, (share, stderr) in found.items():
                shares.append(
                    place
                    | {"sampler": "smc", "start": None, "rule": rule, "by": by, "phase": phase}
                    | {"share": _value(share), "stderr": _value(stderr)}
                )
    agreements = [
        place | {"rule": one, "other": other, "by": by}
        | {"share": _value(posterior.mean(agreement(rules[one], rules[other], by))[0])}
        for i, one in enumerate(rules)
        for other in [*rules][i + 1 :]
        for by in ("k", "label")
    ]  # fmt: skip
    chains: Rows = []
    if nuts is not None:
        options = {name: value for name, value in nuts.items() if name != "start"}
        for start in _starts(nuts["start"]):
            chain, more = _nuts(x, place, start, n_hidden, noise_std, prior_std, seed, options)
            chains.append(chain)
            shares += more
    reference = next(iter(rules.values()))
    llc = _llc(posterior, loss, quenched, reference, _theory(n_features, n_hidden, weights))
    return {
        "posteriors": [row],
        "shares": shares,
        "agreement": agreements,
        "llc": [place | entry for entry in llc],
        "chains": chains,
    }


def _labels(W: Tensor, b: Tensor, quenched: Quench | None) -> dict[str, Labels]:
    """The labels of draws by every rule that applies; the first is the reference."""
    rules = {}
    if W.shape[-2] == 2 and quenched is not None:
        rules["quench"] = quench_labels(quenched)
    rules["output"] = output_labels(W, b)
    if W.shape[-2] == 2:
        rules["hull"] = hull_labels(W, b)
    return rules


def _family(k: int) -> str:
    return OTHER if k < 0 else str(k)


def _value(x: Tensor | float) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None


def _theory(n_features: int, n_hidden: int, weights: Tensor | None) -> dict[str, CriticalPoint]:
    if n_hidden != 2 or weights is not None:
        return {}
    return {point.label: point for point in critical_points(n_features)}


def _llc(
    posterior: Posterior,
    loss: EmpiricalLoss,
    quenched: Quench | None,
    labels: Labels,
    theory: Mapping[str, CriticalPoint],
) -> Rows:
    if quenched is None:
        return []
    rows = []
    for phase in labels.present:
        if phase == OTHER:
            continue
        where = labels.where(phase)
        llc, stderr = occupancy.posterior_llc(posterior, loss, quenched, where)
        rows.append(
            {
                "phase": phase,
                "share": _value(posterior.mean(where)[0]),
                "llc": _value(llc),
                "stderr": _value(stderr),
                "theory": theory[phase].llc if phase in theory else None,
            }
        )
    return rows


def _nuts(
    x: Tensor,
    place: dict[str, Any],
    start: str,
    n_hidden: int,
    noise_std: float,
    prior_std: float,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], Rows]:
    """The chains from one start: their row, and their shares."""
    at = None
    if start != PRIOR:
        point = critical_point(start, x.shape[-1])
        at = point.W, point.b
    key = streams.member_keys(seed, [place["dataset"]], f"nuts {place['n_samples']} {start}")[0]
    chains = sample_nuts(
        x, n_hidden=n_hidden, noise_std=noise_std, prior_std=prior_std, start=at,
        seed=int(key) % 2**31, **options,
    )  # fmt: skip
    shares = []
    rules = _labels(chains.W, chains.b, quench(chains.W, chains.b))
    for rule, labels in rules.items():
        by_k = {_family(int(k)): labels.k == k for k in labels.k.unique()}
        for by, found in (("k", by_k), ("label", {p: labels.where(p) for p in labels.present})):
            for phase, where in found.items():
                # Chains are the replicates: their spread is the error.
                each = where.double().mean(0)
                stderr = each.std() / math.sqrt(len(each)) if len(each) > 1 else math.nan
                shares.append(
                    place
                    | {"sampler": "nuts", "start": start, "rule": rule, "by": by, "phase": phase}
                    | {"share": _value(each.mean()), "stderr": _value(stderr)}
                )
    row = {"start": start, "rhat": _value(chains.rhat), "ess": _value(chains.ess)}
    passages = int((next(iter(rules.values())).k.diff(dim=0) != 0).sum())
    row |= {"passages": passages, "divergences": chains.divergences, "leapfrogs": chains.leapfrogs}
    return place | row, shares


def transition_rows(diagram: PhaseDiagram) -> Rows:
    """The transitions of `occupancy`, between families (by = k) and between labels, as rows.

    by, from, to; crossed: the share of data sets whose odds pass through 1 towards `to`; crossing
    and crossing_sd over those; log_odds_first and _last: means over data sets at the smallest and
    the largest n; largest_share_from and _to: the largest mean shares.
    """
    rows = []
    for by in ("k", "label"):
        top = {phase: float(v.mean(1).max()) for phase, v in diagram.share(by).items()}
        for t in diagram.transitions(by):
            mean, sd = t.location
            rows.append(
                {
                    "by": by,
                    "from": t.alpha,
                    "to": t.beta,
                    "crossed": t.crossed,
                    "crossing": _value(mean),
                    "crossing_sd": _value(sd),
                    "log_odds_first": _value(t.log_odds[0].nanmean()),
                    "log_odds_last": _value(t.log_odds[-1].nanmean()),
                    "largest_share_from": top[t.alpha],
                    "largest_share_to": top[t.beta],
                }
            )
    return rows


def prediction_rows(
    n_features: int, *, prior_std: float = 1.0, llc: Mapping[str, float] | None = None
) -> Rows:
    """Where the free energies of eq. (9), constants included, cross, for both conventions.

    A row for each pair of critical points of which the second has the smaller loss and the larger
    learning coefficient (only these make a transition, Chen et al. 2023, Sec. 4): from, to, llc
    (what was put in place of the theory's, or empty), delta_loss, delta_llc, full (exp(-n L)) and
    halved (exp(-n L / 2)); None where one point is preferred at all n.

    Args:
        llc: learning coefficients with which the pairs that have them are listed once more.
    """
    rows = []
    points = [p for p in critical_points(n_features) if p.llc is not None or p.label in (llc or {})]
    for other in ({}, dict(llc or {})):
        for alpha in points:
            for beta in points:
                before, after = (other.get(p.label, p.llc) for p in (alpha, beta))
                if before is None or after is None or beta.loss >= alpha.loss or after <= before:
                    continue
                if other and not {alpha.label, beta.label} & set(other):
                    continue
                sizes = {
                    name: _value(
                        critical_sample_size(
                            alpha, beta, halved=halved, prior_std=prior_std, llc=other
                        )
                    )
                    for name, halved in (("full", False), ("halved", True))
                }
                replaced = {k: v for k, v in other.items() if k in (alpha.label, beta.label)}
                rows.append(
                    {
                        "from": alpha.label,
                        "to": beta.label,
                        "llc": ", ".join(f"{k}: {v:g}" for k, v in replaced.items()),
                        "delta_loss": beta.loss - alpha.loss,
                        "delta_llc": after - before,
                        **sizes,
                    }
                )
    return rows


def neighbours(phases: Sequence[str]) -> list[tuple[str, str]]:
    """Each family of k-gons and the next one that occurs."""
    return list(pairwise(sorted((p for p in phases if p != OTHER), key=int)))
