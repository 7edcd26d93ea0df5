"""Rates of leaving a phase: the formula against evidence, the count against a known rate."""

import math

import pytest
import torch
from laplace import laplace_log_evidence

from kgon.landscape import rates
from kgon.landscape.passes import Pass, passes
from kgon.landscape.rates import check_start, escapes, eyring_kramers
from kgon.theory.atlas import built
from kgon.theory.critical import critical_point
from kgon.theory.loss import population_loss

GENERATORS = torch.zeros(3, 3, 3).double()
"""The antisymmetric matrices that generate rotations in three dimensions."""
for _axis in range(3):
    GENERATORS[_axis, (_axis + 1) % 3, (_axis + 2) % 3] = 1.0
    GENERATORS[_axis, (_axis + 2) % 3, (_axis + 1) % 3] = -1.0


def way(n_features, ends):
    return next(w for w in passes(built(n_features, 2)) if w.ends == ends)


def turned(point):
    """The same critical point, turned and permuted."""
    g = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(2, 2, generator=g, dtype=torch.float64))
    order = torch.randperm(point.n_features, generator=g)
    return type(point)(point.label, q @ point.W[:, order], point.b[order], point.loss)


@pytest.mark.parametrize(("n_features", "ends"), [(6, ("5+", "6")), (7, ("7d2a", "6+"))])
def test_rates_there_and_back_differ_by_the_evidence(n_features, ends):
    """Detailed balance: k(a -> b) Z_a = k(b -> a) Z_b, Z by another program's Laplace approximation
    under a prior that is flat there, relative error 1 / prior_std^2."""
    between, temperature = way(n_features, ends), 1e-4
    a, b = (built(n_features, 2)[label] for label in ends)
    there, back = (eyring_kramers(p, between, temperature) for p in (a, b))
    # A posterior exp(-n L / 2) is the equilibrium at T = 2 / n.
    z_a, z_b = (
        laplace_log_evidence(p.W, p.b, n_samples=2 / temperature, prior_std=1e3) for p in (a, b)
    )
    assert math.log(there / back) == pytest.approx(float(z_b - z_a), rel=1e-4)


def test_a_rate_is_a_number_of_the_phase():
    between = way(6, ("5+", "6"))
    start = critical_point("5+", 6)
    rate = eyring_kramers(start, between, 1e-3)
    moved = Pass(turned(between.point), between.ends, between.barriers)
    assert eyring_kramers(turned(start), moved, 1e-3) == pytest.approx(rate, rel=1e-6)


def test_log_rate_falls_by_the_barrier_per_temperature():
    between, start = way(6, ("5+", "6")), critical_point("5+", 6)
    barrier = between.point.loss - start.loss
    one, other = (eyring_kramers(start, between, barrier / x) for x in (5.0, 8.0))
    assert math.log(one / other) == pytest.approx(3.0, rel=1e-12)


def test_five_passes_lead_from_a_pentagon_to_hexagons():
    """The sixth column can grow in each gap: the orders of the symmetry groups are 10 and 2."""
    between = way(6, ("5+", "6"))
    assert rates._order(critical_point("5+", 6)) == 10 and rates._order(between.point) == 2


def test_counted_rates_are_those_of_a_known_process(monkeypatch):
    """Chains whose quench says "left" with probability 0.1 a look: -log(0.9) / tau within four
    standard errors."""
    atlas, start = built(6, 2), critical_point("6", 6)
    g = torch.Generator().manual_seed(0)
    n_chains = 500

    def labels(W, b, polished, atlas):
        left = torch.rand(len(b), generator=g) < 0.1
        return ["5" if x else "6" for x in left.tolist()]

    monkeypatch.setattr(rates, "match", labels)
    monkeypatch.setattr(rates, "INTERVAL", 0.01)
    (found,) = escapes(start, atlas, [], [1e-9], n_chains=n_chains, n_intervals=10, seed=0)
    h = start.eigenvalues
    dt = rates.STEP / float(h.max())
    tau = math.ceil(0.01 / float(h[h > 0].min()) / dt) * dt
    assert found.end == "5" and found.n_escapes > 200
    assert abs(found.measured + math.log(0.9) / tau) < 4 * found.error
    assert math.isnan(found.barrier) and found.predicted == 0


def test_nothing_leaves_a_cold_phase():
    start = critical_point("5+", 6)
    found = escapes(start, built(6, 2), passes(built(6, 2)), [1e-7], n_chains=20, n_intervals=2,
                    seed=0)  # fmt: skip
    assert {f.end for f in found} == {"6", "4++"}
    assert all(f.measured == 0 and f.predicted < 1e-100 for f in found)


def test_a_soft_pass_is_narrower_than_its_hessian_says():
    """Why the law does not hold for 7d3a+ -> 8d3a at measurable rates (docs/atlas.md)."""
    atlas = built(8, 3)
    ways = [w.point for w in passes(atlas) if set(w.ends) == {"7d3a+", "8d3a"}]
    lowest = min(ways, key=lambda point: point.loss)
    place = torch.cat([lowest.W.flatten(), lowest.b])

    def loss(v):
        return population_loss(v[:24].view(3, 8), v[24:])

    def hessian(v):
        return torch.autograd.functional.hessian(loss, v)

    values, vectors = torch.linalg.eigh(hessian(place))
    h, soft = values[4], vectors[:, 4]
    assert 0.001 < h < 0.002 and values[5] > 10 * h
    for distance, least, most in ((0.04, 1.0, 1.1), (0.16, 9.0, 11.0)):
        v = place + distance * soft
        for _ in range(8):  # Newton's method in the other directions, rotations left out
            W = v[:24].view(3, 8)
            turns = [torch.cat([(X @ W).flatten(), 0 * lowest.b]) for X in GENERATORS]
            fixed, _ = torch.linalg.qr(torch.stack([soft, *turns]).mT)
            free = torch.eye(32).double() - fixed @ fixed.mT
            slope = free @ torch.autograd.functional.jacobian(loss, v)
            v = v - torch.linalg.solve(free @ hessian(v) @ free + fixed @ fixed.mT, slope)
        assert slope.norm() < 1e-10
        assert least < (loss(v) - lowest.loss) / (h * distance**2 / 2) < most


@pytest.mark.parametrize("label", ["5", "4", "6d2a"])
def test_only_isolated_minima_have_rates(label):
    with pytest.raises(ValueError, match="must be a minimum without dead columns"):
        check_start(built(6, 2)[label])
