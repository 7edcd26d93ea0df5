"""Results of a sweep's runs against a swept parameter."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kgon.figures import style
from kgon.figures.style import Array, styled

_MOST_PANELS = 5
_MOST_PLACES = 8  # so many values are evenly spaced; more numbers are on a numeric axis


@styled
def against_parameter(
    name: str,
    values: Sequence[float | str],
    results: Sequence[Mapping[str, float | str]],
    *,
    constant: bool = False,
) -> Figure | None:
    """Each result against a parameter: a dot for each run, and a line through the means.

    Results by phase (`final/llc/5`, `final/llc/5+`) share a panel; a missing count
    (`final/phase/5`) is 0.

    Args:
        values: the parameter's value in each run.
        results: the results of each run by name.
        constant: whether results that are the same in all runs are shown, too.

    Returns:
        The figure; None if there is no result to show.
    """
    panels: dict[str, dict[str, Array]] = {}
    for key in dict.fromkeys(key for run in results for key in run):
        group, _, label = key.rpartition("/")
        by_phase = style.k_sigma_phi(label) is not None or label == "other"
        blank = 0.0 if group.endswith("phase") else np.nan
        found = [run.get(key, blank) for run in results]
        if not any(isinstance(value, str) for value in found):
            panels.setdefault(group if by_phase else key, {})[label if by_phase else ""] = np.array(
                found, dtype=float
            )
    varying = {
        panel: lines
        for panel, lines in panels.items()
        if any(np.unique(y[np.isfinite(y)]).size > 1 - constant for y in lines.values())
    }
    shown = dict(list(varying.items())[:_MOST_PANELS])
    if not shown:
        return None
    labels = style.phase_order(label for lines in shown.values() for label in lines if label)
    legend = [style.phase_handle(p) for p in labels]
    heights = [0.9] * len(shown) if len(shown) > 1 else [1.8]
    figure, axes = style.new_panels(f"Results against {name}", heights, legend)
    x = _place(axes[-1], values)
    for ax, (panel, lines) in zip(axes, shown.items(), strict=True):
        ax.set_title(panel, loc="left")
        for label, y in lines.items():
            marks = style.phase_style(label) if label else {"color": style.INK, "marker": "o"}
            ax.plot(x, y, ls="", ms=3, alpha=0.5, **marks)
            at = np.unique(x[np.isfinite(y)])
            ax.plot(at, [np.nanmean(y[x == v]) for v in at], color=marks["color"], lw=0.9)
    axes[-1].set_xlabel(name)
    return figure


def _place(ax: Axes, values: Sequence[float | str]) -> Array:
    """The x coordinate of each run; sets the scale and ticks of the x axis."""
    words = sorted({v for v in values if isinstance(v, str)})
    distinct = [*sorted({v for v in values if not isinstance(v, str)}), *words]
    if len(distinct) <= _MOST_PLACES or words:
        shown = range(0, len(distinct), -(-len(distinct) // _MOST_PLACES))
        ax.set_xticks([*shown], [str(distinct[i])[:12] for i in shown])
        ax.set_xlim(-0.5, len(distinct) - 0.5)
        return np.array([distinct.index(v) for v in values], dtype=float)
    numbers = np.array(values, dtype=float)
    if numbers.min() > 0 and numbers.max() / numbers.min() > 30:
        ax.set_xscale("log")
    return numbers
