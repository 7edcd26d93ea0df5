"""Critical points against the paper's equations, and against the loss itself."""

import itertools
import math

import pytest
import torch

from kgon.theory.critical import (
    CriticalPoint,
    critical_point,
    critical_points,
    format_label,
    parse_label,
)
from kgon.theory.loss import PopulationLoss, population_loss

ALL = [*range(1, 14), 20]


def gradient_norm(W, b):
    return max(float(part.abs().max()) for part in PopulationLoss().grad(W, b))


def regular(k, length, bias):
    """Any regular k-gon: length and bias (*batch), n_features = k."""
    length, bias = torch.as_tensor(length).double(), torch.as_tensor(bias).double()
    angle = 2 * math.pi / k * torch.arange(k, dtype=torch.float64)
    W = length[..., None, None] * torch.stack([angle.cos(), angle.sin()])
    return W, bias[..., None].expand(*bias.shape, k)


def hessian(point: CriticalPoint):
    """By central differences of the closed gradient, column by column."""
    w = torch.cat([point.W.flatten(), point.b])
    eps = 1e-6 * torch.eye(w.numel(), dtype=w.dtype)

    def gradient(w):
        W = w[:, : point.W.numel()].reshape(-1, *point.W.shape)
        return torch.cat(
            [g.flatten(1) for g in PopulationLoss().grad(W, w[:, point.W.numel() :])], 1
        )

    H = (gradient(w + eps) - gradient(w - eps)) / 2e-6
    return (H + H.mT) / 2


@pytest.mark.parametrize("n_features", ALL)
def test_gradient_vanishes_at_every_critical_point(n_features):
    for point in critical_points(n_features):
        assert gradient_norm(point.W, point.b) < 1e-12, point.label
        assert point.W.shape == (2, n_features) and point.W.dtype == torch.float64
        assert point.loss == float(population_loss(point.W, point.b))
        assert critical_point(point.label, n_features).loss == point.loss


def test_the_paper_counts_18_families_for_six_features():
    four = {f"4{'+' * s}{'-' * p}" for s in range(3) for p in range(5)}
    assert {p.label for p in critical_points(6)} == four | {"5", "5+", "6"}
    assert len(critical_points(6)) == 18


