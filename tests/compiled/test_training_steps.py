"""The compiled kernels against their definition: the direct loss and torch's own optimizers."""

import copy

import pytest
import torch
from torch import nn

from kgon import streams
from kgon.compiled import training_steps
from kgon.data import Minibatches, SingleFeature, Sparse, draw
from kgon.theory.loss import DirectLoss

OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.01),
    lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95)),
    lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
]


def problem(distribution, n_hidden, n_members=5, n_steps=60, dtype=torch.float64, batch_size=4):
    generator = torch.Generator().manual_seed(0)
    n = distribution.n_features
    W = nn.Parameter(torch.randn(n_members, n_hidden, n, generator=generator).to(dtype))
    b = nn.Parameter(torch.randn(n_members, n, generator=generator).to(dtype) / 2)
    x = draw(distribution, streams.member_keys(0, range(n_members), "data"), 0, 50).to(dtype)
    shape = (n_members, n_steps, batch_size)
    order = torch.randint(50, shape, generator=generator, dtype=torch.int32)
    return W, b, Minibatches(x, order)


def reference(W, b, optimizer, rates, batches, importance):
    for t, rate in enumerate(rates.tolist()):
        loss = DirectLoss(batches.step(t), importance)(W, b).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("importance", [None, torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])])
@pytest.mark.parametrize("distribution", [SingleFeature(5), Sparse(5, 0.3)])
@pytest.mark.parametrize("n_hidden", [2, 20])
def test_a_block_of_steps_equals_torchs_own_steps(make, importance, distribution, n_hidden):
    W, b, batches = problem(distribution, n_hidden)
    W = nn.Parameter(W.detach() / n_hidden**0.5)  # else large ones diverge
    W_ref, b_ref = copy.deepcopy(W), copy.deepcopy(b)
    optimizer, optimizer_ref = make([W, b]), make([W_ref, b_ref])
    rates = torch.tensor([0.02 - 0.0002 * t for t in range(60)]).double()
    assert training_steps.has_kernel(optimizer)
    # In two blocks: the optimizer's state has to carry over.
    first, second = (
        Minibatches(batches.x, batches.order[:, cut].contiguous())
        for cut in (slice(0, 25), slice(25, 60))
    )
    training_steps.advance(W, b, optimizer, rates[:25], first, importance)
    training_steps.advance(W, b, optimizer, rates[25:], second, importance)
    reference(W_ref, b_ref, optimizer_ref, rates, batches, importance)
    # 60 steps of a contraction multiply a rounding of 1e-16 by far less than 1e4.
    torch.testing.assert_close(W, W_ref, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(b, b_ref, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 7, 50])
@pytest.mark.parametrize("distribution", [SingleFeature(5), Sparse(5, 0.3), Sparse(20, 0.9)])
def test_a_minibatch_may_have_any_size(distribution, batch_size):
    """Inputs are taken a few at a time, and features from a list where there are many."""
    W, b, batches = problem(distribution, 2, batch_size=batch_size)
    W_ref, b_ref = copy.deepcopy(W), copy.deepcopy(b)
    rates = torch.full((60,), 0.01).double()
    training_steps.advance(W, b, OPTIMIZERS[0]([W, b]), rates, batches, None)
    reference(W_ref, b_ref, OPTIMIZERS[0]([W_ref, b_ref]), rates, batches, None)
    torch.testing.assert_close(W, W_ref, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(b, b_ref, rtol=1e-11, atol=1e-12)


def test_torch_can_go_on_from_the_kernels_state_and_back():
    W, b, batches = problem(SingleFeature(5), n_hidden=3)
    W_ref, b_ref = copy.deepcopy(W), copy.deepcopy(b)
    optimizer, optimizer_ref = (torch.optim.Adam(p, lr=0.01) for p in ([W, b], [W_ref, b_ref]))
    half = Minibatches(batches.x, batches.order[:, :30].contiguous())
    rest = Minibatches(batches.x, batches.order[:, 30:].contiguous())
    training_steps.advance(W, b, optimizer, torch.full((30,), 0.01), half, None)
    reference(W, b, optimizer, torch.full((30,), 0.01), rest, None)
    reference(W_ref, b_ref, optimizer_ref, torch.full((60,), 0.01), batches, None)
    torch.testing.assert_close(W, W_ref, rtol=1e-11, atol=1e-12)
    saved = {k: float(v["step"]) for k, v in optimizer.state_dict()["state"].items()}
    assert saved == {0: 60.0, 1: 60.0}


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_member_is_bitwise_the_same_alone_and_in_company(make):
    W, b, batches = problem(SingleFeature(5), n_hidden=2)
    W_alone, b_alone = (nn.Parameter(p[3:4].detach().clone()) for p in (W, b))
    training_steps.advance(W, b, make([W, b]), torch.full((60,), 0.01), batches, None)
    own = Minibatches(batches.x[3:4], batches.order[3:4])
    training_steps.advance(
        W_alone, b_alone, make([W_alone, b_alone]), torch.full((60,), 0.01), own, None
    )
    assert torch.equal(W[3:4], W_alone) and torch.equal(b[3:4], b_alone)


def test_a_diverged_member_turns_nan_and_leaves_the_others_alone():
    W, b, batches = problem(SingleFeature(5), n_hidden=2)
    W_ref, b_ref = copy.deepcopy(W), copy.deepcopy(b)
    with torch.no_grad():
        W[2] *= 1e3
    training_steps.advance(W, b, OPTIMIZERS[0]([W, b]), torch.full((60,), 0.01), batches, None)
    training_steps.advance(
        W_ref, b_ref, OPTIMIZERS[0]([W_ref, b_ref]), torch.full((60,), 0.01), batches, None
    )
    assert not W[2].isfinite().all()
    others = [0, 1, 3, 4]
    assert torch.equal(W[others], W_ref[others]) and torch.equal(b[others], b_ref[others])


def test_float32_stays_within_its_rounding_of_float64():
    W, b, batches = problem(SingleFeature(5), n_hidden=2)
    W32, b32, batches32 = problem(SingleFeature(5), n_hidden=2, dtype=torch.float32)
    training_steps.advance(W, b, OPTIMIZERS[0]([W, b]), torch.full((60,), 0.01), batches, None)
    training_steps.advance(
        W32, b32, OPTIMIZERS[0]([W32, b32]), torch.full((60,), 0.01), batches32, None
    )
    # 60 updates, each rounded to 6e-8 of parameters of size 1, and as much again from gradients.
    error = (W - W32).detach().abs().max()
    assert error < 60 * 2 * 6e-8 * W.detach().abs().max()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_other_optimizers_have_no_kernel(make):
    assert not training_steps.has_kernel(make([nn.Parameter(torch.zeros(2))]))
