"""The compiled exact losses and moves against their definition in torch."""

import pytest
import torch

from kgon import streams
from kgon.compiled import moments
from kgon.compiled.exact_loss import CompiledLoss, Kernel, Trajectory
from kgon.data import SingleFeature, draw
from kgon.posterior import hmc
from kgon.theory.loss import DirectLoss, EmpiricalLoss, PopulationLoss

SHAPES = [(1, 1), (2, 6), (3, 5), (1, 33)]


def parameters(n_hidden, n_features, *batch):
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(*batch, n_hidden, n_features, generator=generator, dtype=torch.float64)
    b = torch.randn(*batch, n_features, generator=generator, dtype=torch.float64) / 2
    # Zero columns with biases of both signs and zero, and zero biases of live columns.
    W[0, ..., 0], W[1, ..., 0], W[2, ..., 0] = 0.0, 0.0, 0.0
    b[0, ..., 0], b[1, ..., 0], b[2, ..., 0], b[3] = 0.5, -0.5, 0.0, 0.0
    return W, b


def sample(n_features, n_sets=3, n_samples=80):
    keys = streams.member_keys(0, range(n_sets), "data")
    return draw(SingleFeature(n_features), keys, 0, n_samples)


def weights(n_features):
    return torch.linspace(2.0, 0.0, n_features, dtype=torch.float64)


def losses(n_features):
    x = sample(n_features)
    signed = x.clone()
    signed[:, ::3] *= -2.0
    tied = (4 * x).round() / 4
    lonely = x.clone()
    lonely[..., 1:] = 0.0
    skewed = x**8
    return [
        PopulationLoss(),
        PopulationLoss(weights(n_features)),
        EmpiricalLoss(x),
        EmpiricalLoss(x, weights(n_features)),
        EmpiricalLoss(signed),
        EmpiricalLoss(tied),
        EmpiricalLoss(lonely),
        EmpiricalLoss(skewed),
    ]


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize(("n_hidden", "n_features"), SHAPES)
def test_value_and_gradient_equal_torchs(n_hidden, n_features, case):
    loss = losses(n_features)[case]
    W, b = parameters(n_hidden, n_features, 50, 2, 3)
    compiled = CompiledLoss(loss, n_features)
    for got, expected in zip(compiled.value_and_grad(W, b), loss.value_and_grad(W, b), strict=True):
        # Sums of n_features^2 terms no larger than the loss, each rounded a few times.
        torch.testing.assert_close(
            got, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max())
        )
    torch.testing.assert_close(compiled(W, b), loss(W, b), rtol=1e-12, atol=1e-13)


def test_thresholds_on_an_amplitude_are_found_on_torchs_side():
    # A = 1 and b = -a put the threshold on an amplitude exactly, for each one of the sample.
    x = sample(1, n_sets=1, n_samples=40)[0]
    W = torch.ones(40, 1, 1, dtype=torch.float64)
    compiled = CompiledLoss(EmpiricalLoss(x), 1)
    for got, expected in zip(
        compiled.value_and_grad(W, -x), EmpiricalLoss(x).value_and_grad(W, -x), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("n_stack", "n_sets"), [(120, 3), (4, 60)])
def test_threads_do_not_change_anything(n_stack, n_sets, monkeypatch):
    loss = EmpiricalLoss(sample(6, n_sets))
    W, b = parameters(2, 6, n_stack, n_sets)
    keys = streams.subkeys(streams.member_keys(0, range(n_stack), "llc"), n_sets)
    monkeypatch.setattr("kgon.compiled.machine._WORTH_A_THREAD", 1e-6)
    n_threads = torch.get_num_threads()
    results = []
    for n in (1, 3):
        torch.set_num_threads(n)
        kernel = Kernel(moments.tables(loss, 6), n_sets)
        ends, setting = [W.clone(), b.clone()], torch.ones(n_sets).double()
        draws = kernel.langevin(
            *ends, 9, keys=keys, centre=(W[0], b[0]), nbeta=30 * setting, lr=1e-3 * setting,
            localization=setting, first_step=2, thin=2,
        )  # fmt: skip
        results.append([*kernel.value_and_grad(W, b), *ends, *draws])
    torch.set_num_threads(n_threads)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("case", [1, 3, 4])
