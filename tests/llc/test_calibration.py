"""A grid of settings as one stack, and the rule that chooses among them."""

import math

import numpy as np
import pytest
import torch

from kgon.llc.calibration import calibrate
from kgon.llc.estimate import estimate_llc
from kgon.theory.critical import critical_point
from kgon.theory.loss import PopulationLoss

QUICK = {"seed": 3, "n_chains": 8, "target": 0.1, "budget": 20_000}


def quadratic(w):
    return w.square().sum(-1) / 2


def test_the_grid_in_one_stack_is_each_setting_alone_with_the_same_noise():
    points = [critical_point(label, 6) for label in ("5", "6")]
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    grid = {"localization": [5.0, 20.0, 50.0], "nbeta": [600.0, 100.0]}
    whole = calibrate(PopulationLoss(), W, b, **grid, **QUICK)
    assert whole.estimate.mean.shape == (3, 2, 2)
    for i, localization in enumerate(grid["localization"]):
        for j, nbeta in enumerate(grid["nbeta"]):
            alone = estimate_llc(
                PopulationLoss(), W, b, localization=localization, nbeta=nbeta, **QUICK
            )
            assert torch.equal(whole.estimate.mean[i, j], alone.mean)
            assert torch.equal(whole.estimate.stderr[i, j], alone.stderr)
    # The settings do matter.
    assert whole.estimate.mean.flatten(0, 1).std(0).min() > 1e-3


def test_a_numpy_integer_is_the_seed_that_it_says():
    settings = {**QUICK, "nbeta": [10.0], "localization": [1.0], "budget": 1}
    start = torch.zeros(2, 3).double()
    one = calibrate(quadratic, start, **{**settings, "seed": np.int64(7)})
    other = calibrate(quadratic, start, **{**settings, "seed": 7})
    assert torch.equal(one.estimate.mean, other.estimate.mean)


def test_a_vmap_is_refused_clearly_because_the_grid_needs_axes_of_its_own():
    def of_one(w):
        return torch.nn.functional.linear(torch.eye(2).double(), w[None, :]).square().sum()

    with pytest.raises(ValueError, match=r"A torch.vmap of a loss takes one"):
        calibrate(
            torch.vmap(of_one), torch.zeros(2).double(), localization=[1.0], nbeta=[10.0], **QUICK
        )


def test_the_smallest_localization_that_keeps_the_chains_at_w_star_is_chosen():
    # A valley whose floor falls off at 1: chains pulled by 1 reach it, those pulled by 30 do not.
    def valley(w):
        x, y = w.unbind(-1)
        return x.square() / 2 - 0.04 * (y - 1.0).clamp(min=0)

    grid = {"localization": [0.5, 1.0, 30.0, 300.0], "nbeta": [150.0]}
    found = calibrate(valley, torch.zeros(2).double(), **grid, **QUICK)
    assert found.estimate.verdicts[2:] == [["ok"], ["ok"]]
    assert [row[0] == "ok" for row in found.estimate.verdicts[:2]] == [False, False]
    assert found.chosen.tolist() == [2, 0]
    expected = 150 / (150 + 30) / 2
    assert abs(float(found.estimate.mean[2, 0]) - expected) < 4 * float(found.estimate.stderr[2, 0])


def test_the_first_nbeta_comes_before_a_smaller_localization():
    start = torch.zeros(3, 4).double()
    grid = {"localization": [1.0, 3.0], "nbeta": [100.0, 50.0]}
    found = calibrate(quadratic, start, **grid, **QUICK)
    assert found.chosen.tolist() == [[0, 0]] * 3


def test_nothing_is_chosen_where_chains_escape():
    # Linear: there is always lower ground.
    found = calibrate(
        lambda w: w.sum(-1), torch.zeros(2).double(), localization=[0.1], nbeta=[100.0], **QUICK
    )
    assert found.chosen.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"localization": []}, "no localization"),
        ({"nbeta": []}, "no nbeta"),
        ({"nbeta": [1.0, 1.0]}, "nbeta twice"),
        ({"localization": [1.0, 0.1]}, "localization must increase"),
        ({"localization": [-1.0, 1.0]}, "localization must be >= 0, got -1.0"),
        ({"nbeta": [math.nan]}, "nbeta must be positive, got nan"),
    ],
)
def test_bad_grids_are_refused(grid, message):
    good = {"localization": [0.1], "nbeta": [100.0]}
    with pytest.raises(ValueError, match=message):
        calibrate(quadratic, torch.zeros(1).double(), **{**good, **grid}, **QUICK)
