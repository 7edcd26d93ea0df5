"""The compiled loss on given inputs against the definition in torch."""

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.compiled.direct_loss import CompiledDirectLoss
from kgon.data import Sparse, draw
from kgon.theory.loss import DirectLoss

N_SETS, N_SAMPLES = 3, 300  # more than two blocks of inputs, the last of them not full


def data(sparsity, n=5):
    keys = streams.member_keys(0, range(N_SETS), "data")
    return draw(Sparse(n, sparsity), keys, 0, N_SAMPLES)


def params(*batch, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = (*batch, 2, n), (*batch, n)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def close(compiled, direct, W, b):
    """Sums of N_SAMPLES terms in another order: a rounding for each term at the very most."""
    tolerance = N_SAMPLES * np.finfo(float).eps
    for found, expected in zip(
        compiled.value_and_grad(W, b), direct.value_and_grad(W, b), strict=True
    ):
        scale = expected[expected.isfinite()].abs().max()
        torch.testing.assert_close(
            found, expected, rtol=0, atol=float(tolerance * scale), equal_nan=True
        )


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.999999])
@pytest.mark.parametrize("importance", [None, torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])])
def test_it_is_the_direct_loss(sparsity, importance):
    x = data(sparsity)
    direct = DirectLoss(x, importance)
    W, b = params(4, N_SETS)
    close(CompiledDirectLoss(direct), direct, W, b)
    # Hidden layers that are off, and outputs exactly at the kink.
    close(CompiledDirectLoss(direct), direct, torch.zeros_like(W), torch.zeros_like(b))


def test_data_and_importance_may_be_shared_or_each_members_own():
    W, b = params(4, N_SETS)
    importance = torch.rand(N_SETS, 5, generator=torch.Generator().manual_seed(2)).double()
    for x in (data(0.9), data(0.9)[:1], data(0.9)[0]):
        for weight in (None, importance, importance[0]):
            direct = DirectLoss(x, weight)
            close(CompiledDirectLoss(direct), direct, W, b)


def test_a_diverged_member_is_nan_and_costs_no_other_its_loss():
    direct = DirectLoss(data(0.9))
    W, b = params(N_SETS)
    W[1], b[1, 0] = torch.nan, torch.nan
    value, dW, _ = CompiledDirectLoss(direct).value_and_grad(W, b)
    assert value.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(value, direct(W, b), equal_nan=True)
    assert dW[[0, 2]].isfinite().all()


def test_a_member_is_the_same_alone_and_in_company():
    x = data(0.9)
    W, b = params(4, N_SETS)
    together = CompiledDirectLoss(DirectLoss(x))(W, b)
    alone = CompiledDirectLoss(DirectLoss(x[1:2]))(W[:, 1:2], b[:, 1:2])
    assert torch.equal(together[:, 1:2], alone)
    # With company whose data have more rows.
    mixed = torch.cat([data(0.0)[:1], x[1:2]])
    assert torch.equal(CompiledDirectLoss(DirectLoss(mixed))(W[:, :2], b[:, :2])[:, 1:],
                       CompiledDirectLoss(DirectLoss(x[1:2]))(W[:, 1:2], b[:, 1:2]))  # fmt: skip


def test_the_same_parameters_give_the_same_bits_at_any_address():
    loss = CompiledDirectLoss(DirectLoss(data(0.5)))
    W, b = params(N_SETS)
    first = loss(W, b)
    kept = []
    for _ in range(
        3000
    ):  # in compiled code whose sums depended on addresses, one of 2,000 differed
        kept.append(torch.empty(8 * len(kept) % 4096 + 1))
        assert torch.equal(loss(W, b), first)


def test_parameters_of_another_shape_are_refused():
    loss = CompiledDirectLoss(DirectLoss(data(0.9)))
    with pytest.raises(ValueError, match="batch axes"):
        loss(*params(N_SETS + 1))
