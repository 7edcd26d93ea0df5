"""A grid of settings as one stack, and the rules that choose among them."""

import math

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.llc.calibration import ACCEPTANCE, calibrate
from kgon.llc.estimate import VERDICTS, estimate_llc
from kgon.theory.critical import critical_point
from kgon.theory.loss import PopulationLoss

LENGTHS = {"n_chains": 24, "n_draws": 1500, "n_burnin": 300, "seed": 3}


def quadratic(w):
    return w.square().sum(-1) / 2


def test_the_grid_in_one_stack_is_each_setting_alone_with_the_same_noise():
    points = [critical_point(label, 6) for label in ("5", "6")]
    W, b = torch.stack([p.W for p in points]), torch.stack([p.b for p in points])
    lengths = {**LENGTHS, "n_chains": 3, "n_draws": 40, "n_burnin": 10}
    grid = {"lr": [1e-5, 1e-4], "localization": [0.0, 0.5, 20.0], "nbeta": [600.0, 100.0]}
    whole = calibrate(PopulationLoss(), W, b, **grid, **lengths)
    assert whole.estimate.mean.shape == (2, 3, 2, 2)
    for i, lr in enumerate(grid["lr"]):
        for j, localization in enumerate(grid["localization"]):
            for k, nbeta in enumerate(grid["nbeta"]):
                alone = estimate_llc(
                    PopulationLoss(),
                    W,
                    b,
                    lr=lr,
                    localization=localization,
                    nbeta=nbeta,
                    **lengths,
                )
                # Rounding at 1e-16 of the parameters, 50 steps of a stable chain.
                trace = whole.estimate.trace[:, :, i, j, k]
                torch.testing.assert_close(trace, alone.trace, rtol=1e-11, atol=1e-13)
                torch.testing.assert_close(
                    whole.estimate.acceptance[i, j, k], alone.acceptance, rtol=1e-8, atol=0
                )
    # The settings do matter.
    assert whole.estimate.mean.flatten(0, 2).std(0).min() > 1e-3


def test_a_numpy_integer_is_the_seed_that_it_says():
    settings = {**LENGTHS, "n_draws": 5, "n_burnin": 0, "n_chains": 2, "nbeta": [10.0]}
    settings |= {"lr": [1e-4, 1e-3], "localization": [1.0]}
    start = torch.zeros(2, 3).double()
    one = calibrate(quadratic, start, **{**settings, "seed": np.int64(7)})
    other = calibrate(quadratic, start, **{**settings, "seed": 7})
    assert torch.equal(one.estimate.trace, other.estimate.trace)


def test_a_vmap_is_refused_clearly_because_the_grid_needs_axes_of_its_own():
    settings = {**LENGTHS, "lr": [1e-4, 1e-3], "localization": [1.0], "nbeta": [10.0]}

    def of_one(w):
        return torch.nn.functional.linear(torch.eye(2).double(), w[None, :]).square().sum()

    with pytest.raises(ValueError, match=r"A torch.vmap of a loss takes one"):
        calibrate(torch.vmap(of_one), torch.zeros(2).double(), **settings)


def test_of_a_quadratic_the_largest_accurate_step_is_chosen():
    nbeta = 1000.0
    # lr nbeta = 1e-4 does not mix; 3 is stable (< 4) and wrong by 1 / (1 - 3/4).
    lr = [x / nbeta for x in (1e-4, 0.03, 0.06, 0.12, 3.0)]
    result = calibrate(
        quadratic,
        torch.zeros(2, 8).double(),
        lr=lr,
        localization=[0.0, 1.0],
        nbeta=[nbeta],
        **LENGTHS,
    )
    estimate = result.estimate
    assert (estimate.acceptance[-1] < ACCEPTANCE).all() and not result.admissible[-1].any()
    assert (estimate.verdict[0] != VERDICTS.index("ok")).all() and not result.admissible[0].any()
    for chosen in result.chosen.tolist():
        assert chosen == [3, 0, 0]
    expected = 4 / (1 - 0.12 / 4)
    error = estimate.stderr[3, 0, 0]
    assert ((estimate.mean[3, 0, 0] - expected).abs() < 4 * error).all()


def test_nothing_is_chosen_where_chains_escape():
    # Linear: there is always lower ground.
    result = calibrate(
        lambda w: w.sum(-1),
        torch.zeros(2).double(),
        lr=[1e-3, 3e-3],
        localization=[0.1],
        nbeta=[100.0],
        **LENGTHS,
    )
    assert not result.admissible.any()
    assert result.chosen.tolist() == [-1, -1, -1]


def test_a_step_too_small_to_have_escaped_yet_is_not_admissible():
    # A valley whose level floor falls off at 1.8. By the end chains have walked sqrt(1800 lr) on
    # it, 0.33, 0.40 and 3: the fall is 4.5 standard deviations away, or less than one.
    def valley(w):
        x, y = w.unbind(-1)
        return x.square() / 2 - 2 * (y - 1.8).clamp(min=0)

    grid = {"lr": [6e-5, 9e-5, 5e-3], "localization": [0.0], "nbeta": [150.0]}
    result = calibrate(valley, torch.zeros(2).double(), **grid, **LENGTHS)
    words = [VERDICTS[code] for code in result.estimate.verdict.flatten().tolist()]
    assert words == ["ok", "ok", "escaped"]
    difference = result.estimate.mean[1] - result.estimate.mean[0]
    assert float(difference.abs()) < 2 * float(result.estimate.stderr[:2].square().sum().sqrt())
    assert not result.admissible.any()


def test_the_same_seed_gives_the_same_choice_and_keys_are_common():
    keys = streams.member_keys(3, range(1), "llc").reshape(1)
    grid = {"lr": [2e-5, 6e-5], "localization": [0.0], "nbeta": [1000.0]}
    result = calibrate(quadratic, torch.zeros(1, 3).double(), **grid, **LENGTHS)
    alone = estimate_llc(
        quadratic,
        torch.zeros(1, 3).double(),
        lr=6e-5,
        localization=0.0,
        nbeta=1000.0,
        **{**LENGTHS, "seed": keys},
    )
    torch.testing.assert_close(result.estimate.mean[1, 0, 0], alone.mean, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"lr": []}, "no lr"),
        ({"localization": []}, "no localization"),
        ({"nbeta": []}, "no nbeta"),
        ({"lr": [1e-3]}, "two or more increasing"),
        ({"lr": [1e-3, 1e-4]}, "two or more increasing"),
        ({"nbeta": [1.0, 1.0]}, "nbeta twice"),
        ({"localization": [1.0, 0.1]}, "localization must increase"),
        ({"lr": [0.0, 1e-3]}, "lr must be positive, got 0.0"),
        ({"localization": [-1.0, 1.0]}, "localization must be >= 0, got -1.0"),
        ({"nbeta": [math.nan]}, "nbeta must be positive, got nan"),
    ],
)
def test_bad_grids_are_refused(grid, message):
    good = {"lr": [1e-4, 1e-3], "localization": [0.1], "nbeta": [100.0]}
    with pytest.raises(ValueError, match=message):
        calibrate(quadratic, torch.zeros(1).double(), **{**good, **grid}, **LENGTHS)
