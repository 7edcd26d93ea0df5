"""Hamiltonian Monte Carlo against closed forms, quadrature, and SGLD with small steps."""

import math

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.data import SingleFeature, draw
from kgon.llc.estimate import estimate_llc
from kgon.llc.hmc import HMC, Chains
from kgon.theory.critical import critical_point
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

LENGTHS = {"n_chains": 32, "n_draws": 400, "n_burnin": 100}


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
    strength, precision = torch.tensor([100.0, 150.0]).double(), torch.ones(2).double()
    compiled, defined = (
        Chains(form, [W, b], keys, strength, precision, (2,))
        for form in (CompiledLoss(loss, 6), loss)
    )
    for _ in range(10):
        step = torch.tensor([0.05, 0.1]).double()
        one, other = (chains.move(step, 8) for chains in (compiled, defined))
        # Eighty steps let rounding grow to 1e-14; another rule would differ by much more.
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(compiled.params, defined.params, rtol=1e-9, atol=1e-10)


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


def test_a_chain_does_not_depend_on_the_other_chains():
    W, b = critical_point("6", 6).W, critical_point("6", 6).b
    settings = {"nbeta": 500.0, "localization": 1.0, "sampler": HMC(), "n_draws": 5, "n_burnin": 0}
    keys = streams.member_keys(0, [4, 9], "llc")
    both = estimate_llc(
        PopulationLoss(), W.expand(2, -1, -1), b.expand(2, -1), seed=keys, n_chains=3, **settings
    )
    again = estimate_llc(
        PopulationLoss(), W.expand(2, -1, -1), b.expand(2, -1), seed=keys, n_chains=3, **settings
    )
    assert torch.equal(both.trace, again.trace)
    assert not np.allclose(both.trace[:, :, 0], both.trace[:, :, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"acceptance": 1.0}, "sampler.acceptance"), ({"max_leapfrog": 0}, "sampler.max_leapfrog")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HMC(**settings)


def test_langevin_dynamics_needs_a_step_size():
    with pytest.raises(ValueError, match="lr must be given"):
        estimate_llc(
            lambda w: w.square().sum(-1), torch.zeros(2).double(), nbeta=10.0, localization=1.0,
            seed=0, **LENGTHS,
        )  # fmt: skip
