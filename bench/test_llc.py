"""A Langevin step of one chain at the 6-gon, full batch, against devinterp's own loop; and its
growth with the number of samples."""

import math

import pytest
import torch

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.data import SingleFeature, draw
from kgon.llc.estimate import estimate_llc
from kgon.theory.critical import critical_point
from kgon.theory.loss import DirectLoss, EmpiricalLoss

POINT = critical_point("6", 6)


def sample(n):
    return draw(SingleFeature(6), streams.member_keys(0, [0], "data"), 0, n)[0]


def settings(n):
    nbeta = n / math.log(n)
    return {"nbeta": nbeta, "lr": 0.02935 / nbeta, "localization": 0.1}  # lr = 5e-5 at n = 5000


@pytest.mark.parametrize("chains", [1, 100, 1000, 10000])
def test_stack(per_step, chains):
    loss, steps = EmpiricalLoss(sample(5000)), max(100, min(500, 500_000 // chains))

    def run():
        estimate_llc(
            loss, POINT.W, POINT.b, **settings(5000),
            n_chains=chains, n_draws=steps, n_burnin=0, seed=0,
        )  # fmt: skip

    per_step(run, what="llc", who="kgon", members=chains, steps=steps)


@pytest.mark.parametrize("chains", [1, 100])
def test_stack_direct(per_step, chains):
    loss, steps = DirectLoss(sample(5000)), 20

    def run():
        estimate_llc(
            loss, POINT.W, POINT.b, **settings(5000),
            n_chains=chains, n_draws=steps, n_burnin=0, seed=0,
        )  # fmt: skip

    per_step(run, what="llc", who="stacked, direct sum", members=chains, steps=steps)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"input_ids": self.x[i]}


class _Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.W = torch.nn.Parameter(POINT.W.clone())
        self.b = torch.nn.Parameter(POINT.b.clone())


def test_devinterp(per_step):
    from devinterp.optim import SGMCMC
    from devinterp.slt.sampler import sample_single_chain

    x, steps = sample(5000), 200

    def evaluate(model, batch):
        x = batch["input_ids"]
        return (x - (x @ model.W.T @ model.W + model.b).relu()).square().sum(-1).mean(), None

    def run():
        sample_single_chain(
            _Model(), _Rows(x), evaluate, {"W": None, "b": None}, num_draws=steps,
            sampling_method=SGMCMC.sgld, sampling_method_kwargs=settings(5000), batch_size=5000,
        )  # fmt: skip

    per_step(run, what="llc", who="devinterp sample_single_chain", members=1, steps=steps)


SAMPLES = [10**3, 10**4, 10**5, 10**6, 10**7]


def test_chain_step_with_the_sample(in_turns):
    steps = 300

    def run(n):
        loss = EmpiricalLoss(sample(n))
        return lambda: estimate_llc(
            loss, POINT.W, POINT.b, **settings(n),
            n_chains=1000, n_draws=steps, n_burnin=0, seed=0,
        )  # fmt: skip

    about = dict(what="samples", who="LLC chain-step", column="n_samples")
    in_turns({n: run(n) for n in SAMPLES}, **about, members=1000, steps=steps)


def test_value_and_gradient_with_the_sample(in_turns):
    # Parameters so far apart that no two look up neighbouring amplitudes: nothing is in a cache.
    noise = torch.randn(1000, 2, 6, generator=torch.Generator().manual_seed(0)).double()
    W, b = POINT.W + 0.05 * noise, POINT.b.expand(1000, -1).contiguous()

    def run(n):
        compiled = CompiledLoss(EmpiricalLoss(sample(n)), 6)

        def evaluate():
            for _ in range(100):
                compiled.value_and_grad(W, b)

        return evaluate

    about = dict(what="samples", who="value and gradient, scattered", column="n_samples")
    in_turns({n: run(n) for n in SAMPLES}, **about, members=1000, steps=100)
