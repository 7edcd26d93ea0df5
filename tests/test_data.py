import pytest
import torch
from scipy import stats

from kgon import streams
from kgon.compiled.direct_loss import CompiledDirectLoss
from kgon.data import REPORTED, WATCHED, Pairs, SingleFeature, Sparse, draw
from kgon.theory.loss import EstimatedLoss, population_loss
from kgon.training.datamodule import EnsembleData

KEYS = streams.member_keys(0, range(4), "data")
DISTRIBUTIONS = [SingleFeature(6), SingleFeature(1), Sparse(6, 0.0), Sparse(3, 0.9),
                 Pairs(4, 0.5, together=True), Pairs(6, 0.9, together=False)]  # fmt: skip


def ensemble(distribution=None, members=(0, 1, 2), n_samples=20, batch_size=5, block=7):
    return EnsembleData(
        distribution or SingleFeature(4),
        n_samples,
        batch_size,
        seed=3,
        members=members,
        stops=[3, 25, 40],
        block=block,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_inputs_lie_in_the_unit_cube_and_a_larger_sample_extends_a_smaller(distribution):
    x = draw(distribution, KEYS, 0, 300)
    assert x.shape == (4, 300, distribution.n_features)
    assert ((x >= 0) & (x <= 1)).all()
    assert torch.equal(x[:, 100:], draw(distribution, KEYS, 100, 200))


def test_single_feature_has_one_uniform_feature_and_a_uniform_amplitude():
    x = draw(SingleFeature(6), KEYS, 0, 5000).flatten(0, 1)
    assert ((x > 0).sum(-1) == 1).all()
    assert stats.chisquare((x > 0).sum(0).numpy()).pvalue > 1e-4
    assert stats.kstest(x.sum(-1).numpy(), "uniform").pvalue > 1e-4


def test_sparse_features_are_independent_with_the_stated_probability():
    x = draw(Sparse(3, 0.9), KEYS, 0, 20000).flatten(0, 1)
    active = (x > 0).double()
    error = (0.9 * 0.1 / len(x)) ** 0.5
    assert (active.mean(0) - 0.1).abs().max() < 5 * error
    assert abs(float(active[:, 0].mul(active[:, 1]).mean()) - 0.01) < 5 * 0.1 / len(x) ** 0.5
    assert stats.kstest(x[x > 0].numpy(), "uniform").pvalue > 1e-4


def test_sparse_given_activity_tends_to_single_feature_as_sparsity_tends_to_one():
    # Of inputs with any activity, a share (n - 1)(1 - S)/2 to first order has two features or more.
    n, shares = 4, []
    for sparsity in (0.9, 0.99, 0.999):
        x = draw(Sparse(n, sparsity), KEYS, 0, 100_000).flatten(0, 1)
        x = x[(x > 0).any(-1)]
        several = float(((x > 0).sum(-1) > 1).double().mean())
        expected = 1 - n * (1 - sparsity) * sparsity ** (n - 1) / (1 - sparsity**n)
        assert abs(several - expected) < 5 * (expected / len(x)) ** 0.5
        shares.append(several)
    assert shares[0] > 5 * shares[1] > 25 * shares[2]
    single = x[(x > 0).sum(-1) == 1]
    assert stats.chisquare((single > 0).sum(0).numpy()).pvalue > 1e-4
    assert stats.kstest(single.sum(-1).numpy(), "uniform").pvalue > 1e-4


def test_expected_loss_of_sparse_inputs_tends_to_the_closed_form():
    # E|x - f|^2 at sparsity S is P(none) |f(0)|^2 + P(one) L + ..., with b < 0: f(0) = 0.
    torch.manual_seed(0)
    W, b, sparsity = torch.randn(2, 4).double(), -torch.rand(4).double(), 0.999
    keys = streams.member_keys(1, range(40), "data")
    x = draw(Sparse(4, sparsity), keys, 0, 50_000).flatten(0, 1)
    losses = (x - (x @ W.mT @ W + b).relu()).square().sum(-1)
    p_one = 4 * (1 - sparsity) * sparsity**3
    several = 6 * (1 - sparsity) ** 2 * 10  # two features: losses well below 10 each
    error = 5 * float(losses.std()) / len(x) ** 0.5
    assert abs(float(losses.mean()) - p_one * float(population_loss(W, b))) < error + several


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, "high", None, [0.1, 0.2, 1.0]])
def test_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"data\.sparsity.*\[0, 1\)"):
        Sparse(3, sparsity)


def test_features_may_differ_in_sparsity():
    each = [0.2, 0.9, 0.99]
    x = draw(Sparse(3, each), KEYS, 0, 100_000).flatten(0, 1)
    share, p = (x > 0).double().mean(0), 1 - torch.tensor(each).double()
    assert ((share - p).abs() <= 5 * (p * (1 - p) / len(x)).sqrt()).all()
    with pytest.raises(ValueError, match=r"data\.sparsity must be one number or 4, got 3"):
        Sparse(4, each)


def test_every_epoch_visits_every_sample_once():
    data = ensemble()
    batches = data.minibatches(0, 8)
    for epoch in (batches.order[:, :4], batches.order[:, 4:]):
        assert torch.equal(epoch.flatten(1).sort(-1).values, torch.arange(20).expand(3, -1))
    assert torch.equal(batches.step(2)[1], data.x[1, batches.order[1, 2].long()])


