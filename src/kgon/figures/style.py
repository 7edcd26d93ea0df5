"""The style of kgon's figures: size, colours, markers, axes, names of levels, legends; and `save`.

Every figure is half a page wide and has no text below 7 pt. Figures are made without pyplot, so
there is no global state and no display. A phase has the same colour everywhere, and a marker and a
line style by which it is known without colour.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from zlib import crc32

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from kgon.theory.critical import parse_label

Array = NDArray[Any]
P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 3.4
"""Width of a figure in inches: half a page."""

FONT = 7.0  # points
LINE = FONT * 1.25 / 72  # inches from one line of text to the next
INK = "#222222"
GREY = "#757575"
PALE = 0.35
"""Opacity of estimates whose verdict is not ok."""

_LEGEND = 72  # characters in a row of a legend, with about 7 for each mark
_STYLE: Any = {
    "text.usetex": False,
    "font.size": FONT,
    "text.color": INK,
    "axes.titlesize": FONT,
    "axes.titlepad": 2.0,
    "axes.labelsize": FONT,
    "axes.labelcolor": INK,
    "axes.labelpad": 2.0,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.fontsize": FONT,
    "legend.title_fontsize": 8.0,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 0.8,
    "legend.labelspacing": 0.25,
    "legend.borderpad": 0.0,
    "legend.borderaxespad": 0.4,
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
    "figure.labelsize": FONT,
}


_FAMILIES = {3: "#00a5b5", 4: "#004c84", 5: "#b84a00", 6: "#16b886", 7: "#c8589c", 8: "#b49a00"}
"""The colour of the k-gon with sigma = phi = 0, by k."""


def k_sigma_phi(label: object) -> tuple[int, int, int] | None:
    """(k, sigma, phi) of a label such as `4++-`; None for anything else."""
    try:
        return parse_label(str(label))
    except ValueError:
        return None


def phase_color(label: object, *, dark: bool = False) -> str:
    """The colour of a phase as #rrggbb.

    The hue follows from k, or for a shape that is not a polygon from its name. Each sigma makes the
    colour lighter, and each phi shifts the hue. `other` is grey. `dark` is for a dark background.
    """
    key = k_sigma_phi(label)
    if key is None:
        return "#8c8c8c" if dark else GREY
    k, sigma, phi = key
    shape = str(label).rstrip("+-")
    # The hues of other families are multiples of the golden ratio, which never repeat.
    place = k if shape.isdigit() else crc32(shape.encode())
    hue, saturation, value = (
        rgb_to_hsv(to_rgb(_FAMILIES[place]))
        if place in _FAMILIES
        else (0.618034 * place % 1, 0.8, 0.7)
    )
    if dark:
        saturation, value = 0.85 * saturation, 1 - 0.7 * (1 - value)
    lighter = 1 - (1 - value) * 0.5**sigma
    red, green, blue = hsv_to_rgb(((hue + 0.06 * phi) % 1, saturation * 0.65**sigma, lighter))
    return to_hex((red, green, blue))


def phase_marker(label: object) -> MarkerStyle:
    """A regular k-gon, filled for sigma = 0 and hollow otherwise; a small disc for `other`."""
    key = k_sigma_phi(label)
    if key is None:
        return MarkerStyle(".")
    k, sigma, _ = key
    return MarkerStyle((max(k, 3), 0, 0), fillstyle="none" if sigma else "full")


def phase_style(label: object) -> dict[str, Any]:
    """Colour and marker of a phase, for matplotlib's `plot` and `errorbar`."""
    return {"color": phase_color(label), "marker": phase_marker(label)}


def phase_linestyle(label: object) -> str:
    """Solid, then dashed, dash-dotted and dotted with phi; dotted for `other`."""
    key = k_sigma_phi(label)
    return ":" if key is None else ("-", "--", "-.", ":")[min(key[2], 3)]


def phase_order(labels: Iterable[object]) -> list[str]:
    """The distinct labels from high to low loss: by k, then fewer phi, then more sigma; the rest
    last."""

    def rank(label: str) -> tuple[bool, int, int, int, str]:
        key = k_sigma_phi(label)
        k, sigma, phi = key or (0, 0, 0)
        return (key is None, k, -phi, sigma, label)

    return sorted({str(label) for label in labels}, key=rank)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws: text, lines and legends get kgon's style."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


