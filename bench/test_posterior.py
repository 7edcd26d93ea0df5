"""One posterior of 4,096 particles at n = 600: kgon's tempered SMC against blackjax's.

The same data, prior, share of effective particles, number and length of trajectories; the same
likelihood, too, by the same lookup tables (`kgon.nuts` has it in JAX), which is the fastest of those
tried: `jax.numpy.searchsorted` costs twice as much, the sum over the sample thirty times.
Every round is another replicate, so that errors are measured along with the time.
"""

import functools
import os

import pytest
import torch

from kgon import streams
from kgon.data import SingleFeature, draw
from kgon.labels import quench, quench_labels
from kgon.posterior import sample_posterior

N_SAMPLES, N_PARTICLES, N_ROUNDS = 600, 4096, 8
SETTINGS = {"ess": 0.6, "n_moves": 8, "n_leapfrog": 10, "target_acceptance": 0.85}
FOUND = {}


@functools.cache
def sample():
    return draw(SingleFeature(6), streams.member_keys(0, [0], "posterior data"), 0, N_SAMPLES)[0]


def measure(per_step, benchmark, who, posterior):
    """Time `posterior(seed)` -> (W, b, weight, log evidence), and note what it found.

    Shares and evidence are means over rounds; each `_sd` is the spread between rounds, the error of
    one posterior.
    """
    results = []

    def run():
        results.append(posterior(len(results)))

    per_step(run, what="posterior", who=who, members=N_PARTICLES, steps=1, rounds=N_ROUNDS)
    found = []
    for W, b, weight, log_evidence in results:
        k = quench_labels(quench(W, b)).k
        found.append([float((weight * (k == k_)).sum()) for k_ in (5, 6)] + [log_evidence])
    table = torch.tensor(found, dtype=torch.float64)
    FOUND[who] = table
    for name, column in zip(("p5", "p6", "log_evidence"), table.T, strict=True):
        benchmark.extra_info |= {name: float(column.mean()), f"{name}_sd": float(column.std())}


def test_kgon(per_step, benchmark):
    def posterior(seed):
        p = sample_posterior(
            sample(), n_particles=N_PARTICLES, n_replicates=1, seed=seed, **SETTINGS
        )
        equal = torch.full((N_PARTICLES,), 1 / N_PARTICLES, dtype=torch.float64)
        return p.W[:, 0], p.b[:, 0], equal, float(p.log_evidence)

    measure(per_step, benchmark, "kgon", posterior)


def test_blackjax(per_step, benchmark):
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    blackjax = pytest.importorskip("blackjax")
    import jax
    import jax.numpy as jnp
    from blackjax.smc import adaptive_tempered, resampling

    from kgon.nuts import log_likelihood

    jax.config.update("jax_enable_x64", True)
    likelihood = log_likelihood(sample())
    kernel = adaptive_tempered.build_kernel(
        lambda w: -0.5 * ((w["W"] ** 2).sum() + (w["b"] ** 2).sum()),
        lambda w: likelihood(w["W"], w["b"]),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        resampling.systematic,
        SETTINGS["ess"],
    )

    @jax.jit
    def rung(key, state, step):
        parameters = {
            "step_size": step[None],
            "inverse_mass_matrix": jnp.ones((1, 18)),
            "num_integration_steps": jnp.full((1,), SETTINGS["n_leapfrog"]),
        }
        state, info = kernel(key, state, SETTINGS["n_moves"], parameters)
        acceptance = info.update_info.acceptance_rate.mean()
        change = jnp.exp(4 * (acceptance - SETTINGS["target_acceptance"]))
        return state, info.log_likelihood_increment, step * change

    def posterior(seed):
        key, start = jax.random.split(jax.random.key(seed))
        W, b = (
            jax.random.normal(k, (N_PARTICLES, *shape))
            for k, shape in zip(jax.random.split(start), ((2, 6), (6,)), strict=True)
        )
        state = adaptive_tempered.init({"W": W, "b": b})
        step, log_evidence = jnp.asarray(0.3), 0.0
        while state.tempering_param < 1:
            key, now = jax.random.split(key)
            state, increment, step = rung(now, state, step)
            log_evidence += float(increment)
        W, b, weight = (
            torch.tensor(a.__array__())
            for a in (state.particles["W"], state.particles["b"], state.weights)
        )
        return W, b, weight, log_evidence

    measure(per_step, benchmark, f"blackjax {blackjax.__version__}", posterior)


def test_they_find_the_same():
    """Times of samplers that find different posteriors would say nothing."""
    if len(FOUND) < 2:
        pytest.skip("there is one sampler only")
    (a, z) = FOUND.values()
    stderr = ((a.var(0) + z.var(0)) / N_ROUNDS).sqrt()
    # Eight and eight replicates: 14 degrees of freedom; three numbers beyond 4 in one of 300.
    assert bool(((a.mean(0) - z.mean(0)).abs() < 4 * stderr).all()), FOUND
