"""A training step of one member: kgon, the peers, plain PyTorch, and a hand-written fused loop.

`single_feature`: the paper's protocol, 1000 samples a member, batch 20, plain SGD.
`sparse`: fresh sparse inputs at every step, Adam (AdamW in occhio), what the peers do.
"""

import functools

import numba
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kgon.data import SingleFeature, Sparse
from kgon.training.datamodule import EnsembleData
from kgon.training.init import Normal
from kgon.training.model import TMS
from kgon.training.steps import minibatch_steps

SIZES = [1, 10, 100, 1000, 10000]
BATCH = 20


def steps_for(members):
    """Enough steps to measure, few enough to wait for."""
    return max(50, min(2000, 100_000 // members))


def ensemble(distribution, members, n_samples, optimizer, n_hidden=2, dtype=torch.float64):
    numbers = range(members)
    model = TMS(
        distribution.n_features, n_hidden, numbers, 0, Normal(0.5, 0.1), optimizer, dtype=dtype
    )
    steps = steps_for(members)
    data = EnsembleData(distribution, n_samples, BATCH, 0, numbers, [steps], 500, dtype)
    return model, data, steps


def kgon_run(distribution, members, n_samples, optimizer, **about):
    model, data, steps = ensemble(distribution, members, n_samples, optimizer, **about)
    torch_optimizer = optimizer([model.W, model.b])

    def run():
        for block in data.blocks(0):
            rates = torch.full((block.n_steps,), torch_optimizer.param_groups[0]["lr"])
            minibatch_steps(model.W, model.b, torch_optimizer, rates, block, None)

    return run, steps


SGD = functools.partial(torch.optim.SGD, lr=0.005)
ADAM = functools.partial(torch.optim.Adam, lr=0.001)


@pytest.mark.parametrize("members", SIZES)
def test_single_feature_kgon(per_step, members):
    run, steps = kgon_run(SingleFeature(6), members, 1000, SGD)
    per_step(run, what="single_feature", who="kgon", members=members, steps=steps)


@pytest.mark.parametrize("members", SIZES)
def test_single_feature_stacked_einsum(per_step, members):
    model, data, steps = ensemble(SingleFeature(6), members, 1000, SGD)
    steps = min(steps, 300)
    batches = data.minibatches(0, steps)
    W, b = model.W, model.b
    optimizer = SGD([W, b])

    def run():
        for t in range(steps):
            x = batches.step(t)
            hidden = torch.einsum("smn,sbn->sbm", W, x)
            out = (torch.einsum("smn,sbm->sbn", W, hidden) + b[:, None]).relu()
            optimizer.zero_grad()
            (x - out).square().sum(-1).mean(-1).sum().backward()
            optimizer.step()

    per_step(run, what="single_feature", who="stacked einsum", members=members, steps=steps)


@pytest.mark.parametrize("members", [1, 10, 100])
def test_single_feature_dataloader_loop(per_step, members):
    model, data, _ = ensemble(SingleFeature(6), members, 1000, SGD)
    steps = 100

    def run():
        for s in range(members):
            W, b = (torch.nn.Parameter(p[s].detach().clone()) for p in (model.W, model.b))
            optimizer = SGD([W, b])
            loader = DataLoader(TensorDataset(data.x[s]), batch_size=BATCH, shuffle=True)
            for _ in range(steps * BATCH // 1000):
                for (x,) in loader:
                    optimizer.zero_grad()
                    (x - (x @ W.T @ W + b).relu()).square().sum(-1).mean().backward()
                    optimizer.step()

    who = "DataLoader loop"
    per_step(run, what="single_feature", who=who, members=members, steps=steps, rounds=2)


@numba.njit(fastmath=True)
def _fused(W, b, amplitude, feature, order, lr):
    """The limit of this machine that one writes by hand: n = 6, m = 2 and one active feature."""
    for s in range(W.shape[0]):
        w, c = W[s], b[s]
        for t in range(order.shape[1]):
            dw, dc = np.zeros((2, 6)), np.zeros(6)
            for q in range(order.shape[2]):
                r = order[s, t, q]
                a, i = amplitude[s, r], feature[s, r]
                h0, h1, g0, g1 = a * w[0, i], a * w[1, i], 0.0, 0.0
                for j in range(6):
                    out = w[0, j] * h0 + w[1, j] * h1 + c[j]
                    if out > 0:
                        g = (out - (a if j == i else 0.0)) * 0.1
                        dc[j] += g
                        dw[0, j] += g * h0
                        dw[1, j] += g * h1
                        g0 += g * w[0, j]
                        g1 += g * w[1, j]
                dw[0, i] += a * g0
                dw[1, i] += a * g1
            for j in range(6):
                c[j] -= lr * dc[j]
                w[0, j] -= lr * dw[0, j]
                w[1, j] -= lr * dw[1, j]


@pytest.mark.parametrize("members", SIZES)
def test_single_feature_hand_written(per_step, members):
    model, data, steps = ensemble(SingleFeature(6), members, 1000, SGD)
    W, b = model.W.detach().numpy(), model.b.detach().numpy()
    x = data.x.numpy()
    amplitude, feature = x.sum(-1), x.argmax(-1)
    order = data.minibatches(0, steps).order.numpy()

    def run():
        _fused(W, b, amplitude, feature, order, 0.005)

    per_step(run, what="single_feature", who="hand-written loop", members=members, steps=steps)


@pytest.mark.parametrize("members", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sparse_kgon(per_step, members, dtype):
    run, steps = kgon_run(Sparse(6, 0.9), members, None, ADAM, dtype=dtype)
    who = f"kgon {str(dtype).removeprefix('torch.')}"
    per_step(run, what="sparse", who=who, members=members, steps=steps)


@pytest.mark.parametrize("members", SIZES)
def test_sparse_tms_kit(per_step, members):
    data = pytest.importorskip("tms_kit.data")
    from tms_kit.loss import ImportanceWeightedLoss
    from tms_kit.model import Model
    from tms_kit.optimize import optimize
    from tms_kit.tms import TMS as Kit

    class Peer(Kit):
        def __init__(self):
            self.model = Model(6, members, 2)
            self.data_gen = data.IIDFeatureGenerator(6, members, torch.full((members, 6), 0.1))
            self.loss_calc = ImportanceWeightedLoss(6, torch.ones(members, 6))

    peer, steps = Peer(), max(20, min(300, 20_000 // members))

    def run():
        optimize(peer, disable_tqdm=True, batch_size=BATCH, steps=steps, log_freq=10**9)

    per_step(run, what="sparse", who="tms-kit 0.4.1", members=members, steps=steps)


@pytest.mark.parametrize("members", SIZES)
def test_sparse_occhio(per_step, members):
    pytest.importorskip("occhio")
    from occhio.autoencoder import TiedLinearRelu
    from occhio.distributions.sparse import SparseUniform
    from occhio.model_grid import Axis, ModelGrid
    from occhio.toy_model import ToyModel

    def create(params):
        return ToyModel(
            distribution=SparseUniform(
                6, p_active=0.1, generator=torch.Generator().manual_seed(int(params["seed"]))
            ),
            ae=TiedLinearRelu(6, 2),
        )

    grid = ModelGrid(create, axes=[Axis("seed", torch.arange(members))], cache_samples=False)
    steps = max(5, min(200, 5_000 // members))

    def run():
        grid.fit(n_epochs=steps, batch_size=BATCH)

    per_step(run, what="sparse", who="occhio 0.2.3", members=members, steps=steps)


@pytest.mark.parametrize("n_features", [6, 12, 25, 50, 100])
@pytest.mark.parametrize("n_hidden", [2, 5, 20])
def test_growth_with_the_model(per_step, n_features, n_hidden):
    run, steps = kgon_run(SingleFeature(n_features), 50, 1000, SGD, n_hidden=n_hidden)
    per_step(
        run, what="growth", who=f"m = {n_hidden}", members=50, steps=steps, n_features=n_features
    )
