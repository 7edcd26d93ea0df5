"""Local learning coefficients of the members during training."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from kgon.callbacks.recorder import Recorder
from kgon.llc.estimate import VERDICTS, check_settings, estimate_llc
from kgon.llc.hmc import HMC
from kgon.llc.langevin import SamplerFactory
from kgon.training.datamodule import EnsembleData
from kgon.training.model import TMS


class LLCEstimates(Recorder):
    """Records in the table `llc` an estimate at each member's parameters.

    The loss is that of the member's own data set, or the expected loss if inputs are fresh at every
    step. The chains of all members are one stack. Their noise depends only on seed, member and
    step, so training is the same with and without this callback, and a member's estimate is the
    same in any ensemble.

    Args:
        steps: when to estimate.
        nbeta: inverse temperature times n; None for n / log n with n the size of the data set.
        lr, localization, n_chains, n_draws, n_burnin, sampler: as in `estimate_llc`.
    """

    table = "llc"

    def __init__(
        self,
        steps: Iterable[int],
        nbeta: float | None,
        lr: float,
        localization: float,
        n_chains: int,
        n_draws: int,
        n_burnin: int,
        sampler: SamplerFactory | HMC,
    ):
        super().__init__(steps)
        check_settings(
            1.0 if nbeta is None else nbeta, lr, localization, n_chains, n_draws, n_burnin
        )
        self.nbeta = nbeta
        self.lr = lr
        self.localization = localization
        self.n_chains = n_chains
        self.n_draws = n_draws
        self.n_burnin = n_burnin
        self.sampler = sampler

    def record(self, module: TMS, data: EnsembleData) -> None:
        """Add the estimates of all members."""
        loss = data.train_loss(module.importance) or data.expected_loss(module.importance)
        W, b = module.on_cpu()
        alive = module.diverged_at.cpu() < 0
        # A diverged member stays in the stack with zero parameters; its estimates become NaN below.
        W = torch.where(alive[:, None, None], W, 0.0)
        b = torch.where(alive[:, None], b, 0.0)
        estimate = estimate_llc(
            loss,
            W,
            b,
            nbeta=self._nbeta(data),
            lr=self.lr,
            localization=self.localization,
            n_chains=self.n_chains,
            n_draws=self.n_draws,
            n_burnin=self.n_burnin,
            seed=module.keys(f"llc {module.global_step}"),
            sampler=self.sampler,
        )
        dead = ~alive
        columns = {
            name: getattr(estimate, name).masked_fill(dead, math.nan)
            for name in ("mean", "stderr", "rhat", "ess", "below", "acceptance")
        }
        verdict = estimate.verdict.masked_fill(dead, VERDICTS.index("diverged"))
        module.history.add(self.table, module.global_step, **columns, verdict=verdict)

    def metrics(self, module: TMS, records: slice) -> dict[str, Tensor]:
        """Means over all estimates and over those with verdict ok; the share of each verdict."""
        columns = module.history.columns(self.table, records)
        mean, verdict = columns["mean"], columns["verdict"]
        trusted = mean.masked_fill(verdict != VERDICTS.index("ok"), math.nan)
        shares = {
            f"llc/share_{name}": (verdict == code).double().mean(-1)
            for code, name in enumerate(VERDICTS)
        }
        return {"llc/mean": mean.nanmean(-1), "llc/mean_ok": trusted.nanmean(-1)} | shares

    def _nbeta(self, data: EnsembleData) -> float:
        if self.nbeta is not None:
            return self.nbeta
        if data.n_samples is None:
            raise ValueError(
                "callbacks.llc.nbeta must be set if n_samples=null: inputs are fresh at every "
                "step, so the default n / log n is not defined"
            )
        return data.n_samples / math.log(data.n_samples)
