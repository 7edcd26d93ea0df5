"""Chains of NUTS: the diagnostics are ArviZ's, and what chains cannot tell is unchecked."""

import math

import arviz
import pytest
import torch

from kgon.llc.convergence import diagnose
from kgon.posterior.nuts import NUTS, chain_share, judge


def chains(n_draws=400, n_chains=4, memory=0.5, seed=0):
    """Autoregressive chains (n_draws, n_chains) of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_draws, n_chains, generator=generator, dtype=torch.float64)
    for i in range(1, n_draws):
        x[i] = memory * x[i - 1] + math.sqrt(1 - memory**2) * x[i]
    return x


@pytest.mark.parametrize(
    "draws",
    [
        chains(),
        chains(n_draws=401, memory=0.95),
        # Scales differ: the folded R-hat is the larger one.
        chains() * torch.tensor([1.0, 1.0, 1.0, 3.0]),
        # No finite mean.
        chains().exp().exp(),
        # Two values only.
        (chains(memory=0.9) > 1).double(),
        (chains() + torch.tensor([0.0, 0.0, 0.0, 1.0]) > 0).double(),
    ],
)
def test_the_diagnostics_are_those_of_arviz(draws):
    found = diagnose(draws)
    rhat, ess = found.rhat, found.ess_bulk
    assert rhat == pytest.approx(float(arviz.rhat(draws.numpy().T, method="rank")), rel=1e-10)
    assert ess == pytest.approx(float(arviz.ess(draws.numpy().T, method="bulk")), rel=1e-10)


def nuts(loss):
    n_draws, n_chains = loss.shape
    found = diagnose(loss)
    rhat, ess = float(found.rhat), float(found.ess_bulk)
    W, b = torch.zeros(n_draws, n_chains, 2, 6), torch.zeros(n_draws, n_chains, 6)
    return NUTS(W, b, loss, rhat=rhat, ess=ess, divergences=0, leapfrogs=1)


def test_chains_are_judged_by_their_loss_and_by_their_phases():
    # Some 4,000 effective draws: R-hat is 1.001 by chance, far below its limit.
    mixed = nuts(chains(n_draws=1000, memory=0.0))
    k = 5 + (chains(n_draws=1000, memory=0.0, seed=1) > 0).long()
    assert judge(mixed, k) == "ok"
    # The same loss, but every chain stays in the phase of its start.
    assert judge(mixed, torch.full_like(k, 5)) == "unchecked"
    stuck = torch.full_like(k, 5)
    stuck[:, 0] = 6
    assert judge(mixed, stuck) == "unconverged"
    # Few passages: the loss has mixed, the phases have not.
    assert judge(mixed, 5 + (chains(n_draws=1000, memory=0.99, seed=1) > 0).long()) == "unconverged"
    assert judge(nuts(chains(n_draws=1000, memory=0.99)), k) == "unconverged"
    one = nuts(chains(n_draws=1000, n_chains=1, memory=0.0))
    assert judge(one, k[:, :1]) == "unchecked"
    broken = chains(n_draws=1000)
    broken[3, 1] = math.nan
    assert judge(nuts(broken), k) == "diverged"


@pytest.mark.parametrize("n_chains", [2, 4, 8])
def test_two_errors_hold_the_share_19_times_out_of_20(n_chains):
    trials = 1000
    draws = chains(n_draws=200, n_chains=n_chains * trials, memory=0.8, seed=2)
    found = [chain_share(some > 0) for some in draws.split(n_chains, 1)]
    held = sum(abs(share - 0.5) <= 2 * error for share, error in found) / trials
    # The least error of two chains makes theirs hold it more often.
    assert held > 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


def test_shares_without_an_error():
    share, error = chain_share(torch.ones(10, 4, dtype=torch.bool))
    assert share == 1 and math.isnan(error)
    share, error = chain_share(torch.arange(10)[:, None] < 3)
    assert share == pytest.approx(0.3) and math.isnan(error)
