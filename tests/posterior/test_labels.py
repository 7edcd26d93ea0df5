"""Labels of draws: critical points keep their names under noise, each rule follows its words."""

import pytest
import torch
from scipy.spatial import ConvexHull

from kgon.posterior.labels import (
    Labels,
    agreement,
    hull_labels,
    output_labels,
    quench,
    quench_labels,
)
from kgon.theory.critical import critical_point, critical_points
from kgon.theory.loss import PopulationLoss


def noisy(label, noise, n_features=6, n=50):
    p = critical_point(label, n_features)
    generator = torch.Generator().manual_seed(0)
    W = p.W + noise * torch.randn(n, 2, n_features, generator=generator, dtype=torch.float64)
    b = p.b + noise * torch.randn(n, n_features, generator=generator, dtype=torch.float64)
    return W, b


@pytest.mark.parametrize("label", [p.label for p in critical_points(6)])
def test_a_critical_point_has_its_own_label(label):
    p = critical_point(label, 6)
    assert quench_labels(quench(p.W, p.b)).names == label
    assert output_labels(p.W, p.b).names == label


@pytest.mark.parametrize("n_features", [5, 6, 7])
def test_minima_keep_their_label_under_noise(n_features):
    for p in critical_points(n_features):
        if p.kind == "minimum":
            # A seventh of the least positive bias, 1 / 14: no sign turns.
            W, b = noisy(p.label, 0.01, n_features)
            quenched = quench(W, b)
            assert bool(quench_labels(quenched).where(p.label).all()), p.label
            assert bool((quenched.loss - p.loss < 1e-6).all())


def test_quench_reports_its_end():
    W, b = noisy("5", 0.3)
    quenched = quench(W, b)
    assert bool((quenched.loss <= PopulationLoss()(W, b)).all())
    torch.testing.assert_close(quenched.loss, PopulationLoss()(quenched.W, quenched.b))
    assert bool((quenched.slope <= 1e-6).all())


def test_a_level_that_no_critical_point_has_is_other():
    W, b = noisy("6", 0.0, n=1)
    quenched = quench(W, b)
    labels = quench_labels(quenched._replace(loss=quenched.loss - 0.01))
    assert labels.present == ["other"] and bool(labels.where("other").all())


@pytest.mark.parametrize(("n_hidden", "n_features"), [(1, 4), (3, 5), (1, 1), (2, 3), (3, 3)])
def test_output_rule_counts_what_is_on_where_there_are_no_four_gons(n_hidden, n_features):
    W = torch.zeros(n_features + 1, n_hidden, n_features, dtype=torch.float64)
    for k in range(n_features + 1):
        W[k, 0, :k] = 1.0
    b = torch.full((n_features + 1, n_features), -0.1, dtype=torch.float64)
    b[0, 0] = 0.1
    labels = output_labels(W, b)
    assert labels.names == ["0+", *map(str, range(1, n_features + 1))]
    for k, name in enumerate(labels.names):
        assert labels.where(name).nonzero().tolist() == [[k]]
    assert set(labels.masks()) == set(labels.names)


def test_output_rule_counts_outputs():
    W = torch.zeros(2, 6, dtype=torch.float64)
    W[0] = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    b = torch.tensor([0.0, 0.0, -0.79, -0.81, 0.0, -0.1], dtype=torch.float64)
    # Outputs 1, 1, .21, .19, .25, .15: four on; of the others no bias is positive.
    assert output_labels(W, b).names == "4"
    b[3], b[5] = -1.5, 0.01
    # Column 5: .26 is on; five of six.
    b[5] = -0.2
    assert output_labels(W, b).names == "4"
    W[0, 5], b[5] = 0.1, 0.1
    assert output_labels(W, b).names == "4+"


def test_hull_rule_against_scipy():
    generator = torch.Generator().manual_seed(2)
    W = torch.randn(200, 2, 7, generator=generator, dtype=torch.float64)
    b = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    labels = hull_labels(W, b)
    expected = [len(ConvexHull(points.mT.numpy()).vertices) for points in W]
    assert labels.k.tolist() == expected
    assert [name.count("+") for name in labels.names] == (b > 0).sum(-1).tolist()


@pytest.mark.parametrize(
    "rule", [output_labels, hull_labels, lambda W, b: quench_labels(quench(W, b))]
)
def test_rules_are_invariant_under_rotation_reflection_and_permutation(rule):
    W, b = noisy("5+", 0.1)
    q, _ = torch.linalg.qr(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert rule(W, b).names == rule(q @ W[..., order], b[..., order]).names


def test_agreement():
    def labels(k, sigma):
        return Labels.of(torch.tensor(k), torch.tensor(sigma), torch.zeros(3).long())

    one, other = labels([5, 5, 6], [0, 1, 0]), labels([5, 5, 5], [1, 1, 0])
    assert agreement(one, other).tolist() == [True, True, False]
    assert agreement(one, other, by="label").tolist() == [False, True, False]
    with pytest.raises(ValueError, match="by must be"):
        agreement(one, other, by="level")


def test_rules_for_the_plane_refuse_other_dimensions():
    W, b = torch.randn(3, 3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="n_hidden=3"):
        hull_labels(W, b)
    with pytest.raises(ValueError, match="must be"):
        quench(W, b[:2])
