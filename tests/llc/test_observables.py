"""Observables over the draws of the chains that estimate a learning coefficient."""

import math

import numpy as np
import pytest
import torch
from devinterp.optim import SGMCMC

from kgon.llc.estimate import estimate_llc
from kgon.theory.critical import critical_point
from kgon.theory.loss import PopulationLoss

CURVATURE = torch.tensor([1.0, 2.0, 5.0]).double()


def quadratic(w):
    return (CURVATURE * w**2).sum(-1) / 2


def within(found, error, expected, k=4.0):
    # Errors that hold 19 times out of 20 with two of them hold nearly always with four.
    assert bool(((found - expected).abs() <= k * error).all()), (found, error, expected)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_moments_under_a_gaussian_are_known_in_closed_form(batch):
    nbeta, localization = 50.0, 10.0
    found = estimate_llc(
        quadratic, torch.zeros(*batch, 3).double(), nbeta=nbeta, localization=localization, seed=0,
        n_draws=300, n_burnin=50,
        observables={"w": lambda w: w, "square": lambda w: w[..., 0] ** 2},
    )  # fmt: skip
    assert found.verdict.eq(0).all()
    s = 1 / (nbeta * CURVATURE + localization)  # Var w_i
    w, square = found.observables["w"], found.observables["square"]
    assert w.mean.shape == (*batch, 3) and square.mean.shape == batch
    within(w.mean, w.stderr, 0.0)
    within(w.variance, w.variance_error, s)
    within(w.covariance, w.covariance_error, 0.0)
    within(square.mean, square.stderr, s[0])
    within(square.variance, square.variance_error, 2 * s[0] ** 2)
    # Cov(w^2, h w^2 / 2) = h s^2.
    within(square.covariance, square.covariance_error, CURVATURE[0] * s[0] ** 2)
    # Four errors would tell it from 0.
    assert bool((square.covariance > 4 * square.covariance_error).all())
    assert bool((w.rhat < 1.1).all())


def test_errors_of_covariances_hold():
    # Over repetitions the errors' size is that of the differences from the closed form.
    repetitions, nbeta = 100, 50.0
    found = estimate_llc(
        quadratic, torch.zeros(repetitions, 3).double(), nbeta=nbeta, localization=10.0, seed=1,
        n_chains=4, n_draws=150, n_burnin=10, observables={"square": lambda w: w[..., 0] ** 2},
    ).observables["square"]  # fmt: skip
    s = 1 / (nbeta * CURVATURE[0] + 10.0)
    z = (found.covariance - CURVATURE[0] * s**2) / found.covariance_error
    # P(|z| > 2) is 5%: of 100 at most 5 and four standard deviations of 2.2.
    assert int((z.abs() > 2).sum()) <= 5 + 4 * math.sqrt(100 * 0.05 * 0.95)


@pytest.mark.slow
def test_errors_hold_where_a_trajectory_is_a_half_period():
    # A trajectory has the length u / sqrt(localization), u uniform in (0.6, 1.2). In a direction
    # that turns by pi in it, w becomes -w, and w^2 stays: there only u's range moves w^2.
    turns = torch.tensor([1 / 1.2, 1.0, 1 / 0.9, 1 / 0.6, 2 / 0.9]).double()  # in units of pi
    repetitions, nbeta, localization = 30, 50.0, 10.0
    curvature = CURVATURE.repeat(len(turns), 1, 1)  # (turns, 1, 3)
    curvature[:, 0, 0] = localization * ((turns * math.pi) ** 2 - 1) / nbeta
    found = estimate_llc(
        lambda w: (curvature * w**2).sum(-1) / 2,
        torch.zeros(len(turns), repetitions, 3).double(),
        nbeta=nbeta, localization=localization, seed=5, n_draws=300, n_burnin=50,
        observables={"w": lambda w: w, "square": lambda w: w**2},
    )  # fmt: skip
    assert found.verdict.eq(0).all()
    s = 1 / (nbeta * curvature + localization)
    w, square = found.observables["w"], found.observables["square"]
    assert w.verdict.eq(0).all() and square.verdict.eq(0).all()
    llc = nbeta * (curvature * s).sum(-1) / 2
    # Of 30 with a chance of 5% each more than 8 miss once in 90,000 times; 35 such numbers.
    for each, mean in ((found, llc), (w, 0 * s), (square, s)):
        assert int(((each.mean - mean).abs() > 2 * each.stderr).sum(1).max()) <= 8


