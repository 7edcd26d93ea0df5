"""CPU time until a learning coefficient of the expected loss has a total error of 0.1, by four
samplers; a Langevin step of one chain, full batch, at the 6-gon and of a torch module, against
devinterp's own loop; and its growth with the number of samples."""

import copy
import functools
import gc
import math
import os
import time

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.data import SingleFeature, draw
from kgon.llc.estimate import estimate_llc, subkeys
from kgon.llc.hmc import HMC
from kgon.llc.inputs import default_localization
from kgon.llc.langevin import SGLD, LangevinChains
from kgon.llc.modules import estimate_module_llc
from kgon.llc.stack import Stack
from kgon.theory.critical import critical_point
from kgon.theory.loss import DirectLoss, EmpiricalLoss, PopulationLoss, population_loss

POINT = critical_point("6", 6)


def sample(n):
    return draw(SingleFeature(6), streams.member_keys(0, [0], "data"), 0, n)[0]


def exact(n):
    return CompiledLoss(EmpiricalLoss(sample(n)), 6)


def settings(n):
    nbeta = n / math.log(n)
    return {"nbeta": nbeta, "lr": 0.02935 / nbeta, "localization": 0.1}  # lr = 5e-5 at n = 5000


def langevin(loss, n, n_chains):
    """Chains at the 6-gon, whose `warm_up` makes steps."""
    return LangevinChains(
        SGLD, Stack(loss, (POINT.W, POINT.b), ()), subkeys(0, (), n_chains)[:, None],
        **{name: torch.tensor([value]).double() for name, value in settings(n).items()},
        acceptance=math.nan, thin=1,
    )  # fmt: skip


