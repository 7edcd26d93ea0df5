"""Local learning coefficients of the members during training."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.compiled.exact_loss import CompiledLoss
from kgon.llc.estimate import check_sampler, estimate_llc
from kgon.llc.hmc import HMC
from kgon.llc.inputs import check_settings, default_localization
from kgon.llc.langevin import SamplerFactory
from kgon.llc.verdict import REASONS, VERDICTS, verdict
from kgon.theory.loss import EmpiricalLoss, PopulationLoss
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS

COLUMNS = (
    "mean", "stderr", "bias", "variance", "variance_error", "rhat", "ess", "below", "acceptance"
)  # fmt: skip
"""The recorded fields of `estimate.LLC`, besides the reason of the verdict."""


class LLCEstimates(Recorder):
    """Records in the table `llc` an estimate at each member's parameters.

    The loss is that of the member's own data set, or the expected loss if inputs are fresh at every
    step. If it has no closed form (sparse or correlated data), only the last of the steps is
    estimated: for a hundred members that takes ten seconds on data sets of 1,000, minutes on fresh
    inputs (`kgon.data.WATCHED` of them). The chains of all members are one stack. Their noise
    depends only on seed, member and step, so training is the same with and without this callback,
    and a member's estimate is the same in any ensemble.

    Args:
        steps: when to estimate.
        nbeta: inverse temperature times n; None for n / log n with n the size of the data set.
        localization: strength of the pull; None for `default_localization(nbeta)`.
        n_chains, target, budget, lr, n_draws, n_burnin, sampler: as in `estimate_llc`.
    """

    table = "llc"
    doing = "LLC estimates"

    def __init__(
        self,
        steps: Iterable[int],
        nbeta: float | None,
        localization: float | None,
        n_chains: int,
        target: float,
        budget: int,
        sampler: SamplerFactory | HMC,
        lr: float | None = None,
        n_draws: int | None = None,
        n_burnin: int | None = None,
    ):
        super().__init__(steps)
        self.nbeta = nbeta
        self.sampler = sampler
        self.localization = localization
        self.settings: dict[str, Any] = {
            "n_chains": n_chains, "target": target, "budget": budget,
            "lr": lr, "n_draws": n_draws, "n_burnin": n_burnin,
        }  # fmt: skip
        check_settings(
            1.0 if nbeta is None else nbeta,
            1.0 if localization is None else localization,
            **self.settings,
        )
        check_sampler(sampler, lr)

    def check(self, data: EnsembleData) -> None:
        self._nbeta(data)

    def record(self, module: TMS, data: EnsembleData) -> None:
        nbeta, localization = self._nbeta(data), self.localization
        if localization is None:
            localization = default_localization(nbeta)
        loss = data.train_loss(module.importance) or data.expected_loss(module.importance)
        exact = isinstance(loss, CompiledLoss | PopulationLoss | EmpiricalLoss)
        if not exact and module.global_step < max(self.steps):
            return
        W, b = module.on_cpu()
        dead = module.diverged_at.cpu() >= 0
        # A diverged member stays in the stack with zero parameters; its estimates become NaN below.
        W, b = W.masked_fill(dead[:, None, None], 0.0), b.masked_fill(dead[:, None], 0.0)
        estimate = estimate_llc(
            loss,
            W,
            b,
            nbeta=nbeta,
            localization=localization,
            seed=module.keys(f"llc {module.global_step}"),
            sampler=self.sampler,
            **self.settings,
        )
        columns = {name: getattr(estimate, name).masked_fill(dead, math.nan) for name in COLUMNS}
        reason = estimate.reason.masked_fill(dead, list(REASONS).index("draws not finite"))
        module.history.add(self.table, module.global_step, **columns, reason=reason)

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """Means over all estimates and over those with verdict ok; the share of each verdict."""
        columns = module.history.columns(self.table, records)
        codes = verdict(columns["reason"])
        trusted = columns["mean"].masked_fill(codes != VERDICTS.index("ok"), math.nan)
        means = {name: columns[name].nanmean(-1) for name in ("mean", "acceptance", "variance")}
        shares = {
            f"share_{name}": (codes == code).double().mean(-1) for code, name in enumerate(VERDICTS)
        }
        found = means | {"mean_ok": trusted.nanmean(-1)} | shares
        return {f"llc/{name}": values for name, values in found.items()}

    def _nbeta(self, data: EnsembleData) -> float:
        if self.nbeta is not None:
            return self.nbeta
        if data.n_samples is None:
            raise ValueError(
                "n_samples=null: inputs are fresh at every step, so the default nbeta of the LLC "
                "estimates, n / log n, is not defined; set callbacks.llc.nbeta, or leave llc out "
                "of callbacks"
            )
        return data.n_samples / math.log(data.n_samples)