@pytest.mark.parametrize("n_samples", [20, None])
def test_a_steps_inputs_depend_on_seed_member_and_step_alone(n_samples):
    data, alone = ensemble(n_samples=n_samples), ensemble(members=(1,), n_samples=n_samples)
    whole = data.minibatches(0, 40)
    for start, end in ((0, 40), (3, 9), (17, 18), (38, 40)):
        part, own = data.minibatches(start, end), alone.minibatches(start, end)
        for t in range(end - start):
            assert torch.equal(part.step(t), whole.step(start + t))
            assert torch.equal(own.step(t)[0], whole.step(start + t)[1])


def test_blocks_end_at_every_stop_and_go_on_from_anywhere():
    data = ensemble()
    ends = torch.tensor([block.n_steps for block in data.blocks(0)]).cumsum(0).tolist()
    assert {3, 25, 40} <= set(ends) and ends[-1] == 40
    rest = list(data.blocks(19))
    assert sum(block.n_steps for block in rest) == 21


def test_members_have_data_of_their_own():
    x = ensemble().x
    assert not torch.equal(x[0], x[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 21}, "batch_size=21 is larger than .* n_samples=20"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "half"}, "batch_size must be at least 1, or full"),
        ({"batch_size": "full", "n_samples": None}, "batch_size=full needs a data set"),
        ({"n_samples": 0}, "n_samples"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ensemble(**change)


def test_pairs_are_active_together_or_apart():
    together = draw(Pairs(4, 0.7, together=True), KEYS, 0, 20_000).flatten(0, 1) > 0
    apart = draw(Pairs(4, 0.7, together=False), KEYS, 0, 20_000).flatten(0, 1) > 0
    assert torch.equal(together[:, 0::2], together[:, 1::2])
    assert not (apart[:, 0::2] & apart[:, 1::2]).any()
    # 80,000 inputs: four standard errors of a share of 0.3 are 0.0065. The pairs are independent.
    pair = apart[:, 0::2] | apart[:, 1::2]
    for share, expected in ((together[:, 0], 0.3), (pair[:, 1], 0.3), (apart[:, 0], 0.15),
                            (apart[:, 3], 0.15), (pair.all(-1), 0.09)):  # fmt: skip
        assert abs(share.double().mean() - expected) < 0.0065


def test_pairs_need_an_even_number_of_features():
    with pytest.raises(ValueError, match=r"an even data.n_features, got 5"):
        Pairs(5, 0.9, together=True)


@pytest.mark.parametrize("distribution", [Sparse(5, 0.9), Sparse(3, 0.0), Sparse(2, 0.9999),
                                          Sparse(3, [0.2, 0.9, 0.99]),
                                          Pairs(4, 0.8, together=True),
                                          Pairs(6, 0.5, together=False)])  # fmt: skip
def test_active_inputs_are_those_other_than_zero(distribution):
    """Against a plain draw of which the zeros are left out, by each feature's mean and by pairs of
    features: five standard errors of the difference."""
    x, p_active = distribution.active_inputs(KEYS[:1], 100_000)
    plain = draw(distribution, KEYS, 0, 100_000).flatten(0, 1)
    active = (plain != 0).any(-1)
    assert (x != 0).any(-1).all()
    assert abs(active.double().mean() - p_active) <= 5 * (p_active * (1 - p_active) / 4e5) ** 0.5
    plain = plain[active]
    for statistic in (lambda x: x, lambda x: x * x.roll(1, -1), lambda x: x.square().sum(-1)):
        one, other = statistic(x), statistic(plain)
        error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error).all()


@pytest.mark.parametrize("distribution", [Sparse(5, 0.8), Sparse(5, 0.99),
                                          Pairs(4, 0.9, together=False)])  # fmt: skip
def test_reported_losses_are_within_their_errors_of_a_far_larger_sample(distribution):
    """Eight times the inputs, of another stream, at parameters that are not fitted to either."""
    n = distribution.n_features
    generator = torch.Generator().manual_seed(0)
    W = 0.7 * torch.randn(4, 2, n, generator=generator, dtype=torch.float64)
    b = 0.1 * torch.randn(4, n, generator=generator, dtype=torch.float64)
    importance = 0.9 ** torch.arange(n, dtype=torch.float64)
    loss = distribution.reported_loss(importance)
    value, stderr = loss.with_stderr(W, b)
    assert (stderr < 0.01 * value).all()
    torch.testing.assert_close(value, loss(W, b), rtol=1e-12, atol=0)
    x, p_active = distribution.active_inputs(KEYS[:1], 8 * REPORTED)
    truth, its_stderr = EstimatedLoss(x, p_active, importance).with_stderr(W, b)
    assert ((value - truth).abs() <= 4 * (stderr**2 + its_stderr**2).sqrt()).all()
    watched = distribution.expected_loss(importance)(W, b)
    expected = stderr * (REPORTED / WATCHED) ** 0.5
    assert ((watched - truth).abs() <= 4 * (expected**2 + its_stderr**2).sqrt()).all()


def test_estimated_losses_count_zero_inputs_exactly():
    loss = Sparse(3, 0.999).expected_loss(None)
    W, b = torch.zeros(1, 2, 3).double(), torch.tensor([[0.5, -1.0, 0.0]]).double()
    active = loss.of_each(W, b)[0, :-1].mean()
    assert loss(W, b)[0] == pytest.approx(0.999**3 * 0.25 + (1 - 0.999**3) * float(active))
    torch.testing.assert_close(CompiledDirectLoss(loss)(W, b), loss(W, b))
