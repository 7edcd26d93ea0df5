"""The table that kgon llc prints, with what others have published of the same estimates."""

import math
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

Rows = list[dict[str, Any]]

PAPER = "Chen et al. 2023, Table K.1"
REPRODUCTION = "ztreisman/arc-llc"
PUBLISHED = {
    ("5", 5000): (7.705, 0.85, PAPER),
    ("5+", 5000): (9.906, 1.27, PAPER),
    ("6", 5000): (9.027, 0.59, PAPER),
    ("5", 50000): (7.32, None, REPRODUCTION),
    ("5+", 50000): (8.74, None, REPRODUCTION),
    ("6", 50000): (8.53, None, REPRODUCTION),
    ("5", 500000): (6.90, None, REPRODUCTION),
    ("5+", 500000): (8.41, None, REPRODUCTION),
    ("6", 500000): (8.46, None, REPRODUCTION),
}
"""Estimates by others at n_features = 6: value, spread, source. The paper's are quoted from that
reproduction, whose own (with the population loss) fill in where the paper has none."""

FOUR_GONS = "4 .. 5.5"
"""The paper's values for 4-gons, which depend on the direction. The volume exponent is larger, and
estimates at finite n lie below both."""

_COLUMNS = {
    "label": ("label", None),
    "n_samples": ("n", None),
    "step": ("step", None),
    "member": ("member", None),
    "phase": ("phase", None),
    "theory": ("theory", 1),
    "published": ("published", 3),
    "llc": ("kgon", 2),
    "stderr": ("s.e.", 2),
    "rhat": ("R-hat", 2),
    "kept": ("kept", None),
    "verdict": ("verdict", None),
}
_CALIBRATED = {
    **{k: v for k, v in _COLUMNS.items() if k not in ("published", "rhat", "kept")},
    "lr": ("lr", None),
    "localization": ("local.", None),
    "nbeta": ("nbeta", 0),
}


def estimates_table(rows: Rows) -> Table:
    """Estimates beside theory and published values."""
    return _table("Learning coefficients", _COLUMNS, rows)


def calibrated_table(rows: Rows) -> Table:
    """The settings that a calibration has chosen, and the estimates there."""
    return _table("Chosen settings", _CALIBRATED, rows)


def _table(title: str, columns: dict[str, tuple[str, int | None]], rows: Rows) -> Table:
    """The columns that the rows have: heading, and decimals of a number."""
    columns = {key: value for key, value in columns.items() if key in rows[0]}
    # Narrow gaps: nine columns with an "unconverged" fit into a terminal of 80.
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading, _ in columns.values():
        left = heading in ("label", "phase", "verdict")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, row, digits) for key, (_, digits) in columns.items()))
    return table


def _cell(key: str, row: dict[str, Any], digits: int | None) -> str:
    value = row[key]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if key == "published":
        spread = row["published_spread"]
        mark = "" if row["source"] == PAPER else " *"
        return f"{value:g}{mark}" if spread is None else f"{value:g}±{spread:g}"
    if key == "kept" and "n_chains" in row:
        return f"{value}/{row['n_chains']}"
    if key == "lr":
        return f"{value:.2g}"
    return str(value) if digits is None else f"{value:.{digits}f}"
