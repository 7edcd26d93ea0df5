"""Free energies: the published crossings; Laplace's evidence against quadrature and sampling."""

import math

import pytest
import torch
from laplace import laplace_log_evidence, log_orbit_volume, permuted_copies

from kgon.posterior.smc import sample_posterior
from kgon.theory.critical import critical_point
from kgon.theory.free_energy import critical_sample_size, free_energy, prior_constant
from kgon.theory.loss import PopulationLoss


def point(label, n_features=6):
    return critical_point(label, n_features)


@pytest.mark.parametrize(
    ("label", "constant"),
    [("4", 2.0), ("4+", 2.00347), ("5", 3.62417), ("5+", 3.62764), ("6", 6.37764)],
)
def test_published_constants(label, constant):
    assert prior_constant(point(label)) == pytest.approx(constant, abs=5e-6)
    assert prior_constant(point(label), prior_std=2.0) == pytest.approx(constant / 4, abs=2e-6)


def test_constant_of_a_column_that_is_switched_off():
    # Four columns of length 1; one is off, so that its bias is at most -1.
    assert prior_constant(point("4-")) == pytest.approx((4 + 1) / 2)


@pytest.mark.parametrize(
    ("alpha", "beta", "settings", "n"),
    [
        ("5", "6", {}, 601),
        ("4+", "5", {"llc": {"4+": 5.0}}, 381),
        ("5", "6", {"halved": True}, 1316),
    ],
)
def test_published_crossings(alpha, beta, settings, n):
    crossing = critical_sample_size(point(alpha), point(beta), **settings)
    assert round(crossing) == n
    assert crossing == critical_sample_size(point(beta), point(alpha), **settings)


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("prior_std", [0.7, 1.0, 3.0])
@pytest.mark.parametrize(("alpha", "beta"), [("5", "6"), ("4", "5"), ("5", "5+"), ("4+", "6")])
def test_a_crossing_is_where_free_energies_are_equal_and_the_smaller_loss_wins_beyond(
    alpha, beta, halved, prior_std
):
    alpha, beta = point(alpha), point(beta)
    settings = dict(halved=halved, prior_std=prior_std)
    n = critical_sample_size(alpha, beta, **settings)
    if math.isnan(n):
        ns = [1.0, 2.0, 10.0, 100.0, 1e3, 1e5]
        difference = [
            free_energy(beta, n, **settings) - free_energy(alpha, n, **settings) for n in ns
        ]
        assert all(d < 0 for d in difference)
        return
    energies = [free_energy(p, n, **settings) for p in (alpha, beta)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)
    for factor in (1.01, 2.0, 100.0):
        assert free_energy(beta, factor * n, **settings) < free_energy(
            alpha, factor * n, **settings
        )


def test_no_crossing_is_nan():
    # 4 has less loss than 4-, less norm, and here less complexity: it wins at every n.
    assert math.isnan(critical_sample_size(point("4-"), point("4"), llc={"4-": 20.0}))


def test_bad_input():
    with pytest.raises(ValueError, match="no learning coefficient of '4-'"):
        critical_sample_size(point("4-"), point("4"))
    with pytest.raises(ValueError, match="same n_features, got 5 and 6"):
        critical_sample_size(point("5", 5), point("5"))
    with pytest.raises(ValueError, match="n_samples must be positive"):
        free_energy(point("5"), 0)


@pytest.mark.parametrize("k", [5, 6, 7])
def test_copies_of_a_k_gon(k):
    p = point(str(k), k)
    assert permuted_copies(p.W, p.b) == math.factorial(k) // (2 * k)


def test_copies_count_equal_dead_columns_once():
    p = point("5", 7)
    assert permuted_copies(p.W, p.b) == math.factorial(7) // (10 * 2)


@pytest.mark.parametrize(
    ("m", "volume"),
    # O(1) is two points; SO(m) of the Frobenius metric is 2 sqrt 2 pi and 16 sqrt 2 pi^2.
    [(1, 2.0), (2, 2 * 2 * math.sqrt(2) * math.pi), (3, 2 * 16 * math.sqrt(2) * math.pi**2)],
)
def test_volume_of_the_orthogonal_group(m, volume):
    assert float(log_orbit_volume(torch.eye(m).double())) == pytest.approx(math.log(volume))


def test_laplace_against_quadrature():
    # One feature, one hidden dimension: L = (1 - W^2)^2 / 3 at b = 0, and two images +-W.
    W, b = torch.ones(1, 1).double(), torch.zeros(1).double()
    n_samples, noise_std, prior_std = 4e5, 0.5, 0.7
    laplace = laplace_log_evidence(
        W, b, n_samples=n_samples, noise_std=noise_std, prior_std=prior_std
    )
    strength, h = n_samples / (2 * noise_std**2), 2e-5
    # Forty standard deviations about the mode, W > 0.
    w = torch.arange(0.97, 1.03, h).double()
    c = torch.arange(-0.03, 0.03, h).double()
    grid_W, grid_b = torch.meshgrid(w, c, indexing="ij")
    L = PopulationLoss()(grid_W[..., None, None], grid_b[..., None])
    log_density = -strength * L - (grid_W**2 + grid_b**2) / (2 * prior_std**2)
    exact = log_density.flatten().logsumexp(0) + 2 * math.log(h) + math.log(2)
    exact = float(exact) - math.log(2 * math.pi * prior_std**2)
    # At b = 0 third derivatives jump, so that the relative error is of order strength^(-1/2), with
    # a coefficient of order 1: cubic terms are 2 b^3 / 3 and the like. A factor 2 that is wrong, in
    # the images say, would be 600 times this tolerance.
    assert laplace == pytest.approx(exact, abs=1 / math.sqrt(strength) * 5)


@pytest.mark.slow
def test_laplace_against_sampling_at_the_6_gon():
    p = point("6")
    for n_samples in (4e4, 4e5):
        posterior = sample_posterior(
            PopulationLoss(), n_features=6, n_samples=n_samples, n_particles=1024, n_replicates=16
        )
        laplace = laplace_log_evidence(p.W, p.b, n_samples=n_samples)
        # Laplace's own error is of order 1 / n, a tenth of the sampler's here.
        tolerance = 6 * float(posterior.log_evidence_stderr)
        assert tolerance < math.log(2)  # a factor 2 that is wrong would show
        assert abs(float(posterior.log_evidence) - laplace) < tolerance


class Gram:
    """L = |W^T W - A|^2 + |b|^2: invariant under O(n_hidden), regular across it."""

    def __init__(self, A):
        self.A = A
        self.importance = None

    def __call__(self, W, b):
        return (W.mT @ W - self.A).square().sum((-2, -1)) + b.square().sum(-1)

    def grad(self, W, b):
        return 4 * W @ (W.mT @ W - self.A), 2 * b


@pytest.mark.parametrize("m", [1, 3])
def test_laplace_against_sampling_for_other_hidden_dimensions(m):
    spectrum = torch.linspace(1.0, 1.6, m, dtype=torch.float64)
    loss = Gram(torch.diag(spectrum))
    posterior = sample_posterior(
        loss, n_hidden=m, n_features=m, n_samples=4e3, n_particles=256, n_replicates=6
    )
    laplace = laplace_log_evidence(
        torch.diag(spectrum.sqrt()), torch.zeros(m).double(), n_samples=4e3, loss=loss,
        permutations=False,
    )  # fmt: skip
    error = float(posterior.log_evidence_stderr)
    # Third derivatives are of order 10 and curvatures 2 n: corrections of some 10 / n.
    assert error < 0.15 and abs(float(posterior.log_evidence) - laplace) < 6 * error + 0.01
