"""Results of a sweep's runs against a swept parameter."""

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from kgon.figures import style
from kgon.figures.style import Array, styled
from kgon.theory.intervals import mean_and_error

_MOST_PANELS = 5
_MOST_WORDS = 8
_DECADE = 10.0  # positive numbers that spread over a larger factor have a logarithmic axis
_LETTER = 4.5  # points
_POINTS = 72 * 2.9  # width of an axis, about
_LINE = 60  # characters below an axis
_WIDEST = 40.0  # points for a stack and the gap to the next
_SIDE = 3.0  # points from one phase to the next, where there is room

_SHARES = {
    "final/phase": "share of members, by final phase",
    "share": "share of the posterior",
}
"""Results by phase that add up to 1. A phase that a run does not name has the share 0."""
_NAMES = {
    "final/loss": "final loss, mean over members",
    "final/llc": "LLC, mean over a phase's members with the verdict ok",
    "final/transitions": "transitions, all members together",
}


@cache
def parts(result: str) -> tuple[str, str, str]:
    """The kind of a result, its phase and its n, of which the last two may be empty.

    `final/phase/5` is (`final/phase`, `5`, ``), `llc/5/5000` is (`llc`, `5`, `5000`). Diverged
    members count like a phase.
    """
    if result == "final/diverged":
        return "final/phase", "diverged", ""
    above, _, last = result.rpartition("/")
    what, _, label = above.rpartition("/")
    if what and last.isdigit() and style.k_sigma_phi(label) is not None:
        return what, label, last
    if above and (last == "other" or style.k_sigma_phi(last) is not None):
        return above, last, ""
    return result, "", ""


@styled
def against_parameter(
    name: str,
    values: Sequence[float | str],
    results: Sequence[Mapping[str, float | str]],
    *,
    only: Collection[str] = (),
    others: Sequence[str] = (),
) -> Figure | None:
    """Each result against a parameter: a pale dot for each run, and their means with errors.

    A mean and its error (`mean_and_error`) are over the runs with the same value; one run has no
    error. Results by phase share a panel, side by side. Shares of phases are stacked, as means over
    runs: shares of the posterior, and of a run's members in a final phase (`final/phase/5`).

    Positive numbers that spread over more than a factor of ten have a logarithmic axis, other
    numbers a linear one, and words are evenly spaced.

    Args:
        name: the name of the parameter.
        values: its value in each run.
        results: the results of each run, by name.
        only: the results to draw; by default those that are not the same in all runs.
        others: the names of other parameters that differ between the runs.

    Returns:
        The figure; None if there is nothing to draw.
    """
    panels = _panels(results, only)
    varying = {
        panel: {phase: y for phase, y in lines.items() if phase != "diverged" or y.any()}
        for panel, lines in panels.items()
        if any(np.unique(y[np.isfinite(y)]).size > (not only) for y in lines.values())
    }
    shown = dict(list(varying.items())[:_MOST_PANELS])
    if not shown:
        return None
    stacked = [panel for panel in shown if panel.startswith(tuple(_SHARES.values()))]
    labels = style.phase_order(label for lines in shown.values() for label in lines if label)
    legend: list[Any] = [Line2D([], [], label=label, **_marks(label)) for label in labels]
    if len(stacked) == len(shown):
        legend = [Patch(color=_marks(label)["color"], label=label) for label in labels]
    heights = [0.9] * len(shown) if len(shown) > 1 else [1.8]
    figure, axes = style.new_panels(f"Results against {name}", heights, legend)
    words = any(isinstance(value, str) for value in values)
    x = _places(axes[-1], values) if words else np.array(values, dtype=float)
    if not words:
        _numeric(axes[-1].xaxis, x, horizontal=True)
    several = len(np.unique(x)) < len(x)
    for ax, (panel, lines) in zip(axes, shown.items(), strict=True):
        ax.set_title(panel, loc="left")
        lines = {label: lines[label] for label in ("", *labels) if label in lines}
        if panel in stacked:
            _stack(ax, x, lines, 72 * heights[0])
            continue
        for place, (label, y) in enumerate(lines.items()):
            side = (place - (len(lines) - 1) / 2) * min(_SIDE, _room(ax, x) / (2 * len(lines)))
            _draw(ax, x, y, _marks(label), "" if words else "-", side)
        _numeric(ax.yaxis, np.concatenate([*lines.values()]))
    axes[-1].set_xlabel(name + _explained(several, len(stacked), len(shown), others))
    return figure


def _panels(
    results: Sequence[Mapping[str, float | str]], only: Collection[str]
) -> dict[str, dict[str, Array]]:
    """The results by panel and phase, a number for each run; if runs have several n, each n has a
    panel."""
    panels: dict[str, dict[str, Array]] = {}
    keys = dict.fromkeys(key for run in results for key in run if not only or key in only)
    whats = [parts(key)[0] for key in keys]
    for key in sorted(keys, key=lambda key: (whats.index(parts(key)[0]), int(parts(key)[2] or 0))):
        what, phase, n = parts(key)
        found = [run.get(key, np.nan) for run in results]
        if any(isinstance(value, str) for value in found):
            continue
        y = np.array(found, dtype=float)
        if what == "final/phase":
            y = y / [_members(run) for run in results]
        several = any(len({parts(k)[2] for k in run if parts(k)[0] == what}) > 1 for run in results)
        panel = (_SHARES | _NAMES).get(what, what.removeprefix("final/"))
        lines = panels.setdefault(panel + (f", n = {n}" if several else ""), {})
        lines[phase] = np.where(np.isfinite(y), y, lines.get(phase, np.nan))
    for panel, lines in panels.items():
        if panel.startswith(tuple(_SHARES.values())):
            lines |= {phase: np.nan_to_num(y) for phase, y in lines.items()}
    return panels


