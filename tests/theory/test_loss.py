"""The losses against quadrature, Monte Carlo, the paper's formula, the direct sum and autograd."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from kgon.theory.critical import critical_points
from kgon.theory.loss import (
    DirectLoss,
    EmpiricalLoss,
    PopulationLoss,
    importance_weights,
    population_loss,
)

SHAPES = list(itertools.product(range(1, 5), range(1, 9)))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def parameters(m, c, *batch, seed=0):
    """Random parameters with what is special among them: zero columns, a pair of equal and a pair
    of orthogonal columns, b = 0, biases of both signs, outputs that are always or never active."""
    g = generator(seed)
    W = torch.randn(*batch, m, c, generator=g, dtype=torch.float64)
    b = 0.6 * torch.randn(*batch, c, generator=g, dtype=torch.float64)
    W[..., torch.rand(c, generator=g) < 0.2] = 0
    b[..., torch.rand(c, generator=g) < 0.2] = 0
    b[..., torch.rand(c, generator=g) < 0.1] *= 10
    if c > 2:
        W[..., 1] = W[..., 0]
    if c > 4 and m > 1:
        W[..., 3], W[..., 4] = 0, 0
        W[..., 0, 3] = 1
        W[..., 1, 4] = 1
    return W, b


def cases(m, c):
    """Five parameters of a shape, and the origin."""
    W, b = zip(*(parameters(m, c, seed=seed) for seed in range(5)), strict=True)
    zero = torch.zeros(m, c, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    return torch.stack([*W, zero[0]]), torch.stack([*b, zero[1]])


def sample(n, c, *batch, seed=0, signed=False):
    """n single-feature inputs; amplitudes of both signs if signed."""
    g = generator(seed)
    feature = torch.randint(c, (*batch, n, 1), generator=g)
    amplitude = torch.rand(*batch, n, 1, generator=g, dtype=torch.float64)
    if signed:
        amplitude = 2 * amplitude - 1
    return torch.zeros(*batch, n, c, dtype=torch.float64).scatter_(-1, feature, amplitude)


def several(n, c, *batch, seed=0):
    """n inputs with any number of active features."""
    g = generator(seed)
    x = torch.rand(*batch, n, c, generator=g, dtype=torch.float64)
    return x * (torch.rand(*batch, n, c, generator=g) < 0.4)


def direct_sum(x, W, b, importance=None):
    """(1/n) sum_x sum_i I_i (x_i - ReLU(W^T W x + b)_i)^2, element by element of the batch."""
    residual = x - (x @ W.T @ W + b).relu()
    weight = torch.ones_like(b) if importance is None else importance
    return (weight * residual**2).sum(-1).mean(-1)


def autograd(loss, W, b):
    W, b = W.clone().requires_grad_(), b.clone().requires_grad_()
    return torch.autograd.grad(loss(W, b).sum(), (W, b))


def quadrature(W, b, importance=None):
    """E over features by a sum, over amplitudes by adaptive quadrature between the kinks."""
    W, b = W.numpy(), b.numpy()
    c = len(b)
    A = W.T @ W
    weight = np.ones(c) if importance is None else importance.numpy()
    total = 0.0
    for i, j in itertools.product(range(c), range(c)):
        kink = [-b[i] / A[i, j]] if A[i, j] != 0 and 0 < -b[i] / A[i, j] < 1 else []
        for low, high in itertools.pairwise([0.0, *kink, 1.0]):
            value, _ = quad(
                lambda a, i=i, j=j: ((i == j) * a - max(a * A[i, j] + b[i], 0.0)) ** 2,
                low,
                high,
                epsabs=0,
                epsrel=1e-13,
            )
            total += weight[i] * value / c
    return total


def lemma(W, b):
    """Lemma 3.1 as printed: L = (1 / 3c) sum_i H_i, in plain floats."""
    c = len(b)
    A = [[float(W[:, i] @ W[:, j]) for j in range(c)] for i in range(c)]
    total = 0.0
    for i in range(c):
        y, ll = float(b[i]), A[i][i]
        others = [A[i][j] for j in range(c) if j != i]
        N = (1 - ll) ** 2 - 3 * (1 - ll) * y + 3 * y**2
        if y <= 0:
            total += sum((a + y) ** 3 / a for a in others if a > 0 and -a <= y)
            total += y**3 / ll**2 + y**3 / ll + N if ll > 0 and -ll <= y else 1
        else:
            total += N
            total += sum(-(y**3) / a if -a > y else a**2 + 3 * a * y + 3 * y**2 for a in others)
    return total / (3 * c)


@pytest.mark.parametrize(("m", "c"), SHAPES)
def test_population_loss_matches_quadrature(m, c):
    W, b = cases(m, c)
    expected = [quadrature(*w) for w in zip(W, b, strict=True)]
    # Integrands are parabolas between the kinks: quadrature is exact up to rounding.
    assert population_loss(W, b).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("m", "c"), SHAPES)
def test_population_loss_is_the_papers_lemma(m, c):
    W, b = cases(m, c)
    # The printed form cancels: y^3 / l^4 for short columns, near 1e3 times their sum at worst.
    expected = [lemma(*w) for w in zip(W, b, strict=True)]
    assert population_loss(W, b).tolist() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("m", "c"), [(1, 1), (1, 3), (2, 6), (3, 5), (4, 8)])
def test_population_loss_matches_monte_carlo(m, c):
    n = 50_000
    x = sample(n, c, seed=m)
    for W, b in zip(*cases(m, c), strict=True):
        squares = (x - (x @ W.T @ W + b).relu()).square().sum(-1)
        stderr = float(squares.std()) / n**0.5
        assert abs(float(squares.mean() - population_loss(W, b))) < 5 * stderr + 1e-15


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("m", "c"), SHAPES)
def test_empirical_and_direct_loss_are_the_direct_sum(m, c, signed):
    x = sample(200, c, seed=c, signed=signed)
    W, b = cases(m, c)
    expected = [float(direct_sum(x, *w)) for w in zip(W, b, strict=True)]
    assert EmpiricalLoss(x)(W, b).tolist() == pytest.approx(expected, rel=1e-12)
    assert DirectLoss(x)(W, b).tolist() == pytest.approx(expected, rel=1e-12)


def test_direct_loss_takes_several_active_features():
    x = several(200, 6)
    W, b = cases(3, 6)
    expected = [float(direct_sum(x, *w)) for w in zip(W, b, strict=True)]
    assert DirectLoss(x)(W, b).tolist() == pytest.approx(expected, rel=1e-12)


def losses(c):
    importance = 0.8 ** torch.arange(c, dtype=torch.float64)
    return {
        "population": PopulationLoss(),
        "population, importance": PopulationLoss(importance),
        "empirical": EmpiricalLoss(sample(300, c)),
        "empirical, importance": EmpiricalLoss(sample(300, c), importance),
        "empirical, signed": EmpiricalLoss(sample(300, c, signed=True)),
        "direct": DirectLoss(several(300, c)),
        "direct, importance": DirectLoss(several(300, c), importance),
    }


@pytest.mark.parametrize("name", losses(3))
@pytest.mark.parametrize(("m", "c"), [(1, 1), (1, 4), (2, 6), (4, 3), (3, 8)])
def test_value_and_gradient_agree_with_autograd(name, m, c):
    """In closed form and by backpropagation through the loss, kinks and zero columns included."""
    loss = losses(c)[name]
    W, b = cases(m, c)
    value, dW, db = loss.value_and_grad(W, b)
    torch.testing.assert_close(value, loss(W, b), rtol=1e-12, atol=0)
    by_autograd = autograd(loss, W, b)
    torch.testing.assert_close((dW, db), by_autograd, rtol=1e-11, atol=1e-13)
    if hasattr(loss, "grad"):
        torch.testing.assert_close(loss.grad(W, b), (dW, db), rtol=0, atol=0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("m", "c"), [(1, 1), (1, 4), (2, 6), (4, 3), (3, 8)])
def test_gradients_are_those_of_the_direct_sum(m, c, signed):
    x = sample(300, c, signed=signed)
    W, b = cases(m, c)
    for loss in (EmpiricalLoss(x), DirectLoss(x)):
        _, dW, db = loss.value_and_grad(W, b)
        for i in range(len(W)):
            expected = autograd(lambda W, b: direct_sum(x, W, b), W[i], b[i])
            torch.testing.assert_close((dW[i], db[i]), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("m", "c"), [(1, 1), (2, 3), (2, 6), (4, 5)])
def test_population_gradient_is_that_of_finite_differences(m, c):
    W, b = cases(m, c)
    _, dW, db = PopulationLoss().value_and_grad(W, b)
    h = 1e-6
    for part, gradient in ((W, dW), (b, db)):
        for index in np.ndindex(*part.shape[1:]):
            at = (slice(None), *index)
            kept = part[at].clone()
            part[at] = kept + h
            up = population_loss(W, b)
            part[at] = kept - h
            down = population_loss(W, b)
            part[at] = kept
            # The loss has a kink in b_i at W_i = 0, b_i = 0, and nowhere else (next test).
            smooth = (W.abs().sum(1) + b.abs() > 0).all(-1)
            # C^1 with curvatures up to 6 b_i^2 or 12 l_i^2, of the order of 100: h times that.
            torch.testing.assert_close(
                ((up - down) / (2 * h))[smooth], gradient[at][smooth], rtol=1e-7, atol=2e-4
            )


def test_the_one_kink_is_a_zero_column_without_bias():
    """There the loss falls as -b / c for b > 0 and is flat for b < 0, 1 - 3b + 3 c b^2 against 1;
    the gradient takes the side of a ReLU at 0, as backpropagation does."""
    W, c = torch.zeros(2, 5, dtype=torch.float64), 5
    b = torch.zeros(3, 5, dtype=torch.float64)
    b[1, 2], b[2, 2] = 1e-3, -1e-3
    at, right, left = population_loss(W.expand(3, 2, 5), b).tolist()
    assert (right - at) / 1e-3 == pytest.approx(-1 / c + 1e-3, rel=1e-10)
    assert left == at
    by_autograd = autograd(DirectLoss(sample(50, c)), W, b[0])
    assert not by_autograd[1].any() and not PopulationLoss().grad(W, b[0])[1].any()


def test_second_derivatives_where_the_loss_is_smooth():
    """Hessians from `grad`, by finite differences, at the 5-gon and at random parameters."""
    points = [(p.W, p.b) for p in critical_points(6) if p.k >= 5]
    g = generator(0)
    points.append(
        (
            torch.randn(2, 4, generator=g, dtype=torch.float64),
            torch.randn(4, generator=g, dtype=torch.float64),
        )
    )
    for W, b in points:
        inputs = (W.clone().requires_grad_(), b.clone().requires_grad_())
        torch.autograd.gradcheck(PopulationLoss().grad, inputs)
        torch.autograd.gradgradcheck(PopulationLoss(), inputs)


def test_gradients_are_finite_and_right_at_zero_columns_and_zero_biases():
    """At W = 0, b = 0 nothing is active: the loss is E a^2 = 1/3 for any n_features, the gradient
    0; with b = beta > 0 for one feature, its output is beta always: dL/db = 2 beta - 1 / c."""
    W, b = torch.zeros(2, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    value, dW, db = PopulationLoss().value_and_grad(W, b)
    assert float(value) == pytest.approx(1 / 3, rel=1e-15)
    assert not dW.any() and not db.any()
    b[2] = 0.3
    _, dW, db = PopulationLoss().value_and_grad(W, b)
    assert not dW.any()
    assert db.tolist() == pytest.approx([0, 0, 0.6 - 0.2, 0, 0], abs=1e-15)


@pytest.mark.parametrize("c", [3, 6])
@pytest.mark.parametrize("bias", [-2.0, -0.1, 0.0])
def test_a_dead_feature_adds_a_third_over_c(c, bias):
    """Cor. D.2: exactly 1 to 3 c L."""
    W, b = parameters(2, c - 1)
    b = -b.abs()  # with positive ones the live outputs would answer to the new feature as well
    before = 3 * (c - 1) * population_loss(W, b)
    W = torch.nn.functional.pad(W, (0, 1))
    b = torch.nn.functional.pad(b, (0, 1), value=bias)
    assert float(3 * c * population_loss(W, b)) == pytest.approx(float(before) + 1, rel=1e-13)


@pytest.mark.parametrize("c", [3, 6])
@pytest.mark.parametrize("bias", [0.01, 1 / 12, 0.5, 2.0])
def test_a_dead_feature_with_positive_bias(c, bias):
    """It adds 1 - 3 b + 3 c b^2, least at b = 1 / (2c)."""
    W, b = parameters(2, c)
    W[:, -1] = 0
    b[-1] = -1
    without = population_loss(W, b)
    b[-1] = bias
    added = 3 * c * (population_loss(W, b) - without)
    assert float(added) == pytest.approx(-3 * bias + 3 * c * bias**2, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize(("m", "c"), [(1, 3), (2, 6), (3, 8)])
def test_rotations_reflections_and_permutations_change_nothing(m, c):
    g = generator(1)
    W, b = cases(m, c)
    Q = torch.linalg.qr(torch.randn(len(W), m, m, generator=g, dtype=torch.float64)).Q
    order = torch.randperm(c, generator=g)
    x = sample(300, c)
    importance = torch.rand(c, generator=g, dtype=torch.float64)
    # Where A is 0 up to rounding only, an output with b = 0 is weighed with 1e-16 at most.
    for loss, permuted in (
        (PopulationLoss(), PopulationLoss()),
        (PopulationLoss(importance), PopulationLoss(importance[order])),
        (EmpiricalLoss(x), EmpiricalLoss(x[:, order])),
        (DirectLoss(x), DirectLoss(x[:, order])),
    ):
        torch.testing.assert_close(loss(Q @ W, b), loss(W, b), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(
            permuted(W[..., order], b[:, order]), loss(W, b), rtol=1e-12, atol=1e-15
        )


@st.composite
def any_parameters(draw):
    """W (m, c) and b (c), with zeros, equal entries and both signs among them."""
    m, c = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    entries = st.floats(-2, 2).map(lambda x: round(x, 3)) | st.sampled_from([0.0, 0.5, 1.0, -1.0])
    flat = draw(st.lists(entries, min_size=(m + 1) * c, max_size=(m + 1) * c))
    w = torch.tensor(flat, dtype=torch.float64)
    return w[c:].view(m, c), w[:c]


@settings(max_examples=100, deadline=None)
@given(any_parameters(), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_the_population_loss_of_any_parameter_is_invariant(parameters, seed, random):
    """Under O(n_hidden), and under permutations of W's columns together with b."""
    W, b = parameters
    m, c = W.shape
    Q = torch.linalg.qr(torch.randn(m, m, generator=generator(seed), dtype=torch.float64)).Q
    order = random.sample(range(c), c)
    got = torch.stack([population_loss(Q @ W, b), population_loss(W[:, order], b[order])])
    # Rounding of squared outputs of at most (4 * 2 * 2 + 2)^2.
    torch.testing.assert_close(got, population_loss(W, b).expand(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("extra", [(), (1,), (2,), (3, 2)])
def test_a_data_set_for_each_member(batch, extra):
    """Data sets (*batch); parameters (*extra, *batch): the last axes belong to the data."""
    m, c = 2, 5
    x = sample(60, c, *batch)
    W, b = parameters(m, c, *extra, *batch)
    importance = torch.rand(*batch, c, generator=generator(2), dtype=torch.float64)
    for kind, weights in itertools.product((EmpiricalLoss, DirectLoss), (None, importance)):
        loss = kind(x, weights)
        value, dW, db = loss.value_and_grad(W, b)
        assert value.shape == (*extra, *batch)
        torch.testing.assert_close(loss(W, b), value, rtol=1e-12, atol=0)
        for index in np.ndindex(*extra, *batch):
            own = index[len(extra) :]
            weight = None if weights is None else weights[own]
            at = (W[index], b[index])
            expected = direct_sum(x[own], *at, weight)
            assert float(value[index]) == pytest.approx(float(expected), rel=1e-12)
            gradient = autograd(lambda W, b, o=own, w=weight: direct_sum(x[o], W, b, w), *at)
            torch.testing.assert_close((dW[index], db[index]), gradient, rtol=1e-11, atol=1e-13)


def test_importance_weighs_output_coordinates():
    W, b = cases(2, 6)
    importance = torch.rand(6, generator=generator(3), dtype=torch.float64)
    expected = [quadrature(*w, importance) for w in zip(W, b, strict=True)]
    assert population_loss(W, b, importance).tolist() == pytest.approx(expected, rel=1e-12)
    x = sample(200, 6)
    expected = [float(direct_sum(x, *w, importance)) for w in zip(W, b, strict=True)]
    assert EmpiricalLoss(x, importance)(W, b).tolist() == pytest.approx(expected, rel=1e-12)
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(population_loss(W, b, ones), population_loss(W, b), rtol=0, atol=0)


def test_importance_weights_are_the_powers_of_a_number_or_as_given():
    assert importance_weights(0.7, 6).tolist() == [0.7**i for i in range(6)]
    assert importance_weights([1, 0.3, 0], 3).tolist() == [1.0, 0.3, 0.0]
    assert importance_weights(None, 3) is None


@pytest.mark.parametrize("wrong", ["abc", -1, [1, 2], [1, 2, "c"], [1, 2, math.nan], [1, 2, -3]])
def test_importance_weights_are_numbers_one_a_feature(wrong):
    with pytest.raises(ValueError, match=r"model.importance must be null, a number >= 0, or"):
        importance_weights(wrong, 3)


def test_importance_of_its_own_for_each_member():
    W, b = cases(2, 6)
    importance = torch.rand(len(W), 6, generator=generator(3), dtype=torch.float64)
    together = population_loss(W, b, importance)
    single = [population_loss(*w) for w in zip(W, b, importance, strict=True)]
    torch.testing.assert_close(together, torch.stack(single), rtol=1e-14, atol=0)


def test_the_empirical_loss_tends_to_the_population_loss():
    """Amplitudes at the midpoints of n intervals, for each feature: the midpoint rule, whose error
    for an integrand with second derivative D is at most D / (24 n^2), plus kinks of order n^-3;
    D = 2 sum_ij (delta_ij - A_ij)^2 / c."""
    c, n = 5, 2000
    a = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = (a[:, None, None] * torch.eye(c, dtype=torch.float64)).reshape(-1, c)
    W, b = cases(2, c)
    D = 2 * (torch.eye(c) - W.mT @ W).square().sum((-1, -2)) / c
    error = (EmpiricalLoss(x)(W, b) - population_loss(W, b)).abs()
    assert bool((error <= D / (24 * n**2) * 1.5 + 1e-15).all())


def test_rows_of_zeros_and_features_that_never_occur():
    x = sample(50, 6)
    x[:10] = 0
    x[x[:, 3] != 0] = 0
    W, b = cases(2, 6)
    expected = [float(direct_sum(x, *w)) for w in zip(W, b, strict=True)]
    assert EmpiricalLoss(x)(W, b).tolist() == pytest.approx(expected, rel=1e-12)


def test_amplitudes_at_a_threshold_do_not_matter():
    """a A_11 + b_1 = 0 exactly, for repeated amplitudes; the output is 0 from either side."""
    x = torch.tensor([[0.5, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    W = torch.eye(2, dtype=torch.float64)
    b = torch.tensor([-0.5, 0.0], dtype=torch.float64)
    # Rows 1 and 2: (0.5 - 0)^2; row 3: (1 - 0.5)^2; row 4: 0.
    assert float(EmpiricalLoss(x)(W, b)) == pytest.approx(0.75 / 4, rel=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmpiricalLoss(several(20, 4)), "several active features"),
        (lambda: EmpiricalLoss(torch.tensor([[torch.nan, 0.0]])), "NaN or infinite"),
        (lambda: EmpiricalLoss(torch.tensor([[torch.inf, 0.0]])), "NaN or infinite"),
        (lambda: EmpiricalLoss(torch.zeros(3)), "n_samples"),
        (lambda: EmpiricalLoss(torch.zeros(0, 3)), "n_samples"),
        (lambda: EmpiricalLoss(torch.zeros(5, 3), torch.ones(4)), "importance"),
        (lambda: DirectLoss(torch.zeros(5, 3), torch.ones(4)), "importance"),
        (lambda: population_loss(torch.zeros(2, 5), torch.zeros(6)), "W must be"),
        (lambda: population_loss(torch.zeros(5), torch.zeros(5)), "W must be"),
        (lambda: population_loss(torch.zeros(2, 5), torch.zeros(5), torch.ones(4)), "importance"),
        (lambda: EmpiricalLoss(torch.zeros(5, 3))(torch.zeros(2, 4), torch.zeros(4)), "features"),
        (lambda: DirectLoss(torch.zeros(5, 3))(torch.zeros(2, 4), torch.zeros(3)), "W must be"),
        (
            lambda: EmpiricalLoss(sample(5, 3, 4))(torch.zeros(3, 2, 3), torch.zeros(3, 3)),
            "batch axes",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "loss", [PopulationLoss(), EmpiricalLoss(torch.eye(3)), DirectLoss(torch.eye(3))]
)
@pytest.mark.parametrize("other", [torch.int64, torch.bool, torch.float32])
def test_integers_are_taken_as_floating_point_numbers(loss, other):
    W, b = torch.eye(3), torch.zeros(3)
    for w in ((W.to(other), b.long()), (W, b.to(other)), (W.to(other), b)):
        for found, expected in zip(
            (loss(*w), *loss.value_and_grad(*w)), (loss(W, b), *loss.value_and_grad(W, b)),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(found, expected) and found.dtype == torch.float32
    assert float(population_loss(W.to(other), b.long())) == 0


@pytest.mark.parametrize("size", [0.0, 1e-22, 1e-15, 1e-10, 1e-8, 1e-4])
@pytest.mark.parametrize("bias", [-3.0, -1e-5, 0.0, 0.1, 50.0])
def test_gradients_in_float32_are_numbers_however_short_a_column_is(size, bias):
    W = torch.tensor([[1.0, 0.0, size], [0.0, 1.0, size]], requires_grad=True)
    b = torch.tensor([0.1, -0.1, bias], requires_grad=True)
    found = torch.autograd.grad(population_loss(W, b), (W, b))
    exact = [p.detach().double().requires_grad_() for p in (W, b)]
    expected = torch.autograd.grad(population_loss(*exact), exact)
    for one, other in zip(found, expected, strict=True):
        # A few hundred terms of at most 50^2, rounded at 2^-24.
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [EmpiricalLoss, DirectLoss])
@pytest.mark.parametrize("shape", [(), (5,), (5, 0), (0, 5), (2, 5, 0)])
def test_inputs_without_samples_or_features_are_refused(loss, shape):
    with pytest.raises(ValueError, match=rf"n_features >= 1\), got {re.escape(str(shape))}"):
        loss(torch.zeros(shape))


def test_parameters_without_features_are_refused():
    with pytest.raises(ValueError, match=r"n_features >= 1\) and b"):
        population_loss(torch.zeros(2, 0), torch.zeros(0))
