"""Searching for critical points, and the passes between phases."""

import pytest
import torch

from kgon.landscape import catalogue
from kgon.landscape.catalogue import atlas
from kgon.landscape.passes import passes
from kgon.landscape.search import POLISHED, match, polish, search
from kgon.theory.atlas import SHIPPED, build, built
from kgon.theory.critical import critical_point


def test_a_search_finds_what_the_package_holds():
    found = search(5, 2, n_starts=200, seed=1)
    again = build(5, 2, found, SHIPPED)
    known = built(5, 2)
    levels = [p.loss for p in again]
    for p in known:
        if p.index == 1 and known.n_starts(p.label) > 20:
            assert min(abs(p.loss - level) for level in levels) < 1e-9, p.label
    assert sum(found.met["random"].values()) == found.starts["random"] == 200
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
    monkeypatch.setattr(catalogue, "N_STARTS", 20)
    lines = []
    first = atlas(13, 1, folder=tmp_path, progress=lines.append)
    assert lines and (tmp_path / "n13_m1.json").exists()
    lines.clear()
    assert [p.label for p in atlas(13, 1, folder=tmp_path, progress=lines.append)] == [
        p.label for p in first
    ]
    assert not lines


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
