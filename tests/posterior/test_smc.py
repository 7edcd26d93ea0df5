"""The posterior's sampler against Gaussians, quadrature, and itself."""

import math

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.data import SingleFeature, Sparse, draw
from kgon.posterior.labels import output_labels, quench, quench_labels
from kgon.posterior.occupancy import bayesian_transitions, posterior_llc, shares
from kgon.posterior.smc import VERDICTS, sample_posterior
from kgon.theory.loss import DirectLoss, EmpiricalLoss, PopulationLoss

# Errors that an estimate may be off. Two hold the truth 19 times out of 20; four miss it less than
# once in a hundred (Student's t with the 3 to 7 degrees of freedom of 4 to 8 replicates).
ERRORS = 4.0


def sample(n_samples, n_features=6, n_sets=1):
    keys = streams.member_keys(0, range(n_sets), "data")
    return draw(SingleFeature(n_features), keys, 0, n_samples)


def within(estimate, stderr, truth):
    assert bool(((estimate - truth).abs() <= ERRORS * stderr).all()), (estimate, stderr, truth)


class Gaussian:
    """L = sum_i h_i (w_i - mu_i)^2: neither rotations nor permutations leave it as it is."""

    mu = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.5, -0.5], dtype=torch.float64)
    h = torch.tensor([1.0, 3.0, 0.2, 0.5, 2.0, 1.0], dtype=torch.float64)
    prior_std, noise_std, n_samples = 1.5, 0.5, 10.0

    def __call__(self, W, b):
        w = torch.cat([W.flatten(-2), b], -1)
        return (self.h * (w - self.mu).square()).sum(-1)


@pytest.fixture(scope="module")
def gaussian_posterior():
    return sample_posterior(
        Gaussian(), n_samples=Gaussian.n_samples, n_features=2, noise_std=Gaussian.noise_std,
        prior_std=Gaussian.prior_std, n_particles=512, n_replicates=8, seed=3,
    )  # fmt: skip


class TestGaussian(Gaussian):
    def exact(self):
        precision = 2 * self.h * self.n_samples / (2 * self.noise_std**2)
        return precision, precision + self.prior_std**-2

    def test_mean_and_covariance(self, gaussian_posterior):
        posterior = gaussian_posterior
        likelihood, total = self.exact()
        w = torch.cat([posterior.W.flatten(-2), posterior.b], -1)
        mean = likelihood / total * self.mu
        for i in range(6):
            within(*posterior.mean(w[..., i]), mean[i])
            for j in range(i + 1):
                product = (w[..., i] - mean[i]) * (w[..., j] - mean[j])
                within(*posterior.mean(product), 1 / total[i] if i == j else 0.0)

    def test_evidence(self, gaussian_posterior):
        posterior = gaussian_posterior
        # The integral of exp(-p (w - mu)^2 / 2) N(w; 0, s^2) is that of two normal densities.
        likelihood, _ = self.exact()
        variance = 1 / likelihood + self.prior_std**2
        density = -0.5 * (2 * math.pi * variance).log() - self.mu**2 / (2 * variance)
        exact = (density + 0.5 * (2 * math.pi / likelihood).log()).sum()
        assert float(posterior.log_evidence_stderr) < 0.1
        within(posterior.log_evidence, posterior.log_evidence_stderr, exact)

    def test_diagnostics(self, gaussian_posterior):
        posterior = gaussian_posterior
        assert posterior.verdicts == "ok"
        finite = posterior.beta.isfinite()
        assert bool((posterior.beta[-1].nan_to_num(1.0) == 1).all())
        assert bool((posterior.beta.diff(dim=0).nan_to_num(1.0) > 0).all())
        # Every rung but the last keeps the share that was asked for, to bisection's precision.
        on_the_way = posterior.beta < 1
        assert bool(((posterior.ess[on_the_way] - 0.6).abs() < 1e-6).all())
        assert bool((posterior.ess[finite] > 0.6 - 1e-6).all())
        assert bool((posterior.permuted[finite] < 1).any())


