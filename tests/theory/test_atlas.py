"""The atlas: what it must hold, that its points are critical, and its names."""

import itertools
import math
import random

import pytest
import torch

from kgon.theory.atlas import SHIPPED, Atlas, Found, build, built, point
from kgon.theory.critical import critical_points
from kgon.theory.loss import population_loss
from kgon.theory.phases import OTHER, classify, phase_labels
from kgon.theory.shapes import described, in_words, symmetry

SIZES = [(5, 2), (6, 2), (7, 2), (8, 2), (5, 3), (6, 3), (7, 3), (8, 3), (6, 4), (9, 3), (12, 3)]


def expected_loss(W, b):
    """E |x - ReLU(W^T W x + b)|^2 output by output: quadratic pieces by 3-point Gauss-Legendre."""
    n = len(b)
    nodes = (-math.sqrt(0.6), 0.0, math.sqrt(0.6))
    weights = (5 / 18, 8 / 18, 5 / 18)
    total = 0.0
    for j in range(n):
        for i in range(n):
            slope, bias = sum(W[h][i] * W[h][j] for h in range(len(W))), b[i]
            cut = -bias / slope if slope else 0.0
            pieces = sorted({0.0, min(max(cut, 0.0), 1.0), 1.0})
            for low, high in itertools.pairwise(pieces):
                for x, weight in zip(nodes, weights, strict=True):
                    a = (low + high) / 2 + (high - low) / 2 * x
                    residual = a * (i == j) - max(slope * a + bias, 0.0)
                    total += (high - low) * weight * residual**2 / n
    return total


def differences(p, h=1e-4):
    """Gradient and Hessian of `expected_loss` by central differences."""
    m, n = p.W.shape
    w = [*p.W.flatten().tolist(), *p.b.tolist()]

    def f(*moves):
        v = list(w)
        for i, d in moves:
            v[i] += d
        return expected_loss([v[r * n : (r + 1) * n] for r in range(m)], v[m * n :])

    size = range(len(w))
    gradient = [(f((i, h)) - f((i, -h))) / (2 * h) for i in size]
    hessian = torch.zeros(len(w), len(w), dtype=torch.float64)
    for i in size:
        for j in range(i + 1):
            hessian[i, j] = hessian[j, i] = (
                f((i, h), (j, h)) - f((i, h), (j, -h)) - f((i, -h), (j, h)) + f((i, -h), (j, -h))
            ) / (4 * h * h)
    return torch.tensor(gradient), hessian


def drawn(n, seed):
    """Critical points without a kink, drawn at random from all sizes of the package."""
    rng = random.Random(seed)
    smooth = [p for size in SIZES[:7] for p in built(*size) if p.index is not None]
    return rng.sample(smooth, n)


@pytest.mark.parametrize("p", drawn(5, seed=0), ids=lambda p: f"{p.label} of {p.n_features}")
def test_gradient_index_and_rank_by_an_independent_program(p):
    gradient, H = differences(p)
    assert p.gradient_norm < 1e-12
    # Third derivatives are of order 10, but for jumps where a column is at its threshold.
    assert float(gradient.abs().max()) < 1e-6
    eigenvalues = torch.linalg.eigvalsh(H)
    # A jump of a third derivative moves an entry by h times its size.
    zero = 1e-3
    clear = [x for x in p.eigenvalues.tolist() if abs(x) > 2 * zero]
    assert int((eigenvalues < -zero).sum()) >= sum(x < 0 for x in clear)
    assert int((eigenvalues.abs() > zero).sum()) >= len(clear)
    assert int((eigenvalues < -zero).sum()) <= p.index
    assert int((eigenvalues.abs() > zero).sum()) <= p.rank


@pytest.mark.parametrize("size", SIZES)
def test_every_point_is_critical_and_has_its_own_label(size):
    atlas = built(*size)
    assert len({p.label for p in atlas}) == len(atlas)
    for p in atlas:
        assert p.gradient_norm < 1e-12, p.label
        assert p.loss == float(population_loss(p.W, p.b))
    assert [p.loss for p in atlas] == sorted(p.loss for p in atlas)


