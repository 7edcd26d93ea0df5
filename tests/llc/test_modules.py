"""Learning coefficients of torch modules."""

import copy
import math

import pytest
import torch
from devinterp.optim import SGMCMC
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from kgon.llc.estimate import estimate_llc
from kgon.llc.modules import LossOfParameters, estimate_module_llc, one_batch

SETTINGS = dict(nbeta=50.0, localization=20.0, n_chains=3, n_draws=6, n_burnin=2, seed=0)


def squares(module, batch):
    x, y = batch
    return (module(x) - y).square().mean()


def classes(module, batch):
    x, y = batch
    return cross_entropy(module(x), y)


def regression(n=40, d=3):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g).double()
    return x, (x @ torch.linspace(-1, 1, d).double())[:, None]


def network(n_in=3, n_out=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, 4), nn.Tanh(), nn.Linear(4, n_out)).double()


def test_a_linear_model_has_its_closed_form():
    # L = (w - w*)' S (w - w*) with S the second moments of (x, 1); nbeta E L is
    # nbeta sum s_i / (2 nbeta s_i + localization) over the eigenvalues s_i of S.
    x, _ = regression()
    module = nn.Linear(3, 1).double()
    y = module(x).detach()
    nbeta, localization = 30.0, 10.0
    found = estimate_module_llc(
        module, (x, y), squares, nbeta=nbeta, localization=localization, seed=0, target=0.05,
        n_chains=8, observables={"w": lambda module, batch: module.weight[0]},
    )  # fmt: skip
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    s = torch.linalg.eigvalsh(inputs.mT @ inputs / len(x))
    expected = float((nbeta * s / (2 * nbeta * s + localization)).sum())
    assert found.verdicts == "ok"
    assert abs(float(found.mean) - expected) < 4 * float(found.stderr)
    precision = 2 * nbeta * inputs.mT @ inputs / len(x) + localization * torch.eye(4)
    w = found.observables["w"]
    assert bool(((w.mean - module.weight[0].detach()).abs() < 4 * w.stderr).all())
    difference = w.variance - torch.linalg.inv(precision).diagonal()[:3]
    assert bool((difference.abs() < 4 * w.variance_error).all())


def test_defaults_are_n_over_log_n_and_its_localization():
    x, y = regression()
    module = network()
    found = estimate_module_llc(
        module, {"x": x, "y": y}, lambda m, b: squares(m, (b["x"], b["y"])),
        seed=0, n_chains=2, n_draws=4, n_burnin=0,
    )  # fmt: skip
    nbeta = 40 / math.log(40)
    same = estimate_module_llc(
        module, (x, y), squares, nbeta=nbeta, localization=0.6 * math.sqrt(nbeta), seed=0,
        n_chains=2, n_draws=4, n_burnin=0,
    )  # fmt: skip
    assert torch.equal(found.trace, same.trace)


@pytest.mark.parametrize("sampler", [None, SGMCMC.sgld])
@pytest.mark.parametrize("chains_at_once", [1, 2, 3])
def test_chains_at_once_change_nothing_but_memory(chains_at_once, sampler):
    module, batch = network(), regression()
    options = SETTINGS | ({"sampler": sampler, "lr": 1e-4} if sampler else {})
    together = estimate_module_llc(module, batch, squares, **options)
    found = estimate_module_llc(module, batch, squares, **options, chains_at_once=chains_at_once)
    torch.testing.assert_close(found.trace, together.trace, rtol=1e-9, atol=1e-12)


def test_it_is_the_estimate_of_the_functional_loss():
    module, batch = network(), regression()

    def loss(w):
        return (torch.func.functional_call(module, w, (batch[0],)) - batch[1]).square().mean()

    w = {name: p.detach() for name, p in module.named_parameters()}
    expected = estimate_llc(torch.vmap(loss), w, **SETTINGS)
    found = estimate_module_llc(module, batch, squares, **SETTINGS)
    torch.testing.assert_close(found.trace, expected.trace, rtol=1e-9, atol=1e-12)


def test_chosen_parameters_move_and_others_do_not():
    module, batch = network(), regression()
    watched = {name: (lambda m, b, i=i: list(m.parameters())[i]) for i, name in enumerate("abcd")}
    found = estimate_module_llc(
        module, batch, squares, **SETTINGS, parameters=["2.*"], observables=watched
    )
    moved = [bool((found.observables[name].variance > 0).all()) for name in "abcd"]
    assert moved == [False, False, True, True]
    frozen = copy.deepcopy(module)
    frozen[0].requires_grad_(False)
    same = estimate_module_llc(frozen, batch, squares, **SETTINGS)
    assert torch.equal(found.trace, same.trace)


