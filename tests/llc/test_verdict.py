"""Errors of estimates: coverage, the bound of the step's bias, what chance explains."""

import math

import pytest
import torch
from devinterp.optim import SGMCMC
from scipy.special import chdtri

from kgon.llc.convergence import diagnose
from kgon.llc.estimate import estimate_llc
from kgon.llc.verdict import (
    ACCEPTANCE,
    REASONS,
    VERDICTS,
    Premises,
    acceptance_for,
    mean_and_error,
    step_bias,
    verdict,
)


def autoregressive(phi, shape, seed=0):
    """Stationary chains of unit variance, (n_draws, n_chains, n_points)."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for t in range(1, len(noise)):
        noise[t] = phi * noise[t - 1] + math.sqrt(1 - phi**2) * noise[t]
    return noise


@pytest.mark.parametrize("n_chains", [2, 4, 16])
@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_two_errors_hold_the_mean_nineteen_times_of_twenty(phi, n_chains):
    draws = autoregressive(phi, (200, n_chains, 400))
    mean, error = mean_and_error(draws, diagnose(draws).ess_mean)
    covered = float((mean.abs() < 2 * error).double().mean())
    # The larger of two errors covers at least what each does: no upper limit but 1.
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)
    if n_chains > 2:  # of two, Student's quantile is six times the normal one
        exact = math.sqrt((1 + phi) / (1 - phi) / (200 * n_chains))
        assert float(error.median()) < 2 * exact


def test_the_error_of_one_chain_is_not_known():
    draws = autoregressive(0.0, (100, 1, 3))
    assert mean_and_error(draws, diagnose(draws).ess_mean)[1].isnan().all()


SPECTRA = [[1.0] * 7, [1.0], [2.0] * 18, [5.0, 1.0, 1.0, 0.2, 0.0, 0.0], [1.0, 0.1, 0.01]]


@pytest.mark.parametrize("curvatures", SPECTRA, ids=str)
@pytest.mark.parametrize("lr", [0.02, 0.1, 0.2])
def test_step_bias_bounds_that_of_langevin_chains_at_a_gaussian(curvatures, lr):
    # The chain's stationary variance is 1 / (h (1 - lr h / 4)); so E[x] is too large by this:
    h = torch.tensor(curvatures).double()
    r = lr * h / 4
    bias = float((r / (1 - r)).sum() / 2)
    # Acceptance of its steps, log ratio = -(lr h^2 / 8) (w'^2 - w^2), by simulation.
    generator = torch.Generator().manual_seed(0)
    shape = (200_000, len(h))
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    w = torch.where(h > 0, w / (h * (1 - r)).clamp(min=1e-12).sqrt(), 0.0)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    moved = w * (1 - lr * h / 2) + math.sqrt(lr) * z
    moved = torch.where(h > 0, moved, 0.0)
    log_ratio = -(lr * h.square() / 8 * (moved.square() - w.square())).sum(-1)
    acceptance = log_ratio.clamp(max=0).exp().mean()
    assert acceptance > ACCEPTANCE
    # 200,000 steps know the acceptance to 1e-3, which matters where it is nearly 1.
    assert float(step_bias(acceptance[None] - 1e-3, len(h))) > bias
    assert step_bias(torch.ones(1).double(), 4) < 1e-3


def test_what_chance_explains_is_wilks_quantile():
    # A regular model: L_n(w*) - min L_n = chi^2_d / (2 n), in units of nbeta = n / log n.
    n, d = 1000, 5
    nbeta = torch.tensor([n / math.log(n)]).double()
    zero = torch.zeros(1).double()
    premises = Premises(nbeta, zero, zero, d, "none", None)
    x = torch.randn(200_000, d, generator=torch.Generator().manual_seed(0)).square().sum(-1)
    drops = x / (2 * math.log(n))
    beyond = float((drops > float(premises.chance)).double().mean())
    assert abs(beyond - 0.001) < 4 * math.sqrt(0.001 / 200_000)


@pytest.mark.parametrize("n", [10, 100, 100_000])
@pytest.mark.parametrize("localization", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("curvatures", [[1.0] * 300, [1.0], [9.0, *[1e-3] * 50],
                                        [0.5**i for i in range(60)]], ids=len)  # fmt: skip
def test_a_mean_below_zero_is_not_chance(curvatures, localization, n):
    # The density of chains at a sample's regular model is normal, and E[x] known for each sample.
    h, nbeta, n_samples = torch.tensor(curvatures).double(), n / math.log(n), 20_000
    z = torch.randn(n_samples, len(h), generator=torch.Generator().manual_seed(0)).double()
    gradient, precision = (h / n).sqrt() * z, nbeta * h + localization
    centre = -nbeta * gradient / precision
    x = nbeta * (gradient * centre + h / 2 * (centre.square() + 1 / precision)).sum(-1)
    zero = torch.zeros(1).double()
    premises = Premises(torch.tensor([nbeta]).double(), zero, zero, len(h), "none", None)
    chance = float(premises.chance_of_mean)
    beyond = float((x < -chance).double().mean())
    assert beyond < 0.001 + 4 * math.sqrt(0.001 / n_samples)
    # From n = 100 on it does not grow with the number of parameters.
    assert n == 10 or chance < chdtri(1, 0.001) / math.log(n)


SGLD = dict(sampler=SGMCMC.sgld, lr=1e-5)


@pytest.mark.parametrize(
    ("curvature", "slope", "chains", "verdicts"),
    [
        (1.0, 0.0, SGLD | dict(n_draws=100, n_burnin=0), "unconverged"),  # far from settled
        (1.0, 1.0, SGLD | dict(n_draws=100, n_burnin=0), "unconverged"),
        (1.0, 0.0, dict(budget=1000), "ok"),
        (1e-3, 1.0, SGLD | dict(n_draws=400, n_burnin=100), "escaped"),  # on their way down
        (1e-3, 1.0, dict(budget=1000), "escaped"),
    ],
)
def test_many_chains_below_w_star_have_escaped_though_no_draw_is_very_low(
    curvature, slope, chains, verdicts
):
    # One direction of 2,000 leads down.
    def loss(w):
        first, others = w[..., 0], w[..., 1:]
        return first.square() / 2 - slope * first + curvature * others.square().sum(-1) / 2

    w_star = torch.zeros(2000, dtype=torch.float64)
    found = estimate_llc(
        loss, w_star, nbeta=1400 / math.log(1400), localization=100.0, seed=0, n_chains=4, **chains
    )
    assert found.verdicts == verdicts
    assert float(found.below) == 0 and (float(found.mean) < 0) == (verdicts == "escaped")


def test_acceptance_for_a_bias_is_the_inverse_of_the_bias_of_an_acceptance():
    for size, bias in ((1, 0.02), (18, 0.4), (200, 3.0)):
        acceptance = torch.tensor([acceptance_for(bias, size)]).double()
        assert float(step_bias(acceptance, size)) == pytest.approx(bias, rel=1e-5)


def test_every_reason_has_a_verdict_and_every_verdict_a_reason():
    assert set(REASONS.values()) == set(VERDICTS)
    found = verdict(torch.arange(len(REASONS)))
    assert [VERDICTS[code] for code in found] == list(REASONS.values())