@pytest.mark.parametrize("n_features", ALL)
def test_points_are_sorted_by_loss_and_distinct(n_features):
    losses = [p.loss for p in critical_points(n_features)]
    assert losses == sorted(losses)
    assert all(b - a > 1e-6 for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("n_features", [4, 5, 6, 9, 12])
def test_losses_are_the_levels_of_the_paper(n_features):
    """[h_k + (c - k) + phi - 3 sigma / (4c)] / (3c), h_k the loss of the k-gon for c = k, times 3k.

    Published h_5 = 0.23738, h_6 = 0.86746, to five digits.
    """
    c = n_features
    h = {k: 3 * k * critical_point(k, k).loss for k in (4, 5, 6, 7, 8, 12) if k <= c}
    assert h[4] == 0
    for k, published in {5: 0.23738, 6: 0.86746}.items():
        if k in h:
            assert abs(h[k] - published) < 0.5e-5
    for p in critical_points(c):
        level = (h[p.k] + (c - p.k) + p.phi - 3 * p.sigma / (4 * c)) / (3 * c)
        assert abs(p.loss - level) < 1e-14


@pytest.mark.parametrize("k", [5, 6, 7, 8, 12])
def test_polygons_solve_the_papers_equations(k):
    """App. E.1: two polynomials in x = l and y = b."""
    point = critical_point(k, k)
    x, y = float(point.W[:, 0].norm()), float(point.b[0])
    s = math.ceil(k / 4) - 1
    c = [math.cos(2 * math.pi * j / k) for j in range(1, s + 1)]
    F, G = 1 + 2 * sum(v * v for v in c), 1 + 2 * sum(c)
    K, M = 1 + 2 * sum(1 / v for v in c), 1 + 2 * s
    # Rounding of terms up to 30 with coefficients up to 5.
    assert abs(x**6 * G + x**2 * y**2 * K + 2 * x**4 * y * M + y**2 - x**4) < 1e-12
    assert abs(2 * x**8 * F + 3 * x**6 * y * G - x**2 * y**3 * K - 2 * x**6 - 2 * y**3) < 1e-12
    assert -(x**2) * c[-1] < y < 0


@pytest.mark.parametrize(("k", "published"), [(5, (1.17046, -0.28230)), (6, (1.32053, -0.61814))])
def test_published_lengths_and_biases(k, published):
    point = critical_point(k, 6)
    assert float(point.W[:, 0].norm()) == pytest.approx(published[0], abs=0.5e-5)
    assert float(point.b[0]) == pytest.approx(published[1], abs=0.5e-5)


@pytest.mark.parametrize("k", range(5, 33))
def test_a_polygon_exists_exactly_where_the_symmetric_loss_is_stationary_and_admissible(k):
    """The loss of regular k-gons is q^2 P(u) - 2 q Q(u) + 1 with q = l^2, u = b / q, each P and Q
    read off two values of the population loss. On a grid of u in (-1, 0) the least over q,
    1 - Q^2 / P, has one minimum; `critical_point` knows it if all s neighbours are active there.
    """
    u = torch.linspace(-0.999, -0.001, 500, dtype=torch.float64)
    one, two = (3 * population_loss(*regular(k, q**0.5, u * q)) - 1 for q in (1.0, 2.0))
    # `regular` broadcasts length over u; one = P - 2Q, two = 4P - 4Q.
    Q, P = two / 4 - one, two / 2 - one
    least = 1 - Q * Q / P
    slope = least.diff() > 0
    turns = (slope[1:] != slope[:-1]).nonzero().flatten()
    assert turns.numel() == 1
    best = float(u[turns[0] + 1])
    s = math.ceil(k / 4) - 1
    if -best < math.cos(2 * math.pi * s / k):
        point = critical_point(k, k)
        found = float(point.b[0] / point.W[:, 0].square().sum())
        assert abs(found - best) <= float(u[1] - u[0])
    else:
        with pytest.raises(ValueError, match=f"no standard {k}-gon"):
            critical_point(k, k)


def test_which_polygons_exist():
    found = {p.k for p in critical_points(40)}
    assert found == {4, 5, 6, 7, 8, 12}


@pytest.mark.parametrize("n_features", [5, 6, 7, 8, 9])
def test_kind_and_learning_coefficient_follow_from_the_hessian(n_features):
    for p in critical_points(n_features):
        if p.k == 4:
            continue
        eigenvalues, vectors = torch.linalg.eigh(hessian(p))
        # Central differences of a gradient with bounded third derivatives: about 1e-10; the
        # smallest true eigenvalues here are 6e-6 (saddles) and 1e-4 (minima).
        negative, positive = int((eigenvalues < -1e-7).sum()), int((eigenvalues > 1e-7).sum())
        w = torch.cat([p.W.flatten(), p.b])
        if p.sigma in (0, n_features - p.k):
            assert (p.kind, negative) == ("minimum", 0), p.label
            # What is flat: the rotation, and W and b of each negative dead column.
            assert 3 * n_features - positive == 1 + 3 * (n_features - p.k - p.sigma)
            assert p.llc == positive / 2
        else:
            assert p.kind == "saddle" and negative > 0, p.label
            assert p.llc is None
            step = w + 0.01 * vectors[:, 0] * torch.tensor([[1.0], [-1.0]], dtype=w.dtype)
            W, b = step[:, : p.W.numel()].reshape(2, 2, -1), step[:, p.W.numel() :]
            assert bool((population_loss(W, b) < p.loss).any()), p.label


@pytest.mark.parametrize("label", ["6", "5", "5+", "4----"])
def test_nothing_near_a_minimum_is_lower(label):
    p = critical_point(label, 6)
    assert p.kind == "minimum"
    g = torch.Generator().manual_seed(0)
    W = p.W + 0.01 * torch.randn(5000, 2, 6, generator=g, dtype=torch.float64)
    b = p.b + 0.01 * torch.randn(5000, 6, generator=g, dtype=torch.float64)
    assert float(population_loss(W, b).min()) >= p.loss - 1e-15


@pytest.mark.parametrize("n_features", [4, 5, 6, 8])
def test_four_gons_are_not_twice_differentiable(n_features):
    """The second derivative along +v is not that along -v, for a bias of a live column."""
    for p in critical_points(n_features):
        if p.k == 4 and p.phi < 4:
            assert p.kind == ("saddle" if p.sigma and p.phi else "non-smooth")
            h = 1e-4
            up, down = p.b.clone(), p.b.clone()
            up[0] += h
            down[0] -= h
            change = population_loss(torch.stack([p.W, p.W]), torch.stack([up, down])) - p.loss
            curvature = 2 * change / h**2
            assert float((curvature[0] - curvature[1]).abs()) > 0.1
        elif p.k == 4:
            assert p.kind == ("minimum" if p.sigma == 0 else "saddle")


@pytest.mark.parametrize("n_features", [5, 6, 7])
def test_a_four_gon_falls_to_second_order_where_it_is_called_a_saddle(n_features):
    """The least of (L(w + h v) - L(w)) / h^2 over unit vectors v, by descent on the sphere."""
    h, steps = 1e-3, 400
    for p in critical_points(n_features):
        if p.k != 4 or p.phi == 4:
            continue
        g = torch.Generator().manual_seed(0)
        v = torch.randn(50, 3 * n_features, generator=g, dtype=torch.float64)
        least = math.inf
        for _ in range(steps):
            v = v / v.norm(dim=-1, keepdim=True)
            W = p.W + h * v[:, : 2 * n_features].view(-1, 2, n_features)
            b = p.b + h * v[:, 2 * n_features :]
            value, dW, db = PopulationLoss().value_and_grad(W, b)
            least = min(least, float((value - p.loss).min()) / h**2)
            v = v - 0.3 / h * torch.cat([dW.flatten(1), db], -1)
        # Rounding is 1e-17 / h^2 here, and third derivatives add a share of the order of h.
        assert (least < -1e-3) if p.kind == "saddle" else (least > -1e-9), p.label


@pytest.mark.parametrize(
    ("label", "n_features", "llc"),
    [
        ("4", 6, 7.5),
        ("4+", 6, 8.0),
        ("4++", 6, 8.5),
        ("5", 6, 7.0),
        ("5+", 6, 8.5),
        ("6", 6, 8.5),
        ("5", 5, 7.0),
        ("4", 4, 5.5),
        ("8", 9, 11.5),
        ("4-", 6, None),
        ("12", 12, None),
        ("3", 3, None),
    ],
)
def test_learning_coefficients_of_theory(label, n_features, llc):
    assert critical_point(label, n_features).llc == llc


def test_columns_and_biases_are_laid_out_as_documented():
    p = critical_point("4++-", 7)
    assert (p.k, p.sigma, p.phi) == (4, 2, 1)
    torch.testing.assert_close(p.W[:, 4:], torch.zeros(2, 3, dtype=torch.float64))
    expected = torch.tensor([0, 0, 0, -2, 1 / 14, 1 / 14, -1], dtype=torch.float64)
    torch.testing.assert_close(p.b, expected, rtol=0, atol=0)
    assert float(p.b[3]) < -float(p.W[:, 3].square().sum())


def test_small_polygons_and_switched_off_columns_are_one_flat_piece():
    """From 3 at right angles with a fourth column off to the triangle with the fourth at zero."""
    start, end = critical_point("4-", 6), critical_point("3", 6)
    for t in torch.linspace(0, 1, 11, dtype=torch.float64):
        W, b = start.W.clone(), start.b.clone()
        W[:, 3] *= 1 - t
        assert gradient_norm(W, b) < 1e-12
        assert abs(float(population_loss(W, b)) - end.loss) < 1e-15
        angle = torch.tensor([0.0, math.pi / 2, math.pi], dtype=torch.float64) * (1 - t)
        angle = angle + t * torch.tensor([0.0, 2, 4], dtype=torch.float64) * math.pi / 3
        W[:, :3] = torch.stack([angle.cos(), angle.sin()])
        W[:, 3] = 0
        assert gradient_norm(W, b) < 1e-12
        assert abs(float(population_loss(W, b)) - end.loss) < 1e-15


def test_what_is_refused_is_no_critical_point():
    """The reasons in the errors, checked: "1+" and a 5-gon with a column switched off have
    gradients of the order of the loss, where those of critical points are below 1e-12."""
    one = critical_point("1", 3)
    b = one.b.clone()
    b[1] = 1 / 6
    assert gradient_norm(one.W, b) > 1e-3
    five = critical_point("5", 6)
    b = five.b.clone()
    b[0] = -3.0
    assert gradient_norm(five.W, b) > 1e-3


@pytest.mark.parametrize(
    ("label", "n_features", "message"),
    [
        ("7", 6, "needs n_features >= 7, got 6"),
        ("5++", 6, "leaves 1 dead columns"),
        ("4+", 4, "leaves 0 dead columns"),
        ("5-", 6, "only for k = 4"),
        ("3-", 6, "only for k = 4"),
        ("4-----", 6, "5 live columns"),
        ("1+", 6, "sum of the live columns"),
        ("9", 9, "no standard 9-gon"),
        ("13", 20, "no standard 13-gon"),
        ("4-+", 6, "got '4-\\+'"),
        ("", 6, "label must be"),
        ("+", 6, "label must be"),
        ("0", 6, "label must be"),
        ("04", 6, "label must be"),
        ("4 +", 6, "label must be"),
        ("4+2", 6, "label must be"),
        (-4, 6, "label must be"),
        (4.0, 6, "label must be"),
        (True, 6, "label must be"),
        ("4", 0, "n_features must be an integer >= 1, got 0"),
        ("4", 6.0, "n_features must be an integer >= 1, got 6.0"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_reason(label, n_features, message):
    with pytest.raises(ValueError, match=message):
        critical_point(label, n_features)


@pytest.mark.parametrize("n_features", [0, -1, 6.0, True])
def test_the_number_of_features_is_checked(n_features):
    with pytest.raises(ValueError, match="n_features"):
        critical_points(n_features)


@pytest.mark.parametrize(
    ("label", "parts"), [("4", (4, 0, 0)), (4, (4, 0, 0)), ("4++-", (4, 2, 1)), ("12+", (12, 1, 0))]
)
def test_labels_are_parsed_and_written(label, parts):
    assert parse_label(label) == parts
    assert format_label(*parts) == str(label)


def test_points_do_not_share_memory():
    critical_point("4", 6).W.zero_()
    assert gradient_norm(critical_point("5", 6).W, critical_point("5", 6).b) < 1e-12
    assert float(critical_point("4", 6).W[0, 0]) == 1