def test_tied_weights_move_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3, False), nn.Linear(3, 3, False)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(self.inner(x))

    module, (x, _) = Tied().double(), regression()
    loss = LossOfParameters(module, x, lambda m, x: (m(x) - x).square().mean())
    assert loss.names == ["inner.weight"]
    w = torch.randn(2, 3, 3).double()
    expected = torch.stack([(x @ m.T @ m.T - x).square().mean() for m in w])
    torch.testing.assert_close(loss(w), expected)


def test_the_module_is_left_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.norm = network(), nn.BatchNorm1d(3).double()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.net(self.norm(x))

    module = Counting().eval()
    before = copy.deepcopy(module.state_dict())
    generator = torch.get_rng_state()
    estimate_module_llc(module, regression(), squares, **SETTINGS)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(generator, torch.get_rng_state())


def test_a_loader_is_one_sample_in_the_order_of_its_dataset():
    x, y = regression()
    generator = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, drop_last=True)
    for one in (one_batch(loader), one_batch(loader.dataset)):
        assert torch.equal(one[0], x) and torch.equal(one[1], y)
    assert torch.equal(generator, torch.get_rng_state())


def test_a_module_that_vmap_cannot_map_runs_one_chain_at_a_time():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            out = self.net(x)
            return out if out.sum().item() > -1e9 else -out

    with pytest.raises(ValueError, match=r"chains_at_once=2: torch.vmap cannot .*; leave it out"):
        estimate_module_llc(Branching(), regression(), squares, **SETTINGS, chains_at_once=2)
    found = estimate_module_llc(Branching(), regression(), squares, **SETTINGS)
    expected = estimate_module_llc(network(), regression(), squares, **SETTINGS)
    torch.testing.assert_close(found.trace, expected.trace, rtol=1e-9, atol=1e-12)


def test_recurrent_modules_whose_gradients_alone_vmap_can_map_do_too():
    x = torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    batch, module = (x, x.cumsum(1)), nn.GRU(3, 3, batch_first=True).double()

    def loss(module, batch):
        return (module(batch[0])[0] - batch[1]).square().mean()

    found, one_by_one = (
        estimate_module_llc(module, batch, loss, **SETTINGS, chains_at_once=k) for k in (None, 1)
    )
    assert found.trace.isfinite().all() and torch.equal(found.trace, one_by_one.trace)