def test_one_feature_and_one_hidden_dimension_by_quadrature():
    x = sample(60, n_features=1)[0]
    noise_std, prior_std = 0.5, 0.8
    posterior = sample_posterior(
        x, n_hidden=1, noise_std=noise_std, prior_std=prior_std, n_particles=512, n_replicates=8
    )
    # The integrand is smooth to first order: the trapezoidal error is of order step^2 at most.
    grid = torch.linspace(-6.4, 6.4, 1281, dtype=torch.float64)
    W, b = torch.meshgrid(grid, grid, indexing="ij")
    L = EmpiricalLoss(x)(W[..., None, None], b[..., None])
    strength = len(x) / (2 * noise_std**2)
    log_density = (
        -strength * L - (W**2 + b**2) / (2 * prior_std**2) - math.log(2 * math.pi * prior_std**2)
    )
    exact = log_density.flatten().logsumexp(0) + 2 * math.log(float(grid[1] - grid[0]))
    assert float(posterior.log_evidence_stderr) < 0.1
    within(posterior.log_evidence, posterior.log_evidence_stderr, exact)
    probability = log_density.flatten().softmax(0)
    within(*posterior.mean(posterior.loss), (probability * L.flatten()).sum())
    bias = posterior.b[..., 0]
    within(*posterior.mean(bias), (probability * b.flatten()).sum())


@pytest.mark.slow
def test_occupancy_does_not_depend_on_seed_or_particles():
    x = sample(300)[0]
    estimates = []
    for seed, n_particles, n_replicates in ((0, 512, 4), (1, 128, 8)):
        posterior = sample_posterior(
            x, n_particles=n_particles, n_replicates=n_replicates, seed=seed
        )
        labels = quench_labels(quench(posterior.W, posterior.b))
        estimates.append([posterior.mean(labels.k == k) for k in (4, 5, 6)])
        estimates[-1].append((posterior.log_evidence, posterior.log_evidence_stderr))
    for other in estimates[1:]:
        for (p, p_error), (q, q_error) in zip(estimates[0], other, strict=True):
            assert float(abs(p - q)) < ERRORS * float((p_error**2 + q_error**2).sqrt())


def test_a_replicate_of_a_data_set_is_the_same_alone_and_in_company():
    # Ladders of different length: what one does must not depend on when another arrives.
    x = sample(100, n_sets=3) * torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64).view(3, 1, 1)
    settings = dict(n_particles=64, n_moves=2, n_leapfrog=3)
    together = sample_posterior(x, n_replicates=3, **settings)
    assert len(set(together.beta.isfinite().sum(0).flatten().tolist())) > 1
    keys = streams.member_keys(0, range(3), "posterior")
    for d in range(3):
        alone = sample_posterior(x[d : d + 1], n_replicates=2, seed=keys[d : d + 1], **settings)
        assert torch.equal(alone.W[:, :, 0], together.W[:, :2, d])
        assert torch.equal(alone.log_evidence_per_replicate[:, 0],
                           together.log_evidence_per_replicate[:2, d])  # fmt: skip
    assert not torch.equal(together.W[:, 0, 0], together.W[:, 1, 0])
    numpys = sample_posterior(x, n_replicates=3, seed=np.int64(0), **settings)
    assert torch.equal(numpys.W, together.W)


def test_the_torch_path_too_and_it_samples_the_same_posterior():
    x = sample(100, n_sets=2)
    settings = dict(n_particles=128, n_replicates=4, n_moves=3)
    compiled = sample_posterior(EmpiricalLoss(x), **settings)
    direct = sample_posterior(DirectLoss(x), seed=7, **settings)
    alone = sample_posterior(DirectLoss(x[:1]), seed=7, **settings)
    torch.testing.assert_close(alone.log_evidence, direct.log_evidence[:1], rtol=1e-9, atol=0)
    error = (compiled.log_evidence_stderr**2 + direct.log_evidence_stderr**2).sqrt()
    within(compiled.log_evidence, error, direct.log_evidence)


