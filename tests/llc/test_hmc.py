"""Hamiltonian Monte Carlo against closed forms, quadrature, and SGLD with small steps."""

import math

import pytest
import torch
from devinterp.optim import SGMCMC

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.data import SingleFeature, draw
from kgon.llc.estimate import estimate_llc
from kgon.llc.hmc import HMC, HMCChains
from kgon.llc.stack import Stack
from kgon.theory.critical import critical_point
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

LENGTHS = {"n_chains": 32, "n_draws": 100, "n_burnin": 30}


def within(estimate, expected):
    """Whether all estimates are within four standard errors: by chance one in 16,000 is not."""
    return bool(((estimate.mean - expected).abs() < 4 * estimate.stderr).all())


@pytest.mark.parametrize("localization", [0.0, 1.0, 50.0])
def test_a_quadratic_form_is_known_in_closed_form(localization):
    h = torch.tensor([0.2, 1.0, 1.0, 3.0]).double()
    nbeta = 100.0

    def loss(w):
        return (h * w.square()).sum(-1) / 2

    found = estimate_llc(
        loss, torch.zeros(3, 4).double(), nbeta=nbeta, localization=localization, seed=0,
        sampler=HMC(), **LENGTHS,
    )  # fmt: skip
    assert within(found, float((nbeta * h / (nbeta * h + localization)).sum() / 2))
    assert ((found.acceptance - 0.9).abs() < 0.1).all()
    assert found.verdicts == ["ok"] * 3


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 2)])
def test_a_normal_crossing_is_known_by_quadrature(k1, k2):
    nbeta, gamma = 300.0, 1.0

    def loss(w):
        return w["x"] ** (2 * k1) * w["y"] ** (2 * k2)

    grid = torch.linspace(-6, 6, 3001).double()
    value = grid[:, None] ** (2 * k1) * grid ** (2 * k2)
    weight = torch.exp(-nbeta * value - gamma / 2 * (grid[:, None].square() + grid.square()))
    expected = float(nbeta * (value * weight).sum() / weight.sum())
    zero = torch.zeros(()).double()
    found = estimate_llc(
        loss, {"x": zero, "y": zero.clone()}, nbeta=nbeta, localization=gamma, seed=1,
        sampler=HMC(), **LENGTHS,
    )  # fmt: skip
    assert within(found, expected)


@pytest.mark.parametrize("of_a_sample", [False, True])
def test_compiled_trajectories_are_those_of_the_definition(of_a_sample):
    points = [critical_point(label, 6) for label in ("5", "6")]
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    keys = streams.member_keys(0, [0], "data")
    x = draw(SingleFeature(6), keys, 0, 500)[0]
    loss = EmpiricalLoss(x) if of_a_sample else PopulationLoss()
    keys = streams.subkeys(streams.member_keys(0, [0, 1], "llc"), 5).T.copy()
    nbeta, localization = torch.tensor([100.0, 150.0]).double(), torch.ones(2).double()
    # The step sizes differ, and with them the numbers of leapfrog steps: 20 and 10.
    compiled, defined = (
        HMCChains(HMC(), Stack(form, (W, b), (2,)), keys, nbeta, localization)
        for form in (CompiledLoss(loss, 6), loss)
    )
    everywhere = torch.ones(2, dtype=torch.bool)
    for chains in (compiled, defined):
        chains.step = torch.tensor([0.05, 0.1]).double()
    for moving in (everywhere, torch.tensor([True, False]), everywhere):
        one, other = (chains.draw(3, moving) for chains in (compiled, defined))
        # Sixty steps let rounding grow to 1e-14; another rule would differ by much more.
        for name in ("loss", "distance", "acceptance"):
            a, b = getattr(one, name), getattr(other, name)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, equal_nan=True)
        torch.testing.assert_close(compiled.params, defined.params, rtol=1e-9, atol=1e-10)
        assert bool(one.loss[..., 1].isnan().all()) is not bool(moving[1])
    assert compiled.n_gradients.tolist() == [9 * 21, 6 * 11]