def noisy_regression(n=64, d=2):
    """A linear model at the least squares of noisy data, whose gradients at a batch are not 0."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=g).double()
    y = x.sum(1) + 0.5 * torch.randn(n, generator=g).double()
    module = nn.Linear(d, 1, bias=False).double()
    module.weight.data = torch.linalg.lstsq(x, y[:, None]).solution.mT.clone()
    return module, (x, y[:, None])


def mean_of_langevin_chains(module, batch, batch_size, nbeta, localization, lr):
    """nbeta (E[L] - L(w*)) of endless SGLD chains on minibatches, of a linear model's squares.

    Second moments are closed: with S the mean of x x', e the residuals at w* and v = w - w*, the
    gradient of a sample is 2 x (x'v - e), and M = E[v v'] solves
    M = A M A + lr + lr^2 nbeta^2 C / 4, A = 1 - lr (2 nbeta S + localization) / 2, with C the
    covariance of a minibatch's gradient.
    """
    (x, y), w = batch, module.weight.detach()
    S, e = x.mT @ x / len(x), (y - x @ w.mT)[:, 0]
    eye = torch.eye(len(S)).double()
    A, M = eye - lr / 2 * (2 * nbeta * S + localization * eye), torch.zeros_like(S)
    for _ in range(100_000):
        size = ((x @ M) * x).sum(-1) + e.square()
        C = (4 * torch.einsum("i,ij,ik->jk", size, x, x) / len(x) - 4 * S @ M @ S) / batch_size
        new = A @ M @ A + lr * eye + (lr * nbeta) ** 2 / 4 * C
        if bool((new - M).abs().max() < 1e-14):
            break
        M = new
    return nbeta * float((S * M).sum()), lr * nbeta**2 * float(C.trace()) / 8


@pytest.mark.parametrize("chains_at_once", [None, 1])
@pytest.mark.parametrize(("batch_size", "verdict"), [(48, "ok"), (4, "biased")])
def test_minibatches_shift_the_estimate_by_what_is_stated(batch_size, verdict, chains_at_once):
    module, batch = noisy_regression()
    settings = dict(nbeta=16.0, localization=8.0, lr=5e-3)
    # One chain at a time is slow: there a few draws, which need only be near.
    length = (
        dict(n_chains=64, n_draws=100) if chains_at_once is None else dict(n_chains=4, n_draws=9)
    )
    found = estimate_module_llc(
        module, batch, squares, **settings, seed=0, sampler=SGMCMC.sgld, n_burnin=200, **length,
        batch_size=batch_size, chains_at_once=chains_at_once,
    )  # fmt: skip
    s = torch.linalg.eigvalsh(batch[0].mT @ batch[0] / len(batch[0]))
    target = float((16 * s / (2 * 16 * s + 8)).sum())
    reached, shift = mean_of_langevin_chains(module, batch, batch_size, **settings)
    assert abs(float(found.mean) - reached) < 4 * float(found.sampling_error)
    if chains_at_once is None:
        assert found.verdicts == verdict
        # The noise is that of the closed form, times 5/4, and the bias bounds the whole shift.
        assert float(found.noise) == pytest.approx(1.25 * shift, rel=0.1)
        assert 0 < reached - target < float(found.bias)
        if verdict == "biased":
            assert "noise of minibatches: lr=" in found.reasons


def test_the_losses_of_draws_are_of_the_whole_sample():
    module, batch = network(), regression()
    settings = SETTINGS | dict(sampler=SGMCMC.sgld, lr=1e-3, batch_size=7)
    found = estimate_module_llc(module, batch, squares, **settings, observables={"L": squares})
    itself = found.observables["L"]
    at = float(squares(module, batch).detach())
    torch.testing.assert_close(50.0 * (itself.mean - at), found.mean)
    # Draws are 16 steps apart; each looks twice at six minibatches.
    assert int(found.gradients) == (2 + 12) + 6 * (16 + 12)
    one = estimate_module_llc(module, batch, squares, **settings, chains_at_once=1)
    torch.testing.assert_close(found.trace, one.trace, rtol=1e-9, atol=1e-12)
    bigger = estimate_module_llc(module, batch, squares, **settings | dict(n_chains=5))
    torch.testing.assert_close(found.trace, bigger.trace[:, :3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "batch_size=4 is for sampler=SGMCMC.sgld with lr: hmc accepts"),
        ({"sampler": SGMCMC.sgld}, "batch_size=4 is for plain SGMCMC.sgld with lr"),
        ({"sampler": SGMCMC.rmsprop_sgld, "lr": 1e-3}, "batch_size=4 is for plain SGMCMC.sgld"),
        (
            {"lr": 1e-3, "batch_size": 40},
            "batch_size must be a whole number from 1 to 39, .* got 40",
        ),
        ({"lr": 1e-3, "batch_size": 0}, "batch_size must be a whole number from 1 to 39, .* got 0"),
        ({"lr": 1e-3, "batch_size": 2.5}, "batch_size must be a whole number .* got 2.5"),
    ],
)
def test_minibatches_that_would_not_do_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_module_llc(
            network(), regression(), squares, **SETTINGS | {"batch_size": 4} | options
        )


@pytest.mark.parametrize(
    ("loss", "batch", "message"),
    [
        (
            lambda m, b: 40 * squares(m, b) * len(b[0]),
            regression(),
            "must be the mean over the sam",
        ),
        (squares, (regression()[0], torch.zeros(1, 1).double()), "the samples as their first axis"),
        (squares, (*regression(), 3), "made of tensors, in tuples, lists or dicts; got int"),
    ],
)
def test_data_without_rows_has_no_minibatches(loss, batch, message):
    with pytest.raises(ValueError, match=message):
        estimate_module_llc(network(), batch, loss, **SETTINGS, lr=1e-3, batch_size=4)


def mixed():
    module = network()
    module[2].float()
    return module


class TwoDevices(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)
        self.bias = nn.Parameter(torch.empty(1, device="meta"))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Tanh(), {}, "Tanh has no parameters: chains have nothing to move"),
        (network().requires_grad_(False), {}, "all 4 parameters of Sequential are frozen"),
        (network().requires_grad_(False), {"parameters": ["0.bias"]}, "parameters: 0.bias frozen"),
        (
            network(),
            {"parameters": ["3.*"]},
            "'3.*' is no parameter of Sequential; it has 0.weight",
        ),
        (network(), {"parameters": []}, "parameters is empty"),
        (mixed(), {}, "must have one dtype, got torch.float32, torch.float64"),
        (TwoDevices(), {}, "must have one device, got cpu, meta"),
        (nn.Sequential(network(), nn.Dropout(0.5)), {}, r"1 \(Dropout\) is in training mode"),
        (nn.Sequential(nn.BatchNorm1d(3), network()), {}, r"0 \(BatchNorm1d\) is in training mode"),
        (nn.LSTM(3, 3, 2, dropout=0.1), {}, r"module \(LSTM\) is in training mode"),
        (network(), {"chains_at_once": 0}, "chains_at_once must be a whole number >= 1, got 0"),
    ],
)
def test_modules_on_which_no_chain_can_run_are_refused(module, options, message):
    with pytest.raises(ValueError, match=message):
        estimate_module_llc(module, regression(), squares, **SETTINGS, **options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: squares(m, b) * (1 + torch.rand(())), "loss differs from call to call"),
        (lambda m, b: m(b[0]), r"must return a scalar tensor, .* got \(40, 1\)"),
        (lambda m, b: 1.0, "must return a scalar tensor, .* got float"),
        (lambda m, b: m[0](b[0]).mean(), "does not depend on the parameter '2.weight'"),
    ],
)
def test_losses_that_are_none_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        estimate_module_llc(network(), regression(), loss, **SETTINGS)


def test_data_that_has_no_fixed_sample_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="this DataLoader has no fixed batches"):
        one_batch(DataLoader(Stream()))
    with pytest.raises(ValueError, match="this DataLoader is empty"):
        one_batch(DataLoader(TensorDataset(torch.empty(0, 3))))
    with pytest.raises(ValueError, match=r"starts with float: set nbeta"):
        estimate_module_llc(network(), [0.5], squares, seed=0)


@pytest.mark.slow
def test_it_reads_what_devinterps_own_loop_reads():
    # `sample_single_chain` with the same step, temperature and localization, and its own noise.
    from devinterp.slt.sampler import sample_single_chain

    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 5, generator=g)
    y = (x[:, :2].sum(-1) > 0).long()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        classes(module, (x, y)).backward()
        optimizer.step()
    nbeta = 100 / math.log(100)
    settings = {"nbeta": nbeta, "lr": 1e-3, "localization": 5.0}
    n_draws, n_burnin, n_slow, n_fast = 150, 50, 20, 100
    found = estimate_module_llc(
        module, (x, y), classes, **settings, seed=0, sampler=SGMCMC.sgld,
        n_chains=n_fast, n_draws=n_draws, n_burnin=n_burnin,
    )  # fmt: skip

    def evaluate(module, batch):
        rows = batch["input_ids"]
        return classes(module, (rows[:, :5], rows[:, 5].long())), {}

    state, slow = torch.get_rng_state(), []
    at = float(classes(module, (x, y)).detach())
    for chain in range(n_slow):
        losses = []
        sample_single_chain(
            copy.deepcopy(module),
            [{"input_ids": row} for row in torch.cat([x, y[:, None]], 1)],
            evaluate,
            {name: None for name, _ in module.named_parameters()},
            num_draws=n_draws,
            num_burnin_steps=n_burnin,
            sampling_method=SGMCMC.sgld,
            sampling_method_kwargs=settings,
            chain=chain,
            seed=chain,
            batch_size=100,
            callbacks=[lambda loss, losses=losses, **_: losses.append(float(loss))],
        )
        assert len(losses) == n_draws
        slow.append(nbeta * (sum(losses) / n_draws - at))
    torch.set_rng_state(state)
    spread = float(found.per_chain.std())
    difference = float(found.mean) - sum(slow) / n_slow
    assert abs(difference) < 4 * spread * math.sqrt(1 / n_slow + 1 / n_fast)
    assert difference != 0 and spread < abs(float(found.mean))


@pytest.mark.parametrize(("limit", "during"), [(3e7, 1), (0, 3)])
def test_chains_of_a_small_module_take_one_thread_of_torch(monkeypatch, limit, during):
    monkeypatch.setattr("kgon.llc.modules._FOR_ONE_THREAD", limit)
    seen, before = [], torch.get_num_threads()

    def loss(module, batch):
        seen.append(torch.get_num_threads())
        return squares(module, batch)

    torch.set_num_threads(3)
    try:
        estimate_module_llc(network(), regression(), loss, **SETTINGS)
        assert seen[-1] == during and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