def new_figure(title: str, height: float, legend: Sequence[Any] = ()) -> Figure:
    """An empty figure with a title and a legend, and `height` inches for axes below them."""
    longest = max((len(handle.get_label()) for handle in legend), default=0)
    columns = min(5, _LEGEND // (longest + 7))
    rows = math.ceil(len(legend) / columns)
    figure = Figure(figsize=(WIDTH, height + 0.22 + rows * 0.125), layout="constrained")
    figure.legend(handles=list(legend), title=title, loc="outside upper left", ncols=columns,
                  alignment="left")  # fmt: skip
    return figure


def new_panels(
    title: str,
    heights: Sequence[float],
    legend: Sequence[Any] = (),
    *,
    columns: int = 1,
    share_x: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure with rows of axes of about these heights in inches, and a list of the axes by row.

    With `share_x`, the axes of a column share x, and only the lowest has tick labels.
    """
    height = sum(heights) + 0.36 + 0.07 * (len(heights) - 1)
    figure = new_figure(title, height, legend)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights,
                           sharex="col" if share_x else False)  # fmt: skip
    flat = [ax for row in axes for ax in row]
    for ax in flat:
        style_ticks(ax)
    return figure, flat


def style_ticks(ax: Axes) -> None:
    """Set the style of ticks; `styled` cannot, because they are made when a figure is drawn."""
    ax.tick_params(which="major", width=0.6, length=2.5, labelsize=FONT, colors=INK, pad=2.0)
    ax.tick_params(which="minor", width=0.4, length=1.5)


def phase_handle(label: str, **style: Any) -> Line2D:
    """The legend's entry for a phase."""
    return Line2D([], [], label=label, **phase_style(label), **style)


def pale_handle() -> Line2D:
    """The legend's entry for estimates whose verdict is not ok."""
    return Line2D([], [], ls="", marker="o", color=INK, alpha=PALE, label="pale: not ok")


def theory_handle() -> Line2D:
    """The legend's entry for theory values."""
    return Line2D([], [], color=GREY, lw=0.8, ls="--", label="theory")


def hide_axes(ax: Axes) -> None:
    """Hide the frame, ticks and labels of axes."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def plain_decimals(value: float, _position: object = None) -> str:
    """A tick label without exponent, for numbers near 1."""
    return f"{value:g}"


def _power_of_ten(value: float, _position: object = None) -> str:
    if value == 0:
        return "0"
    exponent = round(math.log10(value))
    return f"{value:g}" if -2 <= exponent <= 2 else rf"$10^{{{exponent}}}$"


def step_axis(ax: Axes, step: Array) -> None:
    """A logarithmic axis of steps, with step 0 in a short linear part before the first step."""
    positive = step[step > 0]
    if not positive.size:
        return
    first, last = float(positive.min()), float(positive.max())
    start = [0.0] if bool((step <= 0).any()) else []
    if start:
        ax.set_xscale("symlog", linthresh=first, linscale=0.35)
    else:
        ax.set_xscale("log")
    if last > first:
        ax.set_xlim(0 if start else first, last)
    decades = 10.0 ** np.arange(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
    if start:
        # The label of a decade near 0 would overlap that of 0.
        decades = decades[decades > first * 10 ** (0.09 * math.log10(last / first) - 0.3)]
    ticks = decades[:: math.ceil(len(decades) / 6)] if len(decades) else np.unique([first, last])
    grid = (10.0 ** np.arange(-1, 16))[:, None] * np.arange(1, 10)
    ax.xaxis.set_major_locator(FixedLocator([*start, *ticks]))
    ax.xaxis.set_minor_locator(FixedLocator([*grid[(grid >= first) & (grid <= last)]]))
    ax.xaxis.set_major_formatter(_power_of_ten if len(decades) else plain_decimals)
    ax.xaxis.set_minor_formatter(NullFormatter())


def linear_step_axis(ax: Axes, last: float) -> None:
    """A linear axis of steps from 0, in thousands if the steps are that large."""
    ax.set_xlim(0, last)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if last >= 5000 and value else f"{value:g}"
    )


def loss_axis(ax: Axes, low: float, high: float) -> None:
    """A loss axis with plain decimals as labels, logarithmic if the limits are positive."""
    if low <= 0:
        ax.set_ylim(min(low, 0.0) - 0.02 * high, high)
        return
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    decimal_ticks(ax.yaxis, (1, 2, 5) if high / low > 3 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), 12)


def decimal_ticks(axis: Axis, subs: Sequence[float], most: int) -> None:
    """Set ticks of a logarithmic axis at these multiples of powers of ten, with plain decimals.

    If they would be more than `most`, there are ticks at powers of ten only, at most so many.
    """
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    few = decades * len(subs) <= most
    axis.set_major_locator(LogLocator(subs=subs if few else (1.0,), numticks=20 if few else most))
    axis.set_major_formatter(plain_decimals)
    axis.set_minor_formatter(NullFormatter())


POPULATION_LOSS = "population loss $L(w)$"


def loss_name(n_inputs: int | None, weighted: bool) -> str:
    """The label of a loss axis: the population loss, or its estimate from n_inputs inputs, possibly
    weighted by importance."""
    name = "loss, weighted by importance" if weighted else POPULATION_LOSS
    return name if n_inputs is None else f"{name}\n(estimate from {n_inputs:,} inputs)"


def loss_limits(loss: Array, levels: Sequence[float]) -> tuple[float, float]:
    """The limits (low, high) of a loss axis for curves and critical levels.

    The frame includes the levels near the curves and ends a little above the highest of these, so
    curves may begin above it. Without levels it includes all of the curves. A level of zero makes
    the axis linear (low = 0).
    """
    finite = loss[np.isfinite(loss)]
    if not finite.size:
        finite = np.array(levels or [1.0])
    least, most = float(finite.min()), float(finite.max())
    last = np.atleast_1d(loss[-1]) if len(loss) else finite
    near = [v for v in levels if v <= most]
    high = 1.05 * most
    if near:
        high = 1.05 * min(most, 1.3 * max([*near, *last[np.isfinite(last)]]))
    if least <= 0 or any(v <= 1e-9 for v in near):
        return 0.0, high if high > 0 else 1.0
    low = 0.92 * min([least, *(v for v in near if v > 0.5 * least)])
    return low, max(high, 1.2 * low)


def draw_levels(ax: Axes, levels: Sequence[tuple[str, float]], height: float) -> None:
    """Draw a horizontal line at each (label, value), with its label at the right margin.

    Labels are at least one line of text apart, and connected to their lines. Equal values share a
    label. If the axes' `height` in inches has no room for all labels, only every n-th is shown.
    """
    names: dict[float, list[str]] = {}
    for label, value in levels:
        ax.axhline(
            value, color=phase_color(label), lw=0.7, ls=phase_linestyle(label), zorder=1, alpha=0.9
        ).set_gid(f"level-{label}")
        names.setdefault(float(f"{value:.6g}"), []).append(label)
    every = max(math.ceil(len(names) * LINE / height), 1)
    values = sorted(names)[::every]
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [to_axes.transform((ax.get_xlim()[1], value))[1] for value in values]
    for value, place in zip(values, spread_apart(np.array(heights), LINE / height), strict=True):
        ax.annotate(
            ", ".join(names[value]),
            xy=(1.0, value),
            xycoords=ax.get_yaxis_transform(),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            arrowprops=leader(names[value][0]) | {"relpos": (0, 0.5)},
            annotation_clip=False,
        ).set_gid("level-label")


def leader(label: str) -> dict[str, Any]:
    """Arguments of `annotate` for a thin line in the phase's colour from a label to its target."""
    colour = phase_color(label)
    return {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 0}


def spread_apart(position: Array, gap: float) -> Array:
    """Move sorted positions until they are at least `gap` apart, within [0, 1] if there is room.

    Each ends halfway between where it would be if all moved only up, and only down.
    """
    steps = gap * np.arange(len(position))
    flat = position - steps
    up = np.maximum.accumulate(flat)
    down = np.minimum.accumulate(flat[::-1])[::-1]
    return np.clip((up + down) / 2, 0.0, 1.0 - gap * max(len(position) - 1, 0)) + steps


BELOW_FRAME = "below frame"
"""The name in legends of LLC estimates below the frame. They are so negative because there is lower
loss near w*."""


def mark_below_frame(ax: Axes, x: Array) -> None:
    """Draw triangles on the lower edge of the frame, at the x of values below it."""
    if x.size:
        ax.plot(x, np.full(x.size, 0.03), ls="", marker="v", ms=3, color=INK, clip_on=False,
                transform=ax.get_xaxis_transform(), zorder=3, label=BELOW_FRAME,
                gid="below-frame")  # fmt: skip


def rendering() -> AbstractContextManager[None]:
    """A context for writing figures: without LaTeX, and the same bytes each time."""
    return matplotlib.rc_context({"text.usetex": False, "svg.hashsalt": "kgon"})


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png (300 dpi) and `stem`.svg, and return their paths.

    The same figure gives the same bytes: there is no date, and element ids have a fixed salt.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with rendering():
        figure.savefig(png, dpi=300)
        figure.savefig(svg, dpi=300, metadata={"Date": None})
    return [png, svg]