LEVELS = {
    (5, 2): {0.015826: 0, 0.057323: 1},
    (6, 2): {0.048192: 0, 0.061799: 0, 0.068744: 0, 0.069289: 1, 0.069333: 1, 0.097681: 1,
             0.104398: 1},
    (6, 3): {0.0: None, 0.055556: None, 0.111111: None},
    (7, 3): {0.007640: 0, 0.047619: None, 0.095238: None, 0.042517: None, 0.008214: 1,
             0.042537: 1, 0.050451: 1},
    (8, 3): {0.012709: 0, 0.048351: 0, 0.044403: 0, 0.083333: None, 0.014513: 1, 0.044921: 1,
             0.048854: 1},
}  # fmt: skip
"""Levels, with the index, that a first search found, by another program."""


@pytest.mark.parametrize("size", LEVELS)
def test_levels_of_an_earlier_search_are_found_again(size):
    found = [(p.loss, p.index) for p in built(*size)]
    for level, index in LEVELS[size].items():
        assert any(abs(loss - level) < 1e-6 and i == index for loss, i in found), level


@pytest.mark.parametrize("n_features", range(3, 13))
def test_it_holds_the_k_gons_that_theory_solves(n_features):
    atlas = built(n_features, 2)
    for p in critical_points(n_features):
        assert atlas[p.label] is p


def test_random_descents_find_the_paper_s_minima():
    for n_features, labels in {
        5: ("5", "4"),
        6: ("6", "5", "5+", "4"),
        7: ("7", "6+", "5++"),
    }.items():
        met = built(n_features, 2).found.met["random"]
        assert all(met.get(label, 0) > 0 for label in labels)


@pytest.mark.parametrize("size", SIZES)
def test_llc_is_half_the_rank_where_flat_directions_account_for_the_rest(size):
    n_features, n_hidden = size
    for p in built(*size):
        if p.index == 0 and p.rank:
            rest = (n_hidden + 1) * n_features - p.rank
            assert p.llc == (p.rank / 2 if rest == p.n_flat else None), p.label
            assert rest >= p.n_flat, p.label


def test_labels():
    octahedron = built(7, 3)["2x2x2"]
    assert octahedron.loss == pytest.approx(1 / 21, rel=1e-12)
    assert symmetry(octahedron.W, octahedron.b) == (48, (6,))
    assert described(octahedron.W, octahedron.b) == "6 single columns, 1 dead"
    assert "regular 5-gon" in described(*(getattr(built(7, 3)["5x2"], x) for x in "Wb"))
    assert built(8, 3)["8d3a"].loss == min(p.loss for p in built(8, 3))
    with pytest.raises(ValueError, match="no critical point 'nothing'"):
        point("nothing", 7, 3)


ALMOST_K_GONS = {("5d2a+", 7, 2): "5+", ("6d2a+", 8, 2): "6+", ("5d2a++", 8, 2): "5++",
                 ("5d2a+", 8, 2): "5+"}  # fmt: skip
"""Minima within the tolerances of a k-gon, which they are named after."""


@pytest.mark.parametrize("size", SIZES)
def test_phases_keep_their_label_under_symmetries_and_small_noise(size):
    phases = built(*size).phases
    rng = torch.Generator().manual_seed(0)
    W, b = torch.stack([p.W for p in phases]), torch.stack([p.b for p in phases])
    q, _ = torch.linalg.qr(torch.randn(W.shape[-2], W.shape[-2], generator=rng).double())
    order = torch.randperm(W.shape[-1], generator=rng)
    # Less than the distance of a positive bias, 1 / (2 n_features), from 0.
    noise = 0.003 * torch.randn(W.shape, generator=rng).double()
    expected = [ALMOST_K_GONS.get((p.label, *size), p.label) for p in phases]
    assert classify(W, b) == expected
    assert classify(q @ W[..., order], b[..., order]) == expected
    # Two minima of (9, 3) and many of (12, 3), less than 1e-4 apart in loss, differ in outputs by
    # less than the noise.
    loss = {p.label: p.loss for p in phases}
    for label, noisy in zip(expected, classify(W + noise, b), strict=True):
        close = size in ((9, 3), (12, 3)) and abs(loss[label] - loss.get(noisy, 1)) < 1e-4
        assert label == noisy or close


