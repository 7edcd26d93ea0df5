"""Errors of means of few values."""

import math

import pytest
import torch

from kgon.theory.intervals import widening


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_two_errors_hold_the_mean_of_n_normal_values_19_times_of_20(n):
    trials = 20_000
    values = torch.randn(trials, n, generator=torch.Generator().manual_seed(n)).double()
    error = values.std(1) / math.sqrt(n) * widening(n - 1)
    held = float((values.mean(1).abs() < 2 * error).double().mean())
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_known_quantiles():
    # Tables of Student's t: 12.706, 2.228, 1.960.
    found = widening(torch.tensor([0.0, 1.0, 10.0, 1e9]))
    torch.testing.assert_close(
        2 * found, torch.tensor([12.706, 12.706, 2.228, 1.960]).double(), atol=6e-4, rtol=0
    )
