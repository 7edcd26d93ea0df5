"""How often estimates lie within their stated errors: models by settings by repetitions.

PYTHONPATH=bench python -m verdicts.measure docs (make coverage) writes docs/coverage.md.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devinterp.optim import SGMCMC
from verdicts import page
from verdicts.models import MODELS, Model

from kgon.llc.estimate import LLC, estimate_llc
from kgon.llc.hmc import HMC
from kgon.llc.inputs import default_localization

REPETITIONS = 30


@dataclass(frozen=True)
class Case:
    """A model at one n. k-gons have the default localization, the others 1."""

    model: Model
    n: int

    @property
    def target(self) -> dict[str, float]:
        """nbeta and localization, which say what is estimated."""
        nbeta = self.n / math.log(self.n)
        of_k_gons = self.model.group == "k-gons"
        return {"nbeta": nbeta, "localization": default_localization(nbeta) if of_k_gons else 1.0}


@dataclass(frozen=True)
class Setting:
    """A way to estimate: arguments of `estimate_llc`, and the sample sizes that it is tried at.

    Models without a compiled loss, which are slow, are tried at the first of the sizes only.
    """

    name: str
    default: bool
    arguments: Callable[[Case], dict[str, Any]]
    sizes: tuple[int, ...] = (1000, 50_000)


def _langevin(lr: float, n_chains: int, n_draws: int, n_burnin: int, **more: Any) -> Any:
    """SGLD with lr in units of 1 / (nbeta curvature)."""
    return lambda case: {
        "lr": lr / (case.target["nbeta"] * case.model.curvature),
        "n_chains": n_chains, "n_draws": n_draws, "n_burnin": n_burnin, **more,
    }  # fmt: skip


SETTINGS = [
    Setting("defaults of estimate_llc, kgon llc", True, lambda _: {}, (1000, 50_000, 1_000_000)),
    Setting("defaults of the callback", True,
            lambda _: dict(n_chains=4, target=0.1, budget=10_000)),
    Setting("sampler=sgld, adapted, target 0.1", True,
            lambda _: dict(sampler=SGMCMC.sgld, target=0.1), (1000,)),
    Setting("SGLD, 4 chains, 400 draws", False, _langevin(0.15, 4, 400, 100)),
    Setting("SGLD, 20 chains, 500 draws", False, _langevin(0.03, 20, 500, 100)),
    Setting("SGLD, 10 chains, 8,000 draws (Table K.1)", False, _langevin(0.03, 10, 8000, 2000)),
    Setting("SGLD, steps 3 times too large", False, _langevin(0.6, 20, 4000, 1000)),
    Setting("SGLD, steps 10 times too large", False, _langevin(2.0, 20, 1000, 300)),
    Setting("RMSprop-SGLD", False, _langevin(0.001, 8, 400, 100, sampler=SGMCMC.rmsprop_sgld)),
    Setting("HMC, 2 chains, 50 draws", False,
            lambda _: dict(n_chains=2, n_draws=50, n_burnin=10)),
    Setting("HMC, trajectories of 2 steps", False,
            lambda _: dict(sampler=HMC(max_leapfrog=2), n_chains=4, n_draws=100, n_burnin=20)),
]  # fmt: skip
"""The defaults, and eight bad settings."""


def measured(settings: list[Setting], models: list[Model], repetitions: int) -> Iterator[list[Any]]:
    """The estimates of each case and setting, as rows for `page`."""
    truths: dict[Any, dict[str, float]] = {}
    for setting in settings:
        for case in _cases(setting, models):
            key = case.model.name, case.n
            if key not in truths:
                truths[key] = truth(case)
            params = [p.expand(repetitions, *p.shape) for p in case.model.params]
            found = estimate_llc(
                case.model.loss, *params, **case.target, seed=0, **setting.arguments(case)
            )
            about = {
                "model": case.model.name, "group": case.model.group, "n": case.n,
                "held_out": case.model.held_out, "setting": setting.name,
                "default": setting.default, **truths[key],
            }  # fmt: skip
            yield [about | row for row in _rows(found)]


def _cases(setting: Setting, models: list[Model]) -> list[Case]:
    return [
        Case(model, n)
        for model in models
        for n in (setting.sizes if model.group == "k-gons" else setting.sizes[:1])
    ]


def truth(case: Case) -> dict[str, float]:
    """The expectation and its error, nbeta^2 Var L, and what long chains say of the former."""
    long = estimate_llc(
        case.model.loss, *case.model.params, **case.target, seed=10**6,
        n_chains=64, n_draws=2000, n_burnin=300,
    )  # fmt: skip
    known = case.model.closed
    return {
        "truth": known(*case.target.values()) if known else float(long.mean),
        "truth_error": 0.0 if known else float(long.stderr),
        "true_variance": float(long.variance), "true_variance_error": float(long.variance_error),
        "long_mean": float(long.mean), "long_error": float(long.stderr), "closed": bool(known),
    }  # fmt: skip


def _rows(found: LLC) -> Iterator[dict[str, Any]]:
    names = ("mean", "stderr", "variance", "variance_error", "gradients")
    columns = [found.verdicts, *(getattr(found, name).tolist() for name in names)]
    for values in zip(*columns, strict=True):
        yield dict(zip(("verdict", *names), values, strict=True))


def main() -> None:
    """Measure everything, keep the rows in coverage.jsonl, and write the page."""
    rows: list[dict[str, Any]] = []
    with Path("coverage.jsonl").open("w") as file:
        for group in ("k-gons", "other"):
            models = [model for model in MODELS if model.group == group]
            for some in measured(SETTINGS, models, REPETITIONS):
                rows += some
                file.writelines(json.dumps(row) + "\n" for row in some)
                file.flush()
                print(some[0]["setting"], some[0]["model"], some[0]["n"], flush=True)
    page.write(rows, [setting.name for setting in SETTINGS], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
