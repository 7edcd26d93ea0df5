"""Estimates of learning coefficients that others have published."""

from typing import NamedTuple

PAPER = "Chen et al. 2023, Table K.1"
REPRODUCTION = "ztreisman/arc-llc"

FOUR_GONS = "4 .. 5.5"
"""The paper's values for 4-gons, which depend on the direction. The volume exponent is larger, and
estimates at finite n lie below both."""


class PublishedEstimate(NamedTuple):
    """An estimate by others, its spread if they state one, and where it stands."""

    value: float
    spread: float | None
    source: str


PUBLISHED = {
    ("5", 5000): PublishedEstimate(7.705, 0.85, PAPER),
    ("5+", 5000): PublishedEstimate(9.906, 1.27, PAPER),
    ("6", 5000): PublishedEstimate(9.027, 0.59, PAPER),
    ("5", 50000): PublishedEstimate(7.32, None, REPRODUCTION),
    ("5+", 50000): PublishedEstimate(8.74, None, REPRODUCTION),
    ("6", 50000): PublishedEstimate(8.53, None, REPRODUCTION),
    ("5", 500000): PublishedEstimate(6.90, None, REPRODUCTION),
    ("5+", 500000): PublishedEstimate(8.41, None, REPRODUCTION),
    ("6", 500000): PublishedEstimate(8.46, None, REPRODUCTION),
}
"""By label and n, at n_features = 6. The paper's values are quoted from the reproduction, whose own
(of the population loss) are listed where the paper has none."""