@pytest.mark.parametrize("n_chains", [1, 100, 1000, 10000])
def test_stack(per_step, n_chains):
    chains, steps = langevin(exact(5000), 5000, n_chains), max(100, min(5000, 500_000 // n_chains))
    per_step(lambda: chains.warm_up(steps), what="llc", who="kgon", members=n_chains, steps=steps)


@pytest.mark.parametrize("n_chains", [1, 100])
def test_stack_direct(per_step, n_chains):
    chains, who = langevin(DirectLoss(sample(5000)), 5000, n_chains), "stacked, direct sum"
    per_step(lambda: chains.warm_up(20), what="llc", who=who, members=n_chains, steps=20)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"input_ids": self.x[i]}


class _Model(torch.nn.Module):
    def __init__(self, point):
        super().__init__()
        self.W = torch.nn.Parameter(point.W.clone())
        self.b = torch.nn.Parameter(point.b.clone())


def devinterp_chain(module, x, loss, steps, settings):
    """One chain of devinterp's own loop from a module on batches that are the whole of x.

    The loop collects garbage before and after its steps, which takes as long as hundreds of them in
    a process as large as this one; freezing what there is leaves it nothing to look through.
    """
    from devinterp.slt.sampler import sample_single_chain

    gc.freeze()
    sample_single_chain(
        copy.deepcopy(module), _Rows(x), lambda m, batch: (loss(m, batch["input_ids"]), None),
        {name: None for name, _ in module.named_parameters()}, num_draws=steps,
        sampling_method=SGLD, sampling_method_kwargs=settings, batch_size=len(x),
    )  # fmt: skip
    gc.unfreeze()


def test_devinterp(per_step):
    def loss(model, x):
        return (x - (x @ model.W.T @ model.W + model.b).relu()).square().sum(-1).mean()

    x, steps = sample(5000), 1000
    per_step(
        lambda: devinterp_chain(_Model(POINT), x, loss, steps, settings(5000)),
        what="llc", who="devinterp sample_single_chain", members=1, steps=steps, rounds=2,
    )  # fmt: skip


CHAINS_OF_A_MODULE = dict(lr=1e-5, localization=100.0, nbeta=1400 / math.log(1400))


def module_and_data():
    """A network of 2,410 parameters and as many samples as `examples/digits.py` trains on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1400, 64, generator=generator)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    return net, (x, torch.randint(10, (1400,), generator=generator))


def module_loss(module, batch):
    return torch.nn.functional.cross_entropy(module(batch[0]), batch[1])


@pytest.mark.parametrize("n_chains", [1, 4, 16])
def test_module(per_step, n_chains):
    module, batch = module_and_data()
    steps = 500
    per_step(
        lambda: estimate_module_llc(
            module, batch, module_loss, seed=0, sampler=SGLD, n_chains=n_chains, n_draws=steps,
            n_burnin=0, **CHAINS_OF_A_MODULE,
        ),
        what="module", who="kgon", members=n_chains, steps=steps, rounds=2,
    )  # fmt: skip


def test_module_devinterp(per_step):
    module, batch = module_and_data()
    rows = torch.cat([batch[0], batch[1][:, None]], 1)[None]  # one item: the whole sample

    def loss(module, rows):
        return module_loss(module, (rows[0, :, :-1], rows[0, :, -1].long()))

    steps = 500
    per_step(
        lambda: devinterp_chain(module, rows, loss, steps, CHAINS_OF_A_MODULE),
        what="module", who="devinterp", members=1, steps=steps, rounds=2,
    )  # fmt: skip


ERROR = 0.1
TARGETS = [(label, 6, n) for n in (5_000, 50_000) for label in ("5", "5+", "6")]
TARGETS += [("8", 8, 50_000)]
SAMPLERS = {"kgon HMC": HMC(), "kgon SGLD": SGLD}
at_each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t[0]}, n = {t[2]}")


def localized(n):
    nbeta = n / math.log(n)
    return {"nbeta": nbeta, "localization": default_localization(nbeta)}


def at(where, **chains):
    label, n_features, n = where
    point = critical_point(label, n_features)
    found = estimate_llc(PopulationLoss(), point.W, point.b, **localized(n), **chains)
    assert found.reasons in ("", "error above target"), found.reasons
    return found


@functools.cache
def reference(target):
    """One long run of HMC: the value and its error."""
    long = at(target, n_chains=64, n_draws=10_000, n_burnin=2000, seed=1)
    return float(long.mean), float(long.stderr)


def until_the_error(target, who):
    relative = ERROR / reference(target)[0]
    return at(target, sampler=SAMPLERS[who], target=relative, budget=10**6, seed=0)


def about(target, who, **found):
    names = dict(zip(("point", "n_features", "n_samples"), target, strict=True))
    return dict(what="error", who=who, members=1, reference=reference(target), **names, **found)


@at_each_target
@pytest.mark.parametrize("who", SAMPLERS)
def test_until_the_error(per_step, target, who):
    found = until_the_error(target, who)
    value = dict(value=float(found.mean), error=float(found.stderr))
    per_step(lambda: until_the_error(target, who), steps=1, rounds=2, **about(target, who, **value))


@at_each_target
def test_until_the_error_devinterp(per_step, target):
    """As many steps as kgon's SGLD took, at its lr: some are measured, the time is proportional."""
    label, n_features, n = target
    found, steps = until_the_error(target, "kgon SGLD"), 1000
    point, no_data = critical_point(label, n_features), torch.zeros(1, n_features)

    def run():
        devinterp_chain(
            _Model(point), no_data, lambda model, _: population_loss(model.W, model.b), steps,
            dict(localized(n), lr=float(found.step)),
        )  # fmt: skip

    needed = int(found.gradients) * len(found.per_chain)
    per_step(run, steps=steps, rounds=2, **about(target, "devinterp SGLD", needed=needed))


@at_each_target
def test_until_the_error_nuts(benchmark, target):
    """Four chains; their draws are scaled to as many as an error of 0.1 takes."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    numpyro = pytest.importorskip("numpyro")
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    label, n_features, n = target
    point, n_chains = critical_point(label, n_features), 4
    nbeta, pull = localized(n).values()
    centre = {"W": jnp.asarray(point.W.numpy()), "b": jnp.asarray(point.b.numpy())}

    def loss(w):  # Lemma 3.1, as `kgon.theory.loss` has it
        A, b = w["W"].T @ w["W"], w["b"][:, None]
        t = jnp.clip(-b / jnp.where(jnp.abs(A) < 1e-150, 1e-150, A), 0, 1)
        t = jax.lax.stop_gradient(t)  # the integrand vanishes at the threshold
        M0, M1, M2 = (jnp.where(A < 0, t**k, 1 - t**k) / (k * n_features) for k in (1, 2, 3))
        u, v = A * M2 + b * M1, A * M1 + b * M0
        return (A * u + b * v).sum() + 1 / 3 - 2 * jnp.trace(u)

    def distance(w):
        return sum(jnp.square(w[name] - centre[name]).sum() for name in centre)

    assert math.isclose(float(loss(centre)), point.loss, rel_tol=1e-9)
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(potential_fn=lambda w: nbeta * loss(w) + pull / 2 * distance(w)),
        num_warmup=500, num_samples=1000, num_chains=n_chains, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    start = {name: jnp.broadcast_to(c, (n_chains, *c.shape)) for name, c in centre.items()}
    seconds, draws = [], []  # of each round, the first of which compiles
    for turn in range(3):
        mcmc.post_warmup_state = None
        marks = [time.process_time()]
        for phase in (mcmc.warmup, mcmc.run):
            phase(jax.random.key(turn), init_params=start)
            jax.block_until_ready(mcmc.last_state)
            marks.append(time.process_time())
        seconds.append(np.diff(marks))
        draws.append(jax.vmap(jax.vmap(loss))(mcmc.get_samples(group_by_chain=True)))
    warm_up, drawing = np.min(seconds, 0)
    x = nbeta * (np.concatenate(draws) - point.loss)
    error = float(x.std() / math.sqrt(numpyro.diagnostics.effective_sample_size(x)))
    enough = len(draws) * (error / ERROR) ** 2  # rounds
    benchmark.extra_info.update(
        **about(target, "numpyro NUTS", value=float(x.mean()), error=error),
        compiling=float(sum(seconds[0]) - warm_up - drawing),
        column="n_samples", seconds={n: float(warm_up + enough * drawing)}, steps=1,
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)


SAMPLES = [10**3, 10**4, 10**5, 10**6, 10**7]


def test_chain_step_with_the_sample(in_turns):
    steps = 300

    def run(n):
        chains = langevin(exact(n), n, 1000)
        return lambda: chains.warm_up(steps)

    about = dict(what="samples", who="LLC chain-step", column="n_samples")
    in_turns({n: run(n) for n in SAMPLES}, **about, members=1000, steps=steps)


def test_value_and_gradient_with_the_sample(in_turns):
    # Parameters so far apart that no two look up neighbouring amplitudes: nothing is in a cache.
    noise = torch.randn(1000, 2, 6, generator=torch.Generator().manual_seed(0)).double()
    W, b = POINT.W + 0.05 * noise, POINT.b.expand(1000, -1).contiguous()

    def run(n):
        compiled = exact(n)

        def evaluate():
            for _ in range(100):
                compiled.value_and_grad(W, b)

        return evaluate

    about = dict(what="samples", who="value and gradient, scattered", column="n_samples")
    in_turns({n: run(n) for n in SAMPLES}, **about, members=1000, steps=100)
