"""Figures of an atlas: phases and the passes between them, and rates of leaving a phase."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kgon.figures.style import GREY, INK, new_panels, phase_handle, phase_style, styled
from kgon.landscape.passes import Pass
from kgon.landscape.rates import Escape
from kgon.theory.critical import CriticalPoint

MOST = 24
"""The largest number of passes in the figure; the lowest are drawn."""


@styled
def passes(points: Sequence[CriticalPoint], ways: Sequence[Pass]) -> Figure:
    """Phases from left to right in order of loss, and an arch up to the loss of each pass.

    Of `points`, in order of loss, those at the ends of passes are drawn, or without passes the
    first eight. An arch over one phase is a pass between two of its points.
    """
    drawn = [way for way in ways if "" not in way.ends][:MOST]
    used = {label for way in drawn for label in way.ends}
    order = [point for point in points if point.label in used] or list(points)[:8]
    place = {point.label: i for i, point in enumerate(order)}
    height = {point.label: point.loss for point in order}
    legend = [Line2D([], [], color=GREY, lw=0.6, marker="_", mec=INK, ms=6, label="pass")]
    figure, (ax,) = new_panels("Phases and the passes between them", [2.2], legend)
    for way in drawn:
        first, second = way.ends
        x = np.array([place[first], place[second]], dtype=float)
        if first == second:
            x += (-0.25, 0.25)
        t = np.linspace(0, 1, 41)
        # Two halves of parabolas, from each phase up to the pass.
        end = np.where(t < 0.5, height[first], height[second])
        y = way.point.loss - (way.point.loss - end) * (2 * t - 1) ** 2
        ax.plot(x[0] + (x[1] - x[0]) * t, y, lw=0.6, color=GREY, zorder=1)
        ax.plot(x.mean(), way.point.loss, marker="_", ms=6, color=INK, zorder=2)
    for point in order:
        ax.plot(place[point.label], point.loss, ls="", **phase_style(point.label), zorder=3)
        llc = "" if point.llc is None else f"\nλ {point.llc:g}"
        ax.annotate(f"{point.label}{llc}", (place[point.label], point.loss),
                    textcoords="offset points", xytext=(0, -6), ha="center",
                    va="top")  # fmt: skip
    ax.margins(x=0.1, y=0.2)
    ax.set_xticks([])
    ax.set(ylabel="population loss")
    return figure


@styled
def escapes(rates: Sequence[Escape]) -> Figure:
    """Rates of leaving a phase against 1 / T: measured with errors, Eyring-Kramers as lines."""
    ends = sorted({rate.end for rate in rates if rate.n_escapes})
    legend = [phase_handle(end, ls="") for end in ends]
    legend.append(Line2D([], [], color=GREY, lw=0.8, ls="--", label="Eyring-Kramers"))
    figure, (ax,) = new_panels("Rates of leaving a phase", [2.2], legend)
    for end in ends:
        of_end = sorted((r for r in rates if r.end == end), key=lambda r: r.temperature)
        inverse = [1 / r.temperature for r in of_end]
        style = phase_style(end)
        ax.plot(inverse, [r.predicted for r in of_end], ls="--", lw=0.8, color=style["color"])
        met = [r for r in of_end if r.n_escapes]
        ax.errorbar([1 / r.temperature for r in met], [r.measured for r in met],
                    [r.error for r in met], ls="", lw=0.8, **style)  # fmt: skip
    ax.set_yscale("log")
    ax.set(xlabel="1 / T", ylabel="rate per unit of gradient flow's time")
    return figure
