"""Learning coefficients in three and four dimensions: theory against chains, close to the point."""

import pytest

from kgon import estimate_llc
from kgon.theory.atlas import point
from kgon.theory.loss import PopulationLoss


@pytest.mark.parametrize(
    ("label", "n_features", "n_hidden", "llc"),
    [
        ("2x2x2", 6, 3, 10.5),
        ("2x2x2++", 8, 3, 14.5),
        ("2x2x2x2", 9, 4, 19.0),
        ("8d3a", 8, 3, 14.5),
    ],
)
def test_llc_near_the_limit_of_large_n(label, n_features, n_hidden, llc):
    p = point(label, n_features, n_hidden)
    assert p.llc == llc
    nbeta = 1e9
    # Of the curvatures nbeta h, h > 0.05: localization takes less than 0.0004 of each half.
    found = estimate_llc(
        PopulationLoss(), p.W, p.b, nbeta=nbeta, localization=2e-5 * nbeta, seed=0, target=0.01
    )
    assert found.verdicts == "ok"
    # The cubic terms are of the order of llc^2 / sqrt(nbeta), 0.01; the error allows for 0.1.
    assert abs(float(found.mean) - llc) < 3 * float(found.stderr)
