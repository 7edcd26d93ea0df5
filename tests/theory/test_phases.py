"""Phases by geometry: exact points, noise, symmetries, and what is nothing."""

import itertools
import math

import pytest
import torch

from kgon.theory import phases
from kgon.theory.critical import critical_point, critical_points
from kgon.theory.loss import PopulationLoss
from kgon.theory.phases import OTHER, classify, phase_codes, phase_labels

THRESHOLDS = ["ON_LENGTH", "ON_OUTPUT", "LENGTH_TOLERANCE", "GAP_TOLERANCE", "OFF_OUTPUT"]


def noisy(point, noise, draws, seed):
    g = torch.Generator().manual_seed(seed)
    c = point.n_features
    W = point.W + noise * torch.randn(draws, 2, c, generator=g, dtype=torch.float64)
    return W, point.b + noise * torch.randn(draws, c, generator=g, dtype=torch.float64)


def mixture(n_features, noise, draws, seed=0):
    """Draws about every critical point."""
    parts = [noisy(p, noise, draws, seed + i) for i, p in enumerate(critical_points(n_features))]
    return torch.cat([W for W, _ in parts]), torch.cat([b for _, b in parts])


@pytest.mark.parametrize("n_features", [*range(1, 10), 12, 14])
def test_every_critical_point_is_its_own_phase(n_features):
    points = critical_points(n_features)
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    assert classify(W, b) == [p.label for p in points]
    assert classify(W.float(), b.float()) == [p.label for p in points]


@pytest.mark.parametrize("n_features", [4, 6, 8])
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noise_changes_a_label_only_by_the_sign_of_a_bias_near_zero(n_features, noise):
    """A positive dead bias is 1 / (2c); noise s turns it negative with probability
    Phi(-1 / (2 c s)), and nothing else is near a threshold: the next nearest is a live column's
    output, more than 0.8 above ON_OUTPUT with a standard deviation of s sqrt(4 l^2 + 1), 5 of them
    at s = 0.05. Four standard errors of 2,000 draws."""
    draws = 2000
    for i, p in enumerate(critical_points(n_features)):
        kept = sum(label == p.label for label in classify(*noisy(p, noise, draws, seed=i))) / draws
        sign = 0.5 * math.erfc(-1 / (2 * n_features * noise) / math.sqrt(2))
        expected = sign**p.sigma
        stderr = math.sqrt(expected * (1 - expected) / draws)
        assert abs(kept - expected) <= 4 * stderr + 1 / draws, p.label


@pytest.mark.parametrize("factors", list(itertools.product([0.8, 1.2], repeat=5)))
def test_labels_do_not_depend_on_the_thresholds(monkeypatch, factors):
    """All five moved by 20% up or down: about critical points not one label changes."""
    parameters = [mixture(6, noise, 20) for noise in (0.01, 0.03, 0.05)]
    before = [phase_codes(*p) for p in parameters]
    for name, factor in zip(THRESHOLDS, factors, strict=True):
        monkeypatch.setattr(phases, name, getattr(phases, name) * factor)
    for was, p in zip(before, parameters, strict=True):
        assert torch.equal(was, phase_codes(*p))