@pytest.mark.parametrize(
    ("n_hidden", "n_features"),
    [(2, 6), pytest.param(2, 7, marks=pytest.mark.slow)],  # an even number of parameters, an odd
)
def test_a_trajectory_equals_torchs(n_hidden, n_features, case):
    loss = losses(n_features)[case]
    runs = (2, 3)
    W, b = parameters(n_hidden, n_features, 40, 6)
    trajectory = Trajectory(
        strength=torch.linspace(1.0, 20.0, 6, dtype=torch.float64),
        precision=torch.full((6,), 0.25).double(),
        step=torch.tensor([0.05, 0.1, 0.2, 0.0, 1.0, 0.1], dtype=torch.float64),
        n_leapfrog=torch.tensor([4, 4, 3, 4, 4, 1]),
        keys=streams.subkeys(streams.member_keys(0, range(40), "test"), 6),
        turn=3,
    )
    tables = moments.tables(loss, n_features)
    results = []
    for mover in (
        hmc.TorchMover(loss, runs),
        Kernel(tables, n_runs=6),
    ):
        state = [W.clone(), b.clone(), mover.value(W, b)]
        acceptance = mover.hmc_move(*state, trajectory)
        results.append([*state, acceptance * (trajectory.step > 0)])
    moved = (results[0][1] != b).any(-1)
    assert not moved[:, 3].any() and moved[:, :3].double().mean() > 0.3
    assert not moved.all(0)[4]  # some of the longest steps were rejected
    for got, expected in zip(*results, strict=True):
        # Four steps may stretch a rounding error a thousandfold.
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_descent_ends_where_the_gradient_vanishes_and_never_climbs():
    W, b = parameters(2, 6, 50, 1)
    start = PopulationLoss()(W, b)
    kernel = Kernel(moments.tables(PopulationLoss(), 6), n_runs=1)
    value, slope = kernel.descend(W, b, tolerance=1e-6, n_steps=50_000)
    expected, dW, db = PopulationLoss().value_and_grad(W, b)
    norm = (dW.square().sum((-2, -1)) + db.square().sum(-1)).sqrt()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, norm, rtol=1e-6, atol=1e-13)
    assert bool((value <= start).all()) and bool((slope <= 1e-6).all())


def test_a_nan_stays_with_its_parameter():
    W, b = parameters(2, 6, 10, 1)
    W[4, 0, 1, 2] = torch.nan
    value = CompiledLoss(PopulationLoss(), 6)(W, b)
    empirical = CompiledLoss(EmpiricalLoss(sample(6, 1)[0]), 6)(W, b)
    for v in (value, empirical):
        assert bool(v[4].isnan().all()) and int(v.isnan().sum()) == 1


def test_other_losses_have_no_compiled_form():
    x = sample(4, 1)[0]
    assert moments.tables(DirectLoss(x), 4) is None
    with pytest.raises(ValueError, match="DirectLoss has no compiled form"):
        CompiledLoss(DirectLoss(x), 4)


def test_parameters_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"W must be \(\*batch, n_hidden, 4\).*\(2, 5\) and \(5,\)"
    ):
        CompiledLoss(PopulationLoss(), 4)(torch.zeros(2, 5), torch.zeros(5))
    six = CompiledLoss(EmpiricalLoss(sample(4, n_sets=6)), 4)
    with pytest.raises(ValueError, match=r"\(3, 4\) must end in the data sets' \(6,\)"):
        six(torch.zeros(3, 4, 2, 4), torch.zeros(3, 4, 4))


def test_the_table_is_bisected_where_a_bucket_has_many_amplitudes():
    # One amplitude a bucket, a few, more than fit into a line, and equal ones.
    x = sample(3, n_samples=500)
    x[1] = x[1] ** 8
    x[2] = (20 * x[2]).round() / 20
    W, b = parameters(2, 3, 200, 3)
    loss = EmpiricalLoss(x)
    count = moments.tables(loss, 3).lookup.lines["count"]
    assert (count > moments.SLOTS).any() and (count <= moments.SLOTS).any()
    for got, expected in zip(
        CompiledLoss(loss, 3).value_and_grad(W, b), loss.value_and_grad(W, b), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_data_set_has_the_same_losses_in_any_company():
    x = sample(6, n_sets=5)
    W, b = parameters(2, 6, 40, 5)
    together = CompiledLoss(EmpiricalLoss(x), 6).value_and_grad(W, b)
    for s in range(5):
        alone = CompiledLoss(EmpiricalLoss(x[s]), 6).value_and_grad(W[:, s], b[:, s])
        assert all(torch.equal(p[:, s], q) for p, q in zip(together, alone, strict=True))
