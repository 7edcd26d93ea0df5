"""Searching for critical points, and the passes between phases."""

import pytest
import torch

from kgon.compiled.exact_loss import descent
from kgon.landscape import catalogue
from kgon.landscape.catalogue import atlas
from kgon.landscape.passes import crossings, passes
from kgon.landscape.search import POLISHED, match, polish, search
from kgon.theory.atlas import SHIPPED, build, built
from kgon.theory.critical import critical_point, hessian
from kgon.theory.loss import PopulationLoss
from kgon.theory.phases import classify


def test_a_search_finds_what_the_package_holds():
    found = search(5, 2, n_starts=100, seed=1)
    again = build(5, 2, found, SHIPPED)
    known = built(5, 2)
    levels = [p.loss for p in again]
    for p in known:
        if p.index == 1 and known.n_starts(p.label) > 20:
            assert min(abs(p.loss - level) for level in levels) < 1e-9, p.label
    assert sum(found.met["random"].values()) == found.starts["random"] == 100
    assert found.met["random"].get("", 0) == 0


def test_polishing_returns_to_a_saddle():
    saddle = built(6, 2)["6d2b"]
    g = torch.Generator().manual_seed(0)
    W = saddle.W + 0.01 * torch.randn(20, 2, 6, generator=g, dtype=torch.float64)
    b = saddle.b + 0.01 * torch.randn(20, 6, generator=g, dtype=torch.float64)
    W, b, slope = polish(W, b)
    labels = match(W, b, slope < POLISHED, built(6, 2))
    # 6d2a is 0.00004 higher in loss and near; both are critical points.
    assert set(labels) <= {"6d2b", "6d2a"} and labels.count("6d2b") > 10


def test_points_that_cannot_be_polished_come_back_as_they_were():
    p = critical_point("4", 6)
    g = torch.Generator().manual_seed(0)
    W = p.W + 0.3 * torch.randn(50, 2, 6, generator=g, dtype=torch.float64)
    b = p.b + 0.3 * torch.randn(50, 6, generator=g, dtype=torch.float64)
    polished_W, polished_b, slope = polish(W, b)
    failed = slope.isnan()
    assert bool(failed.any()) and bool((slope[~failed] < POLISHED).all())
    assert torch.equal(polished_W[failed], W[failed]) and torch.equal(polished_b[failed], b[failed])


def test_a_pass_joins_two_phases_below_it():
    found = {way.point.label: way for way in passes(built(6, 2))}
    way = found["6d2b"]
    assert way.ends == ("5+", "6")
    for label, barrier in zip(way.ends, way.barriers, strict=True):
        assert barrier == pytest.approx(way.point.loss - critical_point(label, 6).loss, abs=1e-9)
        assert barrier > 0
    assert all(w.barriers[0] <= w.barriers[1] for w in found.values())


def test_sizes_beyond_the_package_are_searched_once_and_kept(tmp_path, monkeypatch):
    searched = []

    def one(n_features, n_hidden, **_):
        searched.append((n_features, n_hidden))
        return search(2, 1, n_starts=10)

    monkeypatch.setattr(catalogue, "search", one)
    first = atlas(13, 1, folder=tmp_path)
    assert first.found.starts["random"] == 10 and (tmp_path / "n13_m1.json").exists()
    again = atlas(13, 1, folder=tmp_path)
    assert [p.label for p in again] == [p.label for p in first]
    assert searched == [(13, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "n_features must be a whole number >= 1, got 0"),
        ((6, 2.0), "n_hidden must be a whole number >= 1, got 2.0"),
        ((6, 2, [1, 1, 1, 1, 1, 2]), "importance must be the same for all features"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        atlas(*arguments)


def test_a_run_that_goes_over_a_pass_came_close_to_it():
    """Gradient flow from both sides of a pass, joined: a path over it, turned and permuted."""
    way = next(w for w in passes(built(6, 2)) if w.ends == ("5+", "6"))
    saddle = way.point
    _, V = torch.linalg.eigh(hessian(PopulationLoss(), saddle.W, saddle.b))
    halves = []
    for sign in (1, -1):
        v = 1e-3 * sign * V[:, 0]
        W, b = saddle.W + v[:12].view(2, 6), saddle.b + v[12:]
        half = [(W, b)]
        for _ in range(20):
            W, b, *_ = descent(W, b, 1e-9, 100)
            half.append((W, b))
        halves.append(half)
    if classify(*halves[0][-1]) == ["6"]:
        halves.reverse()
    path = [*reversed(halves[0]), (saddle.W, saddle.b), *halves[1]]
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    W = torch.stack([W[:, order].flip(0) for W, _ in path]).unsqueeze(1)
    b = torch.stack([b[order] for _, b in path]).unsqueeze(1)
    found = crossings(torch.arange(len(path)), W, b, passes(built(6, 2)))
    assert [(c.start, c.end, c.way) for c in found] == [("5+", "6", way.point.label)]
    assert found[0].distance < 1e-2
