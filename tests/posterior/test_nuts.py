"""The paper's protocol: its likelihood, and the failure that the package documents."""

import os

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.data import SingleFeature, Sparse, draw
from kgon.posterior import nuts
from kgon.posterior.labels import output_labels
from kgon.posterior.smc import sample_posterior
from kgon.theory.critical import critical_point
from kgon.theory.loss import DirectLoss, EmpiricalLoss

pytestmark = pytest.mark.slow

if not os.environ.get("KGON_REQUIRE_ALL"):
    pytest.importorskip("numpyro", reason="needs kgon[nuts]")


def sample(n_samples):
    return draw(SingleFeature(6), streams.member_keys(0, [0], "data"), 0, n_samples)[0]


@pytest.mark.parametrize("data", [SingleFeature(6), Sparse(6, 0.5)])
def test_its_likelihood_and_gradient_are_torchs(data):
    import jax

    x = draw(data, streams.member_keys(0, [0], "data"), 0, 200)[0]
    generator = torch.Generator().manual_seed(0)
    strength = len(x) / (2 * 0.7**2)
    loss = DirectLoss(x)
    with jax.enable_x64(True):
        likelihood = jax.value_and_grad(nuts.log_likelihood(x, noise_std=0.7), argnums=(0, 1))
        for i in range(8):
            W = torch.randn(2, 6, generator=generator, dtype=torch.float64)
            b = torch.randn(6, generator=generator, dtype=torch.float64)
            # Columns without length never turn an output on, unless by a bias above 0.
            W[:, :i] = 0.0
            value, gradient = likelihood(*(jax.numpy.asarray(p.numpy()) for p in (W, b)))
            expected, *slopes = loss.value_and_grad(W, b)
            assert float(value) == pytest.approx(-strength * float(expected), rel=1e-12)
            for got, slope in zip(gradient, slopes, strict=True):
                torch.testing.assert_close(
                    torch.from_numpy(np.array(got)), -strength * slope, rtol=1e-10, atol=1e-9
                )


def test_shapes_and_losses():
    x = sample(50)
    chains = nuts.sample_nuts(x, n_chains=2, n_warmup=20, n_draws=10)
    assert chains.W.shape == (10, 2, 2, 6) and chains.b.shape == (10, 2, 6)
    torch.testing.assert_close(chains.loss, EmpiricalLoss(x)(chains.W, chains.b))


def test_far_beyond_the_transition_occupancy_is_that_of_the_starts():
    # In this sample a feature is weak, and leaving it out costs less than a 6-gon does: by some
    # 0.004 of loss, times n / (2 noise_std^2) = 15,000. The posterior is on a 5-gon.
    x = sample(300)
    noise_std = 0.1
    p = critical_point("6", 6)
    chains = nuts.sample_nuts(
        x, noise_std=noise_std, start=(p.W, p.b), n_chains=2, n_warmup=100, n_draws=100
    )
    assert bool((output_labels(chains.W, chains.b).k == 6).all())
    posterior = sample_posterior(x, noise_std=noise_std, n_particles=512)
    k = output_labels(posterior.W, posterior.b).k
    assert float(posterior.mean(k == 5)[0]) > 0.99
    # The evidence of it: what the chains never met has a lower loss than anything that they did.
    assert float(posterior.loss.max()) < float(chains.loss.min())


def test_bad_input():
    x = sample(20)
    with pytest.raises(ValueError, match="noise_std must be positive"):
        nuts.sample_nuts(x, noise_std=0.0)
    with pytest.raises(ValueError, match="start must be"):
        nuts.sample_nuts(x, start=(torch.zeros(2, 5), torch.zeros(5)))
