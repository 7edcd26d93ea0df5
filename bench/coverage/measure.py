"""How often an estimate lies within its stated errors: models by settings by repetitions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devinterp.optim import SGMCMC
from models import Model

from kgon.llc.estimate import estimate_llc
from kgon.llc.hmc import HMC
from kgon.llc.inputs import default_localization
from kgon.llc.verdict import VERDICTS


@dataclass(frozen=True)
class Case:
    """A model at one n, with the localization that settings use there."""

    model: Model
    n: int
    localization: float

    @property
    def nbeta(self) -> float:
        return self.n / math.log(self.n)


@dataclass(frozen=True)
class Setting:
    """A way to estimate: arguments of `estimate_llc` for a case, and whether it is a default."""

    name: str
    default: bool
    arguments: Callable[[Case], dict[str, Any]]


def _langevin(lr: float, n_chains: int, n_draws: int, n_burnin: int, **more: Any):
    """SGLD with lr in units of 1 / (nbeta curvature)."""
    return lambda case: dict(
        lr=lr / (case.nbeta * case.model.curvature), n_chains=n_chains, n_draws=n_draws,
        n_burnin=n_burnin, **more,
    )  # fmt: skip


SETTINGS = [
    Setting("defaults of estimate_llc and kgon llc", True, lambda case: {}),
    Setting("defaults of the callback", True,
            lambda case: dict(n_chains=4, target=0.1, budget=10_000)),
    Setting("sampler=sgld, adapted", True, lambda case: dict(sampler=SGMCMC.sgld, target=0.1)),
    Setting("SGLD, 4 chains, 400 draws", False, _langevin(0.15, 4, 400, 100)),
    Setting("SGLD, 20 chains, 500 draws", False, _langevin(0.03, 20, 500, 100)),
    Setting("SGLD, 20 chains, 8,000 draws (Table K.1)", False, _langevin(0.03, 20, 8000, 2000)),
    Setting("SGLD, steps three times too large", False, _langevin(0.6, 20, 4000, 1000)),
    Setting("SGLD, steps ten times too large", False, _langevin(2.0, 20, 1000, 300)),
    Setting("RMSprop-SGLD", False,
            _langevin(0.001, 20, 1000, 300, sampler=SGMCMC.rmsprop_sgld)),
    Setting("HMC, 2 chains, 50 draws", False,
            lambda case: dict(n_chains=2, n_draws=50, n_burnin=10)),
    Setting("HMC, trajectories of 2 steps", False,
            lambda case: dict(sampler=HMC(max_leapfrog=2), n_chains=4, n_draws=100, n_burnin=20)),
]  # fmt: skip


def cases(models: list[Model], sizes: tuple[int, ...]) -> list[Case]:
    """k-gons with the default localization of `kgon llc`, others with 1."""
    found = []
    for model in models:
        for n in sizes:
            of_k_gons = default_localization(n / math.log(n))
            found.append(Case(model, n, of_k_gons if model.group == "k-gons" else 1.0))
    return found


def estimates(
    case: Case, setting: Setting, repetitions: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Independent estimates of one case, as rows."""
    params = [p.expand(repetitions, *p.shape) for p in case.model.params]
    found = estimate_llc(
        case.model.loss, *params, nbeta=case.nbeta, localization=case.localization, seed=seed,
        **setting.arguments(case),
    )  # fmt: skip
    truth, truth_error = case.model.truth(case.nbeta, case.localization)
    return [
        dict(model=case.model.name, group=case.model.group, held_out=case.model.held_out, n=case.n,
             setting=setting.name, default=setting.default, truth=truth, truth_error=truth_error,
             mean=float(found.mean[i]), error=float(found.stderr[i]),
             verdict=VERDICTS[int(found.verdict[i])], reason=found.reasons[i],
             variance=float(found.variance[i]), variance_error=float(found.variance_error[i]),
             gradients=float(found.gradients[i]))
        for i in range(repetitions)
    ]  # fmt: skip
