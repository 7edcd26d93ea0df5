"""The table that kgon llc prints, with published values beside the estimates."""

import math
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from kgon.llc.published import PAPER

Rows = list[dict[str, Any]]

_COLUMNS = {
    "label": ("label", None),
    "n_samples": ("n", None),
    "step": ("step", None),
    "member": ("member", None),
    "phase": ("phase", None),
    "theory": ("theory", 1),
    "published": ("published", 3),
    "exact": ("exact", 2),
    "llc": ("kgon", 2),
    "variance": ("variance", 2),
    "acceptance": ("acc.", 2),
    "kept": ("kept", None),
    "verdict": ("verdict", None),
}
_CALIBRATED = {
    **{k: v for k, v in _COLUMNS.items() if k not in ("published", "exact", "acceptance", "kept")},
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
    # With the exact value there is no room for the variance.
    drop = "variance" if any(row.get("exact") is not None for row in rows) else "exact"
    columns = {key: value for key, value in columns.items() if key != drop}
    if all(row.get("kept") == row.get("n_chains") for row in rows):
        columns.pop("kept", None)
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
    if key == "exact" and row["exact_verdict"] != "ok":
        return str(row["exact_verdict"])
    if key == "llc":
        return f"{value:.2f} ± {row['stderr']:.2f}"
    if key == "kept" and "n_chains" in row:
        return f"{value}/{row['n_chains']}"
    return str(value) if digits is None else f"{value:.{digits}f}"
