"""Which localization and temperature to use: a grid of both as one stack of chains.

An estimate can be used where its verdict is ok. The chosen setting is the ok one with the first
nbeta in the order given; of these, the one with the smallest localization, which lowers the
estimate least. If none is ok, the grid gives no estimate. Step sizes are adapted at each setting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.llc.estimate import LLC, estimate_llc
from kgon.llc.hmc import HMC
from kgon.llc.inputs import BUDGET, N_CHAINS, TARGET, loss_at
from kgon.llc.langevin import SamplerFactory
from kgon.llc.verdict import VERDICTS


@dataclass(frozen=True)
class Calibration:
    """Estimates over a grid of settings, and the ones to use.

    Attributes:
        localization, nbeta: the values of the grid, as given.
        estimate: fields over (n_localization, n_nbeta, *batch).
        chosen: (*batch, 2), indices into localization and nbeta; -1 where no estimate is ok.
    """

    localization: list[float]
    nbeta: list[float]
    estimate: LLC
    chosen: Tensor


def calibrate(
    loss: Callable[..., Tensor],
    *params: Tensor,
    localization: Sequence[float],
    nbeta: Sequence[float],
    seed: int | streams.Keys,
    n_chains: int = N_CHAINS,
    target: float = TARGET,
    budget: int = BUDGET,
    sampler: HMC | SamplerFactory | None = None,
) -> Calibration:
    """Estimate at every setting of the grid and choose among them.

    Args:
        loss, params, seed, n_chains, target, budget, sampler: as in `estimate_llc`; at each setting
            the chains are those of `estimate_llc` with the same seed.
        localization: strengths of the pull, increasing.
        nbeta: inverse temperatures times n, in order of preference.

    Raises:
        ValueError: a list of the grid is empty, names a value twice or is not in order, or
            `estimate_llc` raises it.
    """
    pulls, temperatures = list(map(float, localization)), list(map(float, nbeta))
    for name, values in {"localization": pulls, "nbeta": temperatures}.items():
        if not values:
            raise ValueError(f"the calibration's grid has no {name}: give at least one value")
        if len(set(values)) < len(values):
            raise ValueError(f"the calibration's grid has a {name} twice: {values}")
    if pulls != sorted(pulls):
        raise ValueError(f"the calibration's localization must increase, got {pulls}")
    batch = loss_at(loss, params).shape
    shape = len(pulls), len(temperatures)
    ones = [1] * len(batch)
    keys = streams.seed_keys(seed, batch, "llc")
    estimate = estimate_llc(
        loss,
        *(p.expand(*shape, *p.shape) for p in params),
        nbeta=torch.tensor(temperatures, dtype=torch.float64).reshape(1, -1, *ones),
        localization=torch.tensor(pulls, dtype=torch.float64).reshape(-1, 1, *ones),
        seed=np.broadcast_to(keys, (*shape, *batch)).copy(),
        n_chains=n_chains,
        target=target,
        budget=budget,
        sampler=sampler,
    )
    ok = (estimate.verdict == VERDICTS.index("ok")).reshape(*shape, -1)
    chosen = torch.full((ok.shape[-1], 2), -1)
    for at in range(len(chosen)):
        settings = ok[..., at].nonzero().tolist()
        if settings:
            chosen[at] = torch.tensor(min(settings, key=lambda setting: (setting[1], setting[0])))
    return Calibration(pulls, temperatures, estimate, chosen.reshape(*batch, 2))