def test_k_gons_read_what_small_langevin_steps_read():
    # At n = 1,000 and localization 1 another program's Metropolis-corrected chains read
    # 8.46, 9.30 and 11.42 for the expected loss.
    points = [critical_point(label, 6) for label in ("5", "5+", "6")]
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    found = estimate_llc(
        PopulationLoss(), W, b, nbeta=1000 / math.log(1000), localization=1.0, seed=0,
        n_chains=100, n_draws=300, n_burnin=200, sampler=HMC(),
    )  # fmt: skip
    known = torch.tensor([8.46, 9.30, 11.42]).double()
    # The known values are rounded to 0.01 and were themselves estimated to about 0.05.
    assert ((found.mean - known).abs() < 4 * (found.stderr.square() + 0.05**2).sqrt()).all()


def test_a_points_chains_do_not_depend_on_the_other_points():
    points = [critical_point(label, 6) for label in ("5", "6", "4+")]
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    keys = streams.member_keys(0, [4, 9, 2], "llc")
    settings = {"nbeta": 500.0, "localization": 5.0, "target": 0.05, "budget": 5000}
    together = estimate_llc(PopulationLoss(), W, b, seed=keys, **settings)
    assert len(set(together.draws.tolist())) > 1  # some ended before others
    for i in range(3):
        own = slice(i, i + 1)
        alone = estimate_llc(PopulationLoss(), W[own], b[own], seed=keys[own], **settings)
        for name in ("mean", "stderr", "draws", "gradients", "reason", "step"):
            assert torch.equal(getattr(together, name)[own], getattr(alone, name)), name


@pytest.mark.parametrize("sampler", [None, SGMCMC.sgld])
def test_chains_run_until_the_error_is_below_the_target(sampler):
    settings = {"nbeta": 100.0, "localization": 1.0, "seed": 0, "sampler": sampler}
    draws = []
    for target in (0.1, 0.05):
        found = estimate_llc(
            lambda w: w.square().sum(-1) / 2, torch.zeros(4, 3).double(), **settings, target=target
        )
        assert found.verdicts == ["ok"] * 4 and within(found, 3 / 2 * 100 / 101)
        assert bool((found.stderr <= target * found.mean.clamp(min=1)).all())
        torch.testing.assert_close(found.stderr, found.sampling_error + found.bias / 2)
        draws.append(found.gradients.sum())
    assert draws[1] > draws[0]


def test_the_variance_estimator_has_its_closed_form_and_does_not_need_the_loss_at_w_star():
    h, nbeta, gamma = torch.tensor([0.2, 1.0, 1.0, 3.0]).double(), 100.0, 1.0

    def loss(w):
        return (h * w.square()).sum(-1) / 2

    shares = nbeta * h / (nbeta * h + gamma)
    settings = {"nbeta": nbeta, "localization": gamma, "seed": 0, "target": 0.05}
    found = estimate_llc(loss, torch.zeros(40, 4).double(), **settings)
    expected = float(shares.square().sum() / 2)
    # The errors of single ones are uncertain, since squares are skewed; that of their mean is not.
    error = math.sqrt(float(found.variance_error.square().mean()) / 40)
    assert abs(float(found.variance.mean()) - expected) < 4 * error
    held = ((found.variance - expected).abs() < 2 * found.variance_error).double().mean()
    assert float(held) > 0.9 - 3 * math.sqrt(0.9 * 0.1 / 40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"acceptance": 1.0}, "sampler.acceptance"), ({"max_leapfrog": 0}, "sampler.max_leapfrog")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HMC(**settings)


def test_a_step_size_belongs_to_langevin_dynamics():
    settings = {"nbeta": 10.0, "localization": 1.0, "seed": 0, **LENGTHS}
    w = torch.zeros(2).double()
    with pytest.raises(ValueError, match=r"lr=0\.1 is for sampler=sgld: hmc adapts"):
        estimate_llc(lambda w: w.square().sum(-1), w, lr=0.1, sampler=HMC(), **settings)
    with pytest.raises(ValueError, match="lr must be given: it is adapted for plain sgld"):
        estimate_llc(lambda w: w.square().sum(-1), w, sampler=SGMCMC.rmsprop_sgld, **settings)
    with pytest.raises(ValueError, match="given both or neither, got n_draws=100"):
        estimate_llc(lambda w: w.square().sum(-1), w, **{**settings, "n_burnin": None})
