"""The phases of the posterior against the sample size, as tables of samples.

A *cell* of the diagram is the posterior of one data set cut to its first n inputs
(`kgon.posterior.cell`). The cells of a data set show how the posterior changes as inputs arrive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from kgon.files import finite_or_none
from kgon.posterior.occupancy import Transition, bayesian_transitions

LEAST_SHARE = 0.05
"""Phases whose share is smaller than this everywhere are left out of printed tables and figures.
Their learning coefficients are averages over too few draws."""

PRIOR = "prior"
"""The `start` of NUTS chains that begin at draws from the prior instead of at a critical point."""


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """A row of a cell's tables.

    A `stderr` is a standard error times Student's factor for the few replicates or chains that it
    is from: two of it hold the true value 19 times out of 20.

    Attributes:
        n_samples: n, the inputs of the data set that count.
        dataset: number of the data set.
    """

    n_samples: int
    dataset: int

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """The row with these values, tensors as numbers; None for a number that is not finite."""
        plain: dict[str, Any] = {
            k: finite_or_none(v) if isinstance(v, float | Tensor) else v for k, v in fields.items()
        }
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class PosteriorRow(CellRow):
    """The posterior of a cell.

    Attributes:
        verdict: ok, unchecked, unconverged or diverged (`kgon.posterior.smc`).
        log_evidence (nats): log Z.
        log_evidence_stderr (nats): error of log Z.
        mean_loss (loss): posterior mean of L_n.
        mean_loss_stderr (loss): error of the mean of L_n.
        rhat: R-hat of the loss between replicates.
        acceptance: mean acceptance on the last rung, the least over replicates.
        n_rungs: rungs of the tempering ladder.
    """

    verdict: str
    log_evidence: float | None
    log_evidence_stderr: float | None
    mean_loss: float | None
    mean_loss_stderr: float | None
    rhat: float | None
    acceptance: float | None
    n_rungs: int


@dataclass(frozen=True, kw_only=True)
class ShareRow(CellRow):
    """The share of a phase in a cell.

    Attributes:
        sampler: smc or nuts.
        start: where the NUTS chains start; None for SMC.
        rule: how draws are labelled: quench, output or hull.
        by: k (families of k-gons) or label.
        phase: the family or the label.
        share: posterior probability of the phase.
        stderr: error of the share.
    """

    sampler: str = "smc"
    start: str | None = None
    rule: str
    by: str
    phase: str
    share: float | None
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class AgreementRow(CellRow):
    """The share of draws to which two rules give the same k, or the same label.

    Attributes:
        rule: how draws are labelled.
        other: the rule that it is compared with.
        by: k (families of k-gons) or label.
        share: share of draws on which the two agree.
    """

    rule: str
    other: str
    by: str
    share: float | None


@dataclass(frozen=True, kw_only=True)
class PhaseLLCRow(CellRow):
    """The learning coefficient within a phase, labelled by the reference rule.

    Attributes:
        phase: label of the phase.
        share: posterior probability of the phase.
        llc: learning coefficient over the draws of the phase (`occupancy.posterior_llc`).
        stderr: error of the learning coefficient.
        theory: learning coefficient by theory; blank where there is none.
    """

    phase: str
    share: float | None
    llc: float | None
    stderr: float | None
    theory: float | None


@dataclass(frozen=True, kw_only=True)
class ChainsRow(CellRow):
    """The NUTS chains from one start.

    Attributes:
        start: prior, or the label of a critical point.
        verdict: ok, unchecked, unconverged or diverged (`nuts.judge`).
        rhat: rank-normalised split R-hat of the loss.
        ess: bulk effective number of draws of the loss.
        passages: how often k by the reference rule changes between successive draws of a chain.
        divergences: divergent trajectories.
        leapfrogs: leapfrog steps after warm-up.
    """

    start: str
    verdict: str
    rhat: float | None
    ess: float | None
    passages: int
    divergences: int
    leapfrogs: int


@dataclass(frozen=True)
class Tables:
    """The results of one cell or of several."""

    posteriors: list[PosteriorRow]
    shares: list[ShareRow]
    agreement: list[AgreementRow]
    llc: list[PhaseLLCRow]
    chains: list[ChainsRow]

    @classmethod
    def from_rows(cls, rows: Mapping[str, Any], **more: Any) -> Self:
        """The tables from stored rows; a table that is not in `rows` is empty."""
        records = {"posteriors": PosteriorRow, "shares": ShareRow, "agreement": AgreementRow,
                   "llc": PhaseLLCRow, "chains": ChainsRow}  # fmt: skip
        tables = {
            name: [record(**row) for row in rows.get(name, ())] for name, record in records.items()
        }
        return cls(**tables, **more)


@dataclass(frozen=True)
class PhaseDiagram(Tables):
    """The tables of all cells, by n and then by data set.

    Attributes:
        n_draws: draws of each posterior.
    """

    n_draws: int

    @classmethod
    def joined(cls, cells: Sequence[Tables], n_draws: int) -> Self:
        tables = {
            field.name: [row for cell in cells for row in getattr(cell, field.name)]
            for field in fields(Tables)
        }
        return cls(**tables, n_draws=n_draws)

    @property
    def n_samples(self) -> list[int]:
        return sorted({row.n_samples for row in self.posteriors})

    @property
    def datasets(self) -> list[int]:
        return sorted({row.dataset for row in self.posteriors})

    @property
    def rules(self) -> list[str]:
        """The labelling rules, the reference first."""
        return list(dict.fromkeys(row.rule for row in self.shares))

    @property
    def starts(self) -> list[str]:
        """Where NUTS chains start; empty without NUTS."""
        return list(dict.fromkeys(row.start for row in self.chains))

    def share(self, by: str = "k", rule: str = "", start: str | None = None) -> dict[str, Tensor]:
        """The posterior probability of each phase, (n_sizes, n_datasets).

        Args:
            by: k or label.
            rule: the labelling rule; the reference by default.
            start: the start of the NUTS chains to take shares from; None for SMC.
        """
        rule = rule or self.rules[0]
        sampler = "smc" if start is None else "nuts"
        sizes, datasets = self.n_samples, self.datasets
        found: dict[str, Tensor] = {}
        for row in self.shares:
            if (row.sampler, row.start, row.rule, row.by) == (sampler, start, rule, by):
                values = found.setdefault(
                    row.phase, torch.zeros(len(sizes), len(datasets), dtype=torch.float64)
                )
                share = math.nan if row.share is None else row.share
                values[sizes.index(row.n_samples), datasets.index(row.dataset)] = share
        return dict(sorted(found.items()))

    def column(self, name: str) -> Tensor:
        """A field of `posteriors` as (n_sizes, n_datasets); NaN for None."""
        return self._by_size(getattr(row, name) for row in self.posteriors)

    def agreement_with(self, other: str) -> Tensor:
        """The share of draws whose k is the same by the reference and another rule, (n_sizes,
        n_datasets)."""
        wanted = (self.rules[0], other, "k")
        return self._by_size(
            row.share for row in self.agreement if (row.rule, row.other, row.by) == wanted
        )

    def _by_size(self, values: Any) -> Tensor:
        numbers = [math.nan if value is None else value for value in values]
        return torch.tensor(numbers, dtype=torch.float64).view(len(self.n_samples), -1)

    def transitions(self, by: str = "k") -> list[Transition]:
        """Every ordered pair of phases with its odds against n."""
        n = torch.tensor(self.n_samples, dtype=torch.float64)
        return bayesian_transitions(n, self.share(by), self.n_draws)