@pytest.mark.parametrize("n_features", [4, 6, 8])
def test_rotations_reflections_and_permutations_change_nothing(n_features):
    W, b = mixture(n_features, 0.2, 50)  # enough noise for `other` to occur
    g = torch.Generator().manual_seed(1)
    before = phase_codes(W, b)
    assert 0.05 < float((before == len(phase_labels(n_features, 2)) - 1).double().mean()) < 0.95
    angle = 2 * math.pi * torch.rand(len(W), generator=g, dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    for sign in (1, -1):
        Q = torch.stack([c, -s, sign * s, sign * c], -1).view(-1, 2, 2)
        order = torch.rand(b.shape, generator=g).argsort(-1)
        moved = (Q @ W).gather(-1, order[:, None].expand_as(W)), b.gather(-1, order)
        assert torch.equal(phase_codes(*moved), before)


def test_labels_of_a_batch_are_one_flat_list():
    points = critical_points(6)[:6]
    W = torch.stack([p.W for p in points]).view(2, 3, 2, 6)
    b = torch.stack([p.b for p in points]).view(2, 3, 6)
    labels = [point.label for point in points]
    assert classify(W, b) == labels
    assert classify(W[1, 2], b[1, 2]) == labels[-1:]
    assert classify(W[:0], b[:0]) == []
    codes = phase_codes(W, b)
    assert codes.shape == (2, 3) and codes.dtype == torch.int64
    assert [phase_labels(6, 2)[i] for i in codes.flatten()] == [p.label for p in points]


def test_random_parameters_are_other():
    """Most of the prior draws no polygon: independent angles rarely are evenly spread."""
    g = torch.Generator().manual_seed(0)
    labels = classify(
        torch.randn(5000, 2, 6, generator=g, dtype=torch.float64),
        torch.randn(5000, 6, generator=g, dtype=torch.float64),
    )
    assert labels.count(OTHER) > 0.95 * len(labels)


def six():
    return critical_point("6", 6)


def changed(label, **columns):
    """A critical point for six features with some columns' (x, y, b) replaced."""
    p = critical_point(label, 6)
    for column, (x, y, bias) in columns.items():
        i = int(column.removeprefix("c"))
        p.W[:, i] = torch.tensor([x, y])
        p.b[i] = bias
    return p.W, p.b


def spread(*degrees):
    """Columns of length 1 at these angles, and two of length 0."""
    angle = torch.tensor(degrees).double().deg2rad()
    return torch.nn.functional.pad(torch.stack([angle.cos(), angle.sin()]), (0, 2))


@pytest.mark.parametrize(
    ("name", "W", "b"),
    [
        ("too long", 1.6 * six().W, 1.6**2 * six().b),
        ("too short", 0.49 * six().W, 0.1 * six().b),
        ("all on one side", six().W.abs(), six().b),
        ("a wide gap", spread(0, 62, 124, 190), critical_point("4", 6).b),
        ("a narrow gap", spread(0, 40, 150, 260), critical_point("4", 6).b),
        ("a live column twice", *changed("5", c5=(1.17046, 0.0, -0.2823))),
        ("a live column answers to one that is off", *changed("4", c4=(1.0, 0.0, -2.0))),
        ("five positive", *changed("4", c3=(0, 0, 0.1), c4=(0, 0, 0.1), c5=(0, 0, 0.1))),
        ("not a number", torch.full((2, 6), torch.nan), six().b),
        ("infinite", six().W, torch.full((6,), torch.inf)),
        ("minus infinity", six().W, torch.full((6,), -torch.inf)),
    ],
)
def test_what_fits_nothing_is_other(name, W, b):
    assert classify(W.double(), b.double()) == [OTHER], name


def test_a_polygon_that_is_no_critical_point_is_other():
    """A regular 9-gon is none of the standard ones; with ten features neither."""
    angle = 2 * math.pi / 9 * torch.arange(9, dtype=torch.float64)
    W, b = 1.6 * torch.stack([angle.cos(), angle.sin()]), torch.full((9,), -1.5).double()
    assert classify(W, b) == [OTHER]
    W, b = torch.nn.functional.pad(W, (0, 1)), torch.nn.functional.pad(b, (0, 1), value=-1)
    assert classify(W, b) == [OTHER]


@pytest.mark.parametrize(
    ("label", "W", "b"),
    [
        # What training on a finite sample leaves: lengths along the valley, obtuse gaps, dead
        # columns at some length, a switched-off column next to another one.
        ("4+", *changed("4+", c0=(1.3, 0, -0.45), c1=(-0.15, 1.04, -0.05), c5=(0.2, 0.1, -0.3))),
        ("5", *changed("5", c5=(0.3, -0.1, -1.0))),
        ("5+", *changed("5+", c5=(0.03, -0.02, 0.07))),
        ("4-", *changed("4-", c3=(0, -1.4, -2.2), c4=(0.03, -0.93, -1.1))),
        ("4-", *changed("4-", c3=(0, 0, -0.2))),
        ("4--", *changed("4--", c2=(-0.98, 0.1, -1.14), c3=(0, -1, -1.33))),
        ("4", *changed("4", c4=(0, 0, -1e-3), c5=(0, 0, -1e-3))),
    ],
)
def test_what_training_leaves_is_recognised(label, W, b):
    assert classify(W, b) == [label]


def test_gradient_descent_ends_in_the_phase_of_its_loss():
    """The population loss knows nothing of the thresholds: where descent from noisy 4-gons has come
    to rest at a critical level, the label is that level's."""
    c, members = 6, 64
    g = torch.Generator().manual_seed(0)
    start = critical_point("4", c)
    W = start.W + 0.01 * torch.randn(members, 2, c, generator=g, dtype=torch.float64)
    b = torch.randn(members, c, generator=g, dtype=torch.float64)
    loss = PopulationLoss()
    for _ in range(3000):
        _, dW, db = loss.value_and_grad(W, b)
        W, b = W - 0.3 * dW, b - 0.3 * db
    points = critical_points(c)
    levels = torch.tensor([p.loss for p in points], dtype=torch.float64)
    distance, nearest = (loss(W, b)[:, None] - levels).abs().min(-1)
    settled = distance < 2e-4
    assert int(settled.sum()) > members / 2
    assert len(set(nearest[settled].tolist())) >= 5
    assert torch.equal(phase_codes(W, b)[settled], nearest[settled])


@pytest.mark.parametrize(
    ("W", "b"), [((2, 6), (5,)), ((2, 6), ()), ((6,), (6,)), ((3, 2, 6), (6,)), ((3, 2, 6), (4, 6))]
)
def test_shapes_are_checked(W, b):
    with pytest.raises(ValueError, match="W must be"):
        classify(torch.zeros(W), torch.zeros(b))