def test_other_shapes_several_active_features_and_importance():
    x = draw(Sparse(3, 0.4), streams.member_keys(0, [0], "data"), 0, 20)[0]
    importance = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    settings = dict(n_hidden=3, n_particles=128, n_replicates=2, n_moves=2)
    posterior = sample_posterior(DirectLoss(x, importance), **settings)
    assert posterior.W.shape == (128, 2, 3, 3)
    torch.testing.assert_close(
        posterior.loss, DirectLoss(x, importance)(posterior.W, posterior.b), rtol=1e-10, atol=1e-12
    )
    # A feature without weight leaves its bias to the prior.
    mean, variance = posterior.b[..., 2].mean(), posterior.b[..., 2].var()
    assert abs(mean) < 6 / math.sqrt(256 / 4) and 0.3 < variance < 3


def test_only_n_over_twice_the_noise_variance_counts():
    one = sample_posterior(PopulationLoss(), n_features=6, n_samples=100, n_particles=64,
                           n_replicates=2, n_moves=1)  # fmt: skip
    other = sample_posterior(PopulationLoss(), n_features=6, n_samples=400, noise_std=2.0,
                             n_particles=64, n_replicates=2, n_moves=1)  # fmt: skip
    assert torch.equal(one.W, other.W)


@pytest.mark.slow
def test_the_population_posterior_crosses_from_5_to_6_between_n_beta_250_and_280():
    n = torch.tensor([500.0, 560.0])
    posterior = sample_posterior(
        PopulationLoss(), n_features=6, n_samples=n, n_particles=1024, n_replicates=6
    )
    labels = quench_labels(quench(posterior.W, posterior.b))
    six, error = posterior.mean(labels.k == 6)
    assert posterior.verdicts == ["ok", "ok"]
    assert float(six[0] + 2 * error[0]) < 0.5 < float(six[1] - 2 * error[1])
    fast, _ = posterior.mean(output_labels(posterior.W, posterior.b).k == 6)
    assert bool((fast > six).all())
    table = shares(posterior, labels, "k")
    assert torch.allclose(sum(p for p, _ in table.values()), torch.ones(2).double())
    assert torch.equal(table["6"][0], six)


def test_learning_coefficient_of_the_6_gon_from_its_posterior():
    posterior = sample_posterior(
        PopulationLoss(), n_features=6, n_samples=1e5, n_particles=256, n_replicates=6
    )
    quenched = quench(posterior.W, posterior.b)
    labels = quench_labels(quenched)
    found = {name: float(p) for name, (p, _) in shares(posterior, labels).items()}
    assert found == {"6": pytest.approx(1.0, abs=1e-12)}
    llc, error = posterior_llc(posterior, PopulationLoss(), quenched, labels.where("6"))
    # A regular point: (3c - 1)/2 and a correction of order 1/n, 500 / n by the evidence.
    assert float(error) < 0.3
    within(llc, error, 8.5)


def test_transitions_from_a_table_of_shares():
    n = torch.tensor([100.0, 200.0, 400.0, 800.0])
    crossing = torch.tensor([150.0, 300.0, 5000.0], dtype=torch.float64)
    odds = (n[:, None] - crossing) / 50
    share = {"5": torch.sigmoid(-odds), "6": torch.sigmoid(odds), "4": torch.zeros(4, 3).double()}
    table = {(t.alpha, t.beta): t for t in bayesian_transitions(n, share, n_draws=10**9)}
    up, down = table["5", "6"], table["6", "5"]
    # Log odds are linear in n here, so that linear interpolation is exact.
    torch.testing.assert_close(up.crossing[:2], crossing[:2])
    assert bool(up.crossing[2].isnan()) and bool(down.crossing.isnan().all())
    assert up.crossed == pytest.approx(2 / 3)
    assert up.location == pytest.approx((225.0, math.sqrt(2) * 75))
    # Two crossings, 150 apart: half of that is the standard error.
    assert up.n_crossed == 2 and up.error == pytest.approx(75 * 12.7062 / 2, rel=1e-4)
    assert down.n_crossed == 0 and math.isnan(down.error)
    torch.testing.assert_close(
        (up.log_odds[-1] - up.log_odds[0])[:2], torch.full((2,), 14.0, dtype=torch.float64)
    )
    # A phase without draws is bounded by half a draw.
    expected = -(share["5"][0, 0] / 0.5e-9).log()
    torch.testing.assert_close(table["5", "4"].log_odds[0, 0], expected)
    with pytest.raises(ValueError, match="ascending"):
        bayesian_transitions(n.flip(0), share, n_draws=10)