def _explained(several: bool, n_stacked: int, n_shown: int, others: Sequence[str]) -> str:
    """A line or two below the axis about runs with the same value; empty if there are none."""
    if not several:
        return ""
    drawn = "pale: runs; bars: errors of their means"
    if n_stacked:
        drawn = "means over runs" if n_stacked == n_shown else f"{drawn}; shares: means"
    differ = textwrap.shorten(f"runs differ in {', '.join(others)}", _LINE, placeholder=" ...")
    return f"\n{drawn}" + (f"\n{differ}" if others else "")


def _members(run: Mapping[str, float | str]) -> float:
    """How many members a run has; NaN if that is not among its results."""
    return float(run.get("final/members", np.nan)) or np.nan


def _marks(label: str) -> dict[str, Any]:
    if not label:
        return {"color": style.INK, "marker": "o"}
    if label == "diverged":
        return {"color": style.INK, "marker": "x"}
    return style.phase_style(label)


def _draw(ax: Axes, x: Array, y: Array, marks: Mapping[str, Any], line: str, side: float) -> None:
    """Draw a result of all runs, `side` points to the right of x."""
    at = np.unique(x[np.isfinite(y)])
    groups = [y[(x == place) & np.isfinite(y)] for place in at]
    if any(len(group) > 1 for group in groups):
        beside = _beside(ax, x, side)
        ax.plot(beside, y, **{"ls": "", "ms": 2.5, "alpha": style.PALE, **marks})
    means, errors = np.array([mean_and_error(group) for group in groups]).reshape(-1, 2).T
    ax.errorbar(_beside(ax, at, side), means, errors,
                **{"ls": line, "lw": 0.9, "ms": 3.5, **marks})  # fmt: skip


def _stack(ax: Axes, x: Array, lines: Mapping[str, Array], tall: float) -> None:
    """Draw the shares of phases as stacked bars, `tall` points in all, means over the runs with the
    same x."""
    at = np.unique(x)
    width = 0.7 * min(_room(ax, x), _WIDEST)
    left, right = _beside(ax, at, -width / 2), _beside(ax, at, width / 2)
    bottom = np.zeros(len(at))
    for label, y in lines.items():
        share = np.array([np.nanmean(y[x == place]) for place in at])
        colour = _marks(label)["color"]
        ax.bar(left, share, right - left, bottom, align="edge", color=colour, label=label)
        light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.45
        for place, height, start in zip(at, share, bottom, strict=True):
            if height * tall > 2 * _LETTER and width > _LETTER * len(label):
                ax.text(place, start + height / 2, label, ha="center", va="center_baseline",
                        color=style.INK if light else "white")  # fmt: skip
        bottom = bottom + share
    ax.set_ylim(0, 1)


def _places(ax: Axes, values: Sequence[float | str]) -> Array:
    """A place on the x axis for each distinct value, numbers first."""
    words = sorted({v for v in values if isinstance(v, str)})
    numbers = sorted({v for v in values if not isinstance(v, str)})
    distinct: list[float | str] = [*numbers, *words]
    shown = range(0, len(distinct), -(-len(distinct) // _MOST_WORDS))
    ax.set_xticks([*shown], [_short(distinct[i]) for i in shown])
    ax.set_xlim(-0.5, len(distinct) - 0.5)
    return np.array([distinct.index(v) for v in values], dtype=float)


def _short(value: float | str) -> str:
    """A value as a tick label: of the path of a class only the class, at most twelve letters."""
    path = re.fullmatch(r"(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", str(value))
    return (path[1] if path else str(value))[:12]


def _beside(ax: Axes, x: Array, points: float) -> Array:
    """x moved to the right by about so many points."""
    scale = ax.xaxis.get_transform()
    low, high = scale.transform(np.array(ax.get_xlim()))
    moved: Array = scale.inverted().transform(scale.transform(x) + points / _POINTS * (high - low))
    return moved


def _room(ax: Axes, x: Array) -> float:
    """The least distance between two x on the axis, in points, about."""
    scale = ax.xaxis.get_transform()
    low, high = scale.transform(np.array(ax.get_xlim()))
    apart = np.diff(scale.transform(np.unique(x)))
    return float(apart.min(initial=high - low) / (high - low)) * _POINTS


def _numeric(axis: Axis, values: Array, *, horizontal: bool = False) -> None:
    """The scale and ticks of an axis of numbers; on the x axis ticks are at the values if there is
    room."""
    distinct = np.unique(values[np.isfinite(values)])
    logarithmic = bool(distinct[0] > 0 and distinct[-1] > _DECADE * distinct[0])
    if logarithmic:
        (axis.axes.set_xscale if horizontal else axis.axes.set_yscale)("log")
    at = np.log(distinct) if logarithmic else distinct
    apart = np.diff(at)
    if horizontal:
        margin = max(0.05 * apart.sum(), 0.5 * apart.min()) if apart.size else 0.5
        ends = np.array([at[0] - margin, at[-1] + margin])
        axis.axes.set_xlim(*(np.exp(ends) if logarithmic else ends))
    longest = max(len(style.plain_decimals(value)) for value in distinct)
    if horizontal and _room(axis.axes, distinct) > _LETTER * (longest + 1):
        axis.set_major_locator(FixedLocator([*distinct]))
        axis.set_major_formatter(style.plain_decimals)
        axis.set_minor_locator(NullLocator())
    elif logarithmic:
        style.decimal_ticks(axis, (1, 2, 5) if distinct[-1] < 100 * distinct[0] else (1,), 8)
    else:
        whole = horizontal and bool((distinct == distinct.round()).all())
        axis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]))
