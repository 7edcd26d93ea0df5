"""The interactive chart of a run's loss curves: what `assets/report.js` needs, as JSON.

To keep pages small, curves have 5 significant digits and are thinned to fewer members and steps;
the page says by how much.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kgon.figures.style import loss_limits, phase_color, phase_order
from kgon.theory.critical import CriticalPoint

Array = NDArray[Any]

# With these, 300 runs of 100 members take about 7 MB.
_VALUES = 200_000  # loss values, shared by the runs of the page ...
_LEAST_MEMBERS, _LEAST_STEPS = 24, 64  # ... but each run may have this many at least


def loss_chart(
    table: pa.Table | None,
    phases: Mapping[int, str],
    points: Sequence[CriticalPoint],
    identifier: str,
    n_runs: int,
    name: str,
) -> str:
    """HTML of the chart and its data, which has the name `identifier` in the page.

    `table` has step, member and loss; `phases` the final phase by member, else it is `unknown`;
    `points` are drawn as levels; `n_runs` share the page; the loss is called `name`.
    """
    if table is None or table.num_rows == 0:
        return "<p>No loss recorded.</p>"
    step, row = np.unique(table["step"].to_numpy(), return_inverse=True)
    member, column = np.unique(table["member"].to_numpy(), return_inverse=True)
    loss = np.full((len(step), len(member)), np.nan)  # where a member has no value
    loss[row, column] = table["loss"].to_numpy()
    rows, columns = _thin(step, len(member), n_runs)
    shown = loss[np.ix_(rows, columns)]
    ends = [phases.get(int(m), "unknown") for m in member[columns]]
    low, high = loss_limits(shown, [p.loss for p in points])
    positive, later = shown[shown > 0], step[step > 0]
    data = {
        "steps": step[rows].tolist(),
        "curves": [
            {"member": int(m), "phase": phase, "y": [five_digits(v) for v in curve.tolist()]}
            for m, phase, curve in zip(member[columns], ends, shown.T, strict=True)
        ],
        "levels": [[p.label, five_digits(p.loss)] for p in points],
        "colors": {
            label: [phase_color(label), phase_color(label, dark=True)]
            for label in sorted({*ends, *(p.label for p in points)})
        },
        "name": name,
        "range": [five_digits(low), five_digits(high)],
        "least": five_digits(float(positive.min(initial=high))) or 1e-12,
        "first": 10.0 ** math.floor(math.log10(later[0])) if len(later) else 1,
    }
    above = int((shown > high).any(0).sum())
    counts = Counter(phases.get(int(m), "unknown") for m in member)
    legend = " ".join(named(p, f"{p}: {counts[p]}") for p in phase_order(counts))
    notes = [
        f"{escape(name.capitalize())} by member, coloured by final phase; dashed: critical "
        "levels. Drag to zoom in, double-click to zoom out."
    ]
    if above:
        notes.append(f"{above} begin above the frame.")
    if shown.size < loss.size:
        notes.append(
            f"Shown: {len(columns)} of {len(member)} members, {len(rows)} of {len(step)} steps."
        )
    return (
        f'{json_script(identifier, data)}<div class="chart" data-source="{identifier}">'
        '<div class="bar" role="group" aria-label="axes">'
        '<button type="button" data-axis="x">log steps</button>'
        '<button type="button" data-axis="y">log loss</button></div>'
        f"<p>{legend}</p>"
        f'<div class="plot" tabindex="0" role="img" aria-label="{escape(name.capitalize())} of '
        f'{len(columns)} members against optimizer steps; arrow keys read values"></div>'
        '<output aria-live="polite">Point at a curve, or focus the chart and use the arrow keys.'
        f'</output></div><p class="soft">{" ".join(notes)}</p>'
    )


def _thin(step: Array, n_members: int, n_runs: int) -> tuple[Array, Array]:
    """Which steps and members to show; of the steps half are evenly spaced, half on a log scale."""
    budget = max(_VALUES // n_runs, _LEAST_MEMBERS * _LEAST_STEPS)
    if len(step) * n_members <= budget:
        return np.arange(len(step)), np.arange(n_members)
    n_kept = min(n_members, max(_LEAST_MEMBERS, budget // min(len(step), 400)))
    members = np.unique(np.linspace(0, n_members - 1, n_kept).round().astype(int))
    n_steps = budget // n_kept
    if n_steps >= len(step):
        return np.arange(len(step)), members
    spaced = [
        np.linspace(step[0], step[-1], n_steps // 2),
        np.geomspace(step[step > 0][0], step[-1], n_steps - n_steps // 2),
    ]
    return np.unique(np.searchsorted(step, np.concatenate(spaced)).clip(0, len(step) - 1)), members


def named(label: str, text: str | None = None) -> str:
    """A phase's name (or another text) behind a square of its colour."""
    swatch = f'<span class="swatch" style="background:{phase_color(label)}"></span>'
    return f'<span class="count">{swatch}{escape(text or label)}</span>'


def five_digits(value: float) -> float | None:
    """The value to 5 significant digits; None for NaN and infinity, which JSON does not know."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def json_script(identifier: str, data: object) -> str:
    """Data for the script. With "<" escaped no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{identifier}">{text}</script>'