def test_an_observable_that_mixes_slowly_is_unconverged_though_the_loss_is_ok():
    # SGLD goes through the stiff direction in 1 / (lr nbeta) steps, and through the flat one, which
    # the loss does not feel, in 1 / (lr localization): a thousand times as many.
    def loss(w):
        return w[..., 0] ** 2 / 2 + 1e-9 * w[..., 1] ** 2

    found = estimate_llc(
        loss, torch.zeros(2).double(), nbeta=1000.0, localization=1.0, seed=0, lr=2e-4,
        n_draws=600, n_burnin=100, n_chains=8,
        observables={"w": lambda w: w, "one": lambda w: torch.ones(len(w))},
    )  # fmt: skip
    w, one = found.observables["w"], found.observables["one"]
    assert w.verdicts == ["ok", "unconverged"] and one.verdicts == "ok"
    assert float(w.rhat[1]) > 1.1 or float(w.ess[1]) < 40


def test_observables_of_one_chain_or_without_value_are_unconverged():
    settings = dict(nbeta=50.0, localization=10.0, seed=0, n_draws=100, n_burnin=10)
    functions = {"w": lambda w: w[..., 0], "nan": lambda w: w[..., 0] * math.nan}
    for n_chains, expected in ((1, "unconverged"), (8, "ok")):
        found = estimate_llc(
            quadratic, torch.zeros(3).double(), **settings, n_chains=n_chains, observables=functions
        ).observables
        assert found["w"].verdicts == expected and found["nan"].verdicts == "unconverged"


@pytest.mark.parametrize("options", [{}, {"sampler": SGMCMC.sgld}, {"n_draws": 40, "n_burnin": 5}])
def test_on_the_exact_losses_chains_are_the_same_and_the_loss_observes_itself(options):
    point, nbeta = critical_point("5", 6), 500.0
    settings = dict(nbeta=nbeta, localization=15.0, seed=0, n_chains=4, target=0.3, budget=2000)
    params = torch.stack([point.W, point.W]), torch.stack([point.b, point.b])
    loss = PopulationLoss()
    plain = estimate_llc(loss, *params, **settings, **options)
    found = estimate_llc(loss, *params, **settings, **options, observables={"L": loss})
    # HMC: bit by bit. The optimizer's steps differ from the compiled loop's by rounding.
    sgld = "sampler" in options
    tolerance = {"rtol": 1e-6, "atol": 1e-9} if sgld else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found.trace, plain.trace, equal_nan=True, **tolerance)
    assert torch.equal(found.reason, plain.reason)
    torch.testing.assert_close(found.mean, plain.mean)
    itself = found.observables["L"]
    torch.testing.assert_close(nbeta * (itself.mean - loss(*params)), found.mean)
    torch.testing.assert_close(nbeta**2 * itself.variance, found.variance)
    torch.testing.assert_close(nbeta**2 * itself.covariance, found.variance)
    # (The errors of the estimate may also hold a step bias.)
    assert bool((nbeta * itself.stderr <= found.stderr * (1 + 1e-9)).all())


def test_a_chain_that_is_left_out_is_left_out_of_observables_too():
    # The paper's rule leaves out chains with draws below L(w*) = 0.
    def loss(w):
        return w[..., 0] + quadratic(w)

    settings = dict(nbeta=2.0, localization=1.0, seed=0, n_chains=8, n_draws=60, n_burnin=5)
    below = (estimate_llc(loss, torch.zeros(3).double(), **settings).trace < 0).double().mean(0)
    found = estimate_llc(
        loss, torch.zeros(3).double(), **settings, discard=float(below.median()),
        observables={"L": loss},
    )  # fmt: skip
    assert 0 < int(found.kept) < 8
    torch.testing.assert_close(2.0 * found.observables["L"].mean, found.mean)


def test_parameters_from_a_dict_reach_observables_as_a_dict():
    w = {"a": torch.zeros(2).double(), "b": torch.zeros(1).double()}
    found = estimate_llc(
        lambda w: (w["a"] ** 2).sum(-1) + (w["b"] ** 2).sum(-1), w,
        nbeta=10.0, localization=1.0, seed=0, observables={"b": lambda w: w["b"][..., 0]},
    )  # fmt: skip
    b = found.observables["b"]
    within(b.variance, b.variance_error, 1 / 21)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w.sum(), r"observables\['o'\] returned shape \(\) for parameters with leading"),
        (lambda w: 1.0, r"observables\['o'\] returned float; it must return a real tensor"),
        (lambda w: w.sum(-1) * 1j, r"returned torch.complex128; it must return a real tensor"),
    ],
)
def test_what_is_no_observable_is_refused_by_name(function, message):
    with pytest.raises(ValueError, match=message):
        estimate_llc(
            quadratic, torch.zeros(3).double(), nbeta=10.0, localization=1.0, seed=0,
            observables={"o": function},
        )  # fmt: skip


def test_more_values_of_observables_than_memory_are_refused():
    many = np.iinfo(np.int32).max // 10_000
    with pytest.raises(ValueError, match=f"of {many} values of observables"):
        estimate_llc(
            quadratic, torch.zeros(3).double(), nbeta=10.0, localization=1.0, seed=0,
            observables={"o": lambda w: w[..., :1].expand(*w.shape[:-1], many)},
        )  # fmt: skip
