"""One posterior of 4,096 particles at n = 600: kgon's tempered SMC against blackjax's.

The same data, prior, share of effective particles, number and length of trajectories, and the same
exact likelihood, whose cost does not depend on n. Its thresholds are looked up in two ways: by
`jax.numpy.searchsorted` in prefix sums, and by kgon's own tables (`kgon.posterior.nuts` has them in
JAX). The sum over the sample would take thirty times as long. Every round is another replicate, so
that errors are measured along with the time.
"""

import functools
import os

import pytest
import torch

from kgon import streams
from kgon.data import SingleFeature, draw
from kgon.posterior.labels import quench, quench_labels
from kgon.posterior.smc import sample_posterior

N_SAMPLES, N_PARTICLES = 600, 4096
SETTINGS = {"ess": 0.6, "n_moves": 8, "n_leapfrog": 10, "target_acceptance": 0.85}
FOUND = {}


@functools.cache
def sample():
    return draw(SingleFeature(6), streams.member_keys(0, [0], "posterior data"), 0, N_SAMPLES)[0]


def measure(per_step, benchmark, who, posterior, rounds=8):
    """Time `posterior(seed)` -> (W, b, weight, log evidence), and note what it found.

    Shares and evidence are means over rounds; each `_sd` is the spread between rounds, the error of
    one posterior.
    """
    results = []

    def run():
        results.append(posterior(len(results)))

    per_step(run, what="posterior", who=who, members=N_PARTICLES, steps=1, rounds=rounds)
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


def searched(x):
    """-n L_n(w) / 2 as one writes it in JAX: `kgon.theory.loss`, with `jax.numpy.searchsorted`."""
    import jax
    import jax.numpy as jnp

    from kgon.theory.loss import SampleMoments

    moments = SampleMoments(x)
    amplitudes = jnp.asarray(moments.sorted.numpy())
    tail = jnp.asarray(torch.stack(moments.tails, -1).numpy())
    total = jnp.asarray(torch.stack(moments.total, -1).numpy())

    def moments_of(feature, t):
        place = jnp.searchsorted(amplitudes[feature], t, side="right", method="scan_unrolled")
        return tail[feature, place]

    def value(W, b):
        A, b_i = W.T @ W, b[:, None]
        t = jax.lax.stop_gradient(-b_i / A)
        M = jax.vmap(moments_of, in_axes=(0, 1), out_axes=1)(jnp.arange(len(b)), t)
        M = jnp.where((A < 0)[..., None], total - M, M)
        u, v = A * M[..., 2] + b_i * M[..., 1], A * M[..., 1] + b_i * M[..., 0]
        return -len(x) / 2 * ((A * u + b_i * v).sum() + total[:, 2].sum() - 2 * jnp.trace(u))

    return value


@pytest.mark.parametrize(("lookup", "rounds"), [("searchsorted", 4), ("kgon's tables", 8)])
def test_blackjax(per_step, benchmark, lookup, rounds):
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    blackjax = pytest.importorskip("blackjax")
    import jax
    import jax.numpy as jnp
    from blackjax.smc import adaptive_tempered, resampling

    from kgon.posterior.nuts import log_likelihood

    jax.config.update("jax_enable_x64", True)
    likelihood = (searched if lookup == "searchsorted" else log_likelihood)(sample())
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

    who = f"blackjax {blackjax.__version__}, {lookup}"
    measure(per_step, benchmark, who, posterior, rounds)


def test_they_find_the_same():
    """Times of samplers that find different posteriors would say nothing."""
    if len(FOUND) < 2:
        pytest.skip("there is one sampler only")
    ours, *others = FOUND.values()
    for theirs in others:
        stderr = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
        # At least three degrees of freedom and three numbers each: 6 leaves one in thirty.
        assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 6 * stderr).all()), FOUND
