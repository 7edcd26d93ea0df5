"""How often `ok` is right, in short; `make coverage` measures it for more models and settings."""

import math

import pytest
from verdicts.measure import SETTINGS, measured
from verdicts.models import k_gon, monomial, quadratic
from verdicts.page import within

MODELS = [k_gon("5", 6), k_gon("6", 6), k_gon("7+", 8)]
OTHERS = [quadratic([1.0] * 4), monomial(2, 2)]


def estimates(name, models, repetitions):
    (setting,) = [s for s in SETTINGS if s.name == name]
    setting = type(setting)(setting.name, setting.default, setting.arguments, sizes=(1000,))
    return [row for rows in measured([setting], models, repetitions) for row in rows]


def least(share, n):
    """A share that is met by chance all but once in a thousand times."""
    return share - 3.1 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize(
    ("models", "repetitions"), [(MODELS, 100), pytest.param(OTHERS, 100, marks=pytest.mark.slow)]
)
def test_ok_estimates_of_the_callbacks_defaults_lie_within_two_errors(models, repetitions):
    rows = estimates("defaults of the callback", models, repetitions)
    ok = [row for row in rows if row["verdict"] == "ok"]
    assert len(ok) > least(0.85, len(rows)) * len(rows)
    held = sum(within(row, 2) for row in ok) / len(ok)
    assert held > least(0.94, len(ok))
    of_variance = sum(within(row, 2, "variance", "true_variance") for row in ok) / len(ok)
    assert of_variance > least(0.90, len(ok))  # squares are skewed, and so are their errors


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("SGLD, steps 10 times too large", marks=pytest.mark.slow),
        "SGLD, 4 chains, 400 draws",
        "HMC, 2 chains, 50 draws",
    ],
)
def test_bad_settings_are_refused_or_right(name):
    rows = estimates(name, MODELS[:2], 30)
    wrong = [row for row in rows if row["verdict"] == "ok" and not within(row, 2)]
    ok = sum(row["verdict"] == "ok" for row in rows)
    assert len(wrong) <= 0.1 * ok + 3.1 * math.sqrt(0.09 * ok)
    assert ok < len(rows) / 2
