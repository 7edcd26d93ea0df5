"""Split R-hat and effective sample size against ArviZ's, and against a known autocorrelation."""

import math

import arviz
import numpy as np
import pytest
import torch

from kgon.llc import convergence as module
from kgon.llc.convergence import convergence, diagnose


def autoregressive(phi, n_draws, n_chains, n_batch=12):
    noise = torch.randn(
        n_draws, n_chains, n_batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for t in range(1, n_draws):
        noise[t] += phi * noise[t - 1]
    return noise


def by_arviz(draws):
    data = arviz.convert_to_dataset({"x": draws.movedim(0, 1).numpy()})
    rhat = arviz.rhat(data, method="split")["x"].values
    return rhat, arviz.ess(data, method="mean")["x"].values


@pytest.mark.filterwarnings("ignore:More chains")  # as are meant
@pytest.mark.parametrize("phi", [-0.9, -0.3, 0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("n_draws", [4, 5, 6, 7, 8, 9, 10, 11, 60, 401])
@pytest.mark.parametrize("n_chains", [1, 2, 5])
def test_they_are_arvizs(phi, n_draws, n_chains):
    draws = autoregressive(phi, n_draws, n_chains)
    rhat, ess = convergence(draws)
    arviz_rhat, arviz_ess = by_arviz(draws)
    np.testing.assert_allclose(ess, arviz_ess, rtol=1e-11)
    if n_chains > 1:
        np.testing.assert_allclose(rhat, arviz_rhat, rtol=1e-11)
    else:  # which ArviZ has for two halves only when they come as two chains
        n = n_draws // 2
        halves = torch.cat([draws[:n], draws[-n:]], 1)
        unsplit = arviz.convert_to_dataset({"x": halves.movedim(0, 1).numpy()})
        if n >= 4:
            expected = arviz.rhat(unsplit, method="identity")["x"].values
            np.testing.assert_allclose(rhat, expected, rtol=1e-11)


@pytest.mark.filterwarnings("ignore:More chains")
@pytest.mark.parametrize("phi", [-0.9, 0.5, 1.0])
@pytest.mark.parametrize("n_draws", [8, 9, 60, 401])
@pytest.mark.parametrize("n_chains", [2, 5])
def test_rank_normalised_diagnostics_are_arvizs(phi, n_draws, n_chains):
    draws = autoregressive(phi, n_draws, n_chains)
    draws[1::3] = draws[0::3][: len(draws[1::3])]  # as where a move is rejected
    found = diagnose(draws)
    data = arviz.convert_to_dataset({"x": draws.movedim(0, 1).numpy()})
    np.testing.assert_allclose(found.rhat, arviz.rhat(data, method="rank")["x"], rtol=1e-9)
    np.testing.assert_allclose(found.ess_bulk, arviz.ess(data, method="bulk")["x"], rtol=1e-9)
    np.testing.assert_allclose(found.ess_mean, arviz.ess(data, method="mean")["x"], rtol=1e-9)


def test_ess_of_an_autoregression_is_known():
    phi, n_draws, n_chains = 0.8, 20_000, 4
    _, ess = convergence(autoregressive(phi, n_draws, n_chains))
    expected = n_draws * n_chains * (1 - phi) / (1 + phi)
    # Lags up to W tau are summed; the relative variance of tau is then about 2 (2 W + 1) / n with
    # some 25 lags (Sokal 1997), and the start, which is not stationary, is a few draws.
    error = math.sqrt(2 * 51 / (n_draws * n_chains))
    assert (ess / expected - 1).abs().max() < 4 * error


def test_what_is_not_finite_equal_or_too_short():
    draws = autoregressive(0.5, 40, 3)
    draws[3, 1, 0], draws[:, :, 1] = math.nan, 2.0
    draws[5, 0, 2] = math.inf
    rhat, ess = convergence(draws)
    assert ess[[0, 2]].isnan().all() and float(ess[1]) == 120
    assert rhat[[0, 1, 2]].isnan().all() and rhat[3:].isfinite().all()
    assert all(x.isnan().all() and x.shape == (12,) for x in convergence(draws[:3]))


@pytest.mark.parametrize("at_once", [1, 5, 12, 3 * 12])  # draws of half a chain of 12 quantities
def test_draws_transformed_in_parts_are_the_same(monkeypatch, at_once):
    draws = autoregressive(0.5, 40, 7)
    whole = convergence(draws)
    monkeypatch.setattr(module, "_AT_ONCE", at_once * 20)
    torch.testing.assert_close(convergence(draws), whole, rtol=1e-12, atol=0)