def test_parameters_that_are_nothing_are_other():
    W = torch.full((3, 8), 2.0, dtype=torch.float64)
    assert classify(W, torch.zeros(8, dtype=torch.float64)) == [OTHER]
    assert phase_labels(8, 3)[-1] == OTHER


@pytest.mark.parametrize("size", [1e5, 1e160, 1e300])
@pytest.mark.parametrize("n_hidden", [2, 3])
def test_parameters_about_to_diverge_are_other(n_hidden, size):
    g = torch.Generator().manual_seed(0)
    W = size * torch.randn(50, n_hidden, 8, generator=g, dtype=torch.float64)
    b = size * torch.randn(50, 8, generator=g, dtype=torch.float64)
    assert set(classify(W, b)) == {OTHER}


def test_missing_is_the_share_of_points_met_once():
    found = Found(0, {"random": 10}, met={"random": {"a": 1, "b": 1, "c": 8}})
    atlas = Atlas(2, 1, (), found)
    assert atlas.missing() == {"random": 0.2}
    assert atlas.n_starts("c") == 8 and atlas.n_starts("d") == 0


def test_a_file_keeps_every_digit():
    found = built(7, 3).found
    again = Found.from_json(found.as_json())
    assert [p.label for p in build(7, 3, again, SHIPPED)] == [p.label for p in built(7, 3)]
    assert all(torch.equal(x, y) for one, other in zip(found.shapes, again.shapes, strict=True)
               for x, y in zip(one, other, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("label", "size", "words"),
    [
        ("8d3a", (8, 3), "square antiprism"),
        ("8d3b", (8, 3), "triangular dodecahedron"),
        ("8d3c", (8, 3), "cube"),
        ("7d3a", (7, 3), "capped octahedron"),
        ("7d3b", (7, 3), "capped triangular prism"),
        ("6d3a", (6, 3), "triangular prism"),
        ("9d3a", (9, 3), "tricapped triangular prism"),
        ("9d3b", (9, 3), "capped square antiprism"),
    ],
)
def test_shapes_have_their_usual_names(label, size, words):
    """Words that a file of one size earned stay, whatever order a new search finds them in."""
    p = point(label, *size)
    assert described(p.W, p.b) == words


def polyhedron(*rings):
    """Columns on the unit sphere: rings of (number, height, turn in units of pi)."""
    columns = []
    for number, height, turn in rings:
        r = math.sqrt(1 - height**2)
        for i in range(number):
            angle = 2 * math.pi * i / number + math.pi * turn
            columns.append([r * math.cos(angle), r * math.sin(angle), height])
    return torch.tensor(columns, dtype=torch.float64).mT


@pytest.mark.parametrize(
    ("rings", "words"),
    [
        ([(3, 0.6, 0), (3, -0.6, 0)], "triangular prism"),
        ([(4, 0.5, 0), (4, -0.5, 0.25)], "square antiprism"),
        ([(4, 0.577350269189626, 0), (4, -0.577350269189626, 0)], "cube"),
        ([(3, 0.6, 0), (3, -0.6, 0), (3, 0, 1 / 3)], "tricapped triangular prism"),
        ([(4, 0.3, 0), (4, -0.6, 0.25), (1, 1, 0)], "capped square antiprism"),
        ([(1, 1, 0), (3, 0.3, 0), (3, -0.6, 1 / 3)], "capped octahedron"),
        ([(1, 1, 0), (4, 0.4, 0), (4, -0.4, 0.25), (1, -1, 0)], "bicapped square antiprism"),
        ([(1, 1, 0), (5, 0.447213595499958, 0), (5, -0.447213595499958, 0.2), (1, -1, 0)],
         "icosahedron"),
    ],
)  # fmt: skip
def test_words_are_those_of_the_polyhedron(rings, words):
    W = polyhedron(*rings)
    assert in_words(W, torch.full((W.shape[-1],), -0.1, dtype=torch.float64)) == words


def test_sizes_without_an_atlas_cost_nothing():
    assert built(40, 10).points == () and phase_labels(40, 10) == (OTHER,)
    W, b = torch.zeros(3, 10, 40, dtype=torch.float64), torch.zeros(3, 40, dtype=torch.float64)
    assert classify(W, b) == [OTHER] * 3
    assert [p.label for p in built(14, 2).phases] == [p.label for p in critical_points(14)]
