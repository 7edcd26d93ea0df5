"""Distances from a pass, and the transitions of runs that go over it."""

import itertools

import pytest
import torch

from kgon.landscape.passes import crossings, distances, passes
from kgon.theory.atlas import built
from kgon.theory.critical import gradient, hessian
from kgon.theory.loss import PopulationLoss

ATLAS = built(6, 2)
WAYS = passes(ATLAS)
(OVER,) = (way for way in WAYS if way.ends == ("4+", "5"))


def turned(W, b, seed):
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(W), len(W), generator=g, dtype=torch.float64))
    order = torch.randperm(len(b), generator=g)
    return q @ W[:, order], b[order]


def raised(W, b):
    """Biases of outputs that are never positive, moved up to where they begin to be."""
    return torch.maximum(b, -(W.mT @ W).amax(-1).clamp(min=0))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("label", ["4d2a+", "6d2b", "6"])
def test_the_distance_is_the_least_over_all_permutations(label, mirrored):
    """Directly: for each of the 720 permutations the best rotation, by Procrustes."""
    point, g = ATLAS[label], torch.Generator().manual_seed(1)
    W, b = (x + 0.05 * torch.randn(x.shape, generator=g, dtype=torch.float64)
            for x in (point.W, point.b))  # fmt: skip
    W, b = turned(W, b, seed=2)
    W[0] *= -1 if mirrored else 1
    at, c = raised(point.W, point.b), raised(W, b)
    least = min(
        float(W.square().sum() + point.W.square().sum() + (at - c[order]).square().sum()
              - 2 * torch.linalg.svdvals(point.W @ W[:, order].mT).sum())
        for order in map(list, itertools.permutations(range(6)))
    )  # fmt: skip
    norm = float(point.W.square().sum() + at.square().sum())
    assert float(distances(point, W[None], b[None])) == pytest.approx((least / norm) ** 0.5)


def test_a_bias_that_does_not_matter_is_no_distance():
    """One output of 4d2a+ is never positive: its bias is a flat direction."""
    point, b = OVER.point, OVER.point.b.clone()
    dead = int((point.W.mT @ point.W + b.unsqueeze(-1)).amax(-1).argmin())
    assert b[dead] < -0.5
    b[dead] = -3.0
    W, b = turned(point.W, b, seed=3)
    assert float(distances(point, W[None], b[None])) < 1e-7


def flow(sign):
    """Gradient flow from near the pass down one side, by Euler's method."""
    point = OVER.point
    down = torch.linalg.eigh(hessian(PopulationLoss(), point.W, point.b)).eigenvectors[:, 0]
    w = torch.cat([point.W.flatten(), point.b]) + sign * 0.01 * down
    path = []
    for step in range(6000):
        if step % 60 == 0:
            path.append(w)
        w = w - 0.1 * gradient(w[:12].view(2, 6), w[12:])
    return path


def test_a_run_over_the_pass_is_found_to_come_to_it():
    sides = [flow(sign) for sign in (1, -1)]
    sides.sort(key=lambda side: float(PopulationLoss()(side[-1][:12].view(2, 6), side[-1][12:])))
    path = torch.stack([*sides[1][::-1], *sides[0]])
    # Another program's coordinates for every snapshot: a distance is up to symmetry.
    pairs = [turned(w[:12].view(2, 6), w[12:], seed=5) for w in path]
    W, b = (torch.stack(x).unsqueeze(1) for x in zip(*pairs, strict=True))
    (found,) = crossings(torch.arange(len(path)), W, b, WAYS)
    assert (found.start, found.end, found.way) == ("4+", "5", "4d2a+")
    norm = float(OVER.point.W.square().sum() + raised(OVER.point.W, OVER.point.b).square().sum())
    # The flow starts 0.01 away; raising biases, by columns of length 1, can add as much.
    assert found.distance <= 0.02 / norm**0.5
    assert abs(found.nearest - len(sides[1])) <= 1
    assert found.left < found.arrived