def test_verdicts_follow_their_rules():
    single = sample_posterior(sample(20)[0], n_particles=64, n_replicates=1, n_moves=1)
    assert single.verdicts == "unchecked" and bool(single.log_evidence_stderr.isnan())
    # Eight particles and hardly a move: replicates cannot agree on an evidence of -47.
    poor = sample_posterior(sample(600)[0], n_particles=8, n_replicates=4, n_moves=1, n_leapfrog=1)
    assert poor.verdicts == "unconverged"
    assert set(VERDICTS) == {"ok", "unchecked", "unconverged", "diverged"}


def test_a_data_set_whose_loss_is_nan_leaves_the_others_alone():
    def loss(W, b):
        value = PopulationLoss()(W, b)
        value[..., 1] = torch.nan
        return value

    settings = dict(n_features=3, n_particles=64, n_replicates=2, n_moves=2)
    spoilt = sample_posterior(loss, n_samples=torch.tensor([50.0, 50.0]), **settings)
    assert spoilt.verdicts[1] == "diverged" and bool(spoilt.log_evidence[1].isnan())
    whole = sample_posterior(
        lambda W, b: PopulationLoss()(W, b), n_samples=torch.tensor([50.0]), **settings
    )
    torch.testing.assert_close(spoilt.log_evidence[0], whole.log_evidence[0])


def test_no_data_leave_the_prior():
    prior = sample_posterior(PopulationLoss(), n_samples=0, n_features=6, prior_std=2.0, n_moves=1)
    assert float(prior.log_evidence) == 0 and len(prior.beta) == 1
    # Variance 4 of so many numbers; those of one particle's trajectory are its own.
    assert float(prior.W.var()) == pytest.approx(4, abs=6 * 4 * math.sqrt(2 / prior.W.numel()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_std": 0.0}, "noise_std must be positive"),
        ({"prior_std": -1.0}, "prior_std must be positive"),
        ({"n_particles": 0}, "n_particles must be positive"),
        ({"n_particles": 1}, "n_particles must be at least 2"),  # R-hat needs a variance
        ({"ess": 1.0}, "ess must lie in"),
        ({"n_samples": -5.0}, "n_samples must be >= 0"),
        ({"n_features": 5}, "n_features=5, but the loss's data have 6"),
        ({"n_samples": torch.ones(3)}, "n_samples has shape"),
        ({"seed": np.array([1, 2])}, "seed must be an integer, or uint64 stream keys"),
        ({"seed": streams.member_keys(0, [1, 2, 3], "x")}, r"keys of shape \(2,\)"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        sample_posterior(sample(20, n_sets=2), **change)


def test_a_loss_that_is_random_from_call_to_call_is_refused():
    g = torch.Generator().manual_seed(0)

    def loss(W, b):
        return b.square().sum(-1) * torch.rand((), generator=g)

    with pytest.raises(ValueError, match="loss differs from call to call"):
        sample_posterior(loss, n_samples=3, n_features=2)


def test_inference_mode_changes_nothing():
    settings = dict(n_samples=3, n_features=2, n_particles=8, n_replicates=2, n_moves=1)
    expected = sample_posterior(lambda W, b: b.square().sum(-1) + W.sum((-1, -2)) ** 2, **settings)
    with torch.inference_mode():
        found = sample_posterior(lambda W, b: b.square().sum(-1) + W.sum((-1, -2)) ** 2, **settings)
    assert torch.equal(found.W, expected.W)


def test_a_loss_without_data_needs_its_sizes():
    with pytest.raises(ValueError, match="pass n_samples"):
        sample_posterior(PopulationLoss(), n_features=3)
    with pytest.raises(ValueError, match="pass n_features"):
        sample_posterior(PopulationLoss(), n_samples=3)
    with pytest.raises(ValueError, match="one value for each"):
        sample_posterior(lambda W, b: W.sum(), n_samples=3, n_features=2)
