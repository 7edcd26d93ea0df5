"""How kgon's figures look: size, colours, markers, axes, labels in the margin, legends; and `save`.

Every figure is drawn at half a page's width (3.4 inches) with no text below 7 pt. Figures are built
on `matplotlib.figure.Figure` itself, without pyplot: no global state, no display. A phase has one
colour everywhere (`phase_color`), and a marker and line style that say the same without colour.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTH = 3.4
"""Width of a figure in inches: half a page."""

FONT = 7.0  # points, the smallest size in use
TITLE = 8.0
LINE = FONT * 1.25 / 72  # inches from one line of text to the next
CHARACTER = FONT * 0.64 / 72  # inches, the width of "+" in the default font, near the widest used
INK = "#222222"
GREY = "#757575"


class Level(Protocol):
    """What figures need of a critical point."""

    @property
    def label(self) -> str: ...

    @property
    def loss(self) -> float: ...

    @property
    def llc(self) -> float | None: ...


# --------------------------------------------------------------------------------------- phases

# Hue (degrees) and lightness in OKLCH of the k-gon's own colour. 4, 5 and 6 are near Okabe and
# Ito's blue, vermillion and bluish green.
_HUES: Mapping[int, tuple[float, float]] = {
    3: (210, 0.65),
    4: (250, 0.40),
    5: (45, 0.55),
    6: (165, 0.70),
    7: (350, 0.62),
    8: (100, 0.70),
}


def parse_label(label: object) -> tuple[int, int, int] | None:
    """(k, sigma, phi) of a label such as `4++-`, None of anything else."""
    match = re.fullmatch(r"(\d+)(\+*)(-*)", str(label))
    return match and (int(match[1]), len(match[2]), len(match[3]))


def phase_color(label: object, *, dark: bool = False) -> str:
    """The colour of a phase as #rrggbb: the family k is the hue, each sigma is lighter, each phi
    turns the hue. What is no k-gon (`other`) is grey. `dark`: for a dark background."""
    key = parse_label(label)
    if key is None:
        return "#a0a0a0" if dark else GREY
    k, sigma, phi = key
    # Families beyond the table take steps of the golden angle, which never repeat.
    hue, lightness = _HUES.get(k, (137.508 * k % 360, 0.55))
    if dark:
        lightness += 0.14
    top = 0.95 if dark else 0.86
    lightness += (top - lightness) * (1 - 0.55**sigma)
    return _oklch_hex(lightness, 0.16, hue + 20 * phi)


def _oklch_hex(lightness: float, chroma: float, hue: float) -> str:
    """sRGB of an OKLCH colour (Ottosson 2020), its chroma lowered until the colour exists."""
    while True:
        a = chroma * math.cos(math.radians(hue))
        b = chroma * math.sin(math.radians(hue))
        cone_l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        cone_m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        cone_s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * cone_l - 3.3077115913 * cone_m + 0.2309699292 * cone_s,
            -1.2684380046 * cone_l + 2.6097574011 * cone_m - 0.3413193965 * cone_s,
            -0.0041960863 * cone_l - 0.7034186147 * cone_m + 1.7076147010 * cone_s,
        )
        if all(0 <= channel <= 1 for channel in linear):
            red, green, blue = (
                12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in linear
            )
            return to_hex((red, green, blue))
        chroma *= 0.95


def phase_marker(label: object) -> MarkerStyle:
    """A regular k-gon, filled for sigma = 0 and hollow otherwise; a small disc for `other`."""
    key = parse_label(label)
    if key is None:
        return MarkerStyle(".")
    k, sigma, _ = key
    return MarkerStyle((max(k, 3), 0, 0), fillstyle="none" if sigma else "full")


def phase_linestyle(label: object) -> str:
    """Solid, then dashed, dash-dotted and dotted with phi; dotted for `other`."""
    key = parse_label(label)
    return ":" if key is None else ("-", "--", "-.", ":")[min(key[2], 3)]


def phase_order(labels: Iterable[object]) -> list[str]:
    """The distinct labels from high to low loss: by k, then fewer phi, then more sigma; the rest
    last."""

    def rank(label: str) -> tuple[bool, int, int, int, str]:
        k, sigma, phi = parse_label(label) or (0, 0, 0)
        return (parse_label(label) is None, k, -phi, sigma, label)

    return sorted({str(label) for label in labels}, key=rank)


# ------------------------------------------------------------------------------------- axes, text


def add_axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes whose frame is given in inches from the figure's lower left corner."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes(
        (left / width, bottom / height, (right - left) / width, (top - bottom) / height)
    )
    ax.tick_params(labelsize=FONT, colors=INK, width=0.6, length=2.5, pad=2)
    ax.tick_params(which="minor", width=0.4, length=1.5)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)
        spine.set_color(INK)
    return ax


def label_axes(ax: Axes, x: str | None, y: str | None) -> None:
    if x is not None:
        ax.set_xlabel(x, fontsize=FONT, color=INK, labelpad=2)
    if y is not None:
        ax.set_ylabel(y, fontsize=FONT, color=INK, labelpad=3)


def write_title(figure: Figure, text: str) -> None:
    height = figure.get_size_inches()[1]
    figure.text(
        0.06 / WIDTH, 1 - 0.05 / height, text, fontsize=TITLE, color=INK, va="top", ha="left"
    )


def _power_of_ten(value: float, _position: object = None) -> str:
    if value == 0:
        return "0"
    exponent = round(math.log10(value))
    return f"{value:g}" if -2 <= exponent <= 2 else rf"$10^{{{exponent}}}$"


def step_axis(ax: Axes, step: Array) -> None:
    """Logarithmic steps from the first step on; step 0 in a short linear piece before it."""
    positive = step[step > 0]
    if not positive.size:
        return
    first, last = float(positive.min()), float(positive.max())
    has_zero = bool((step <= 0).any())
    decades = 10.0 ** np.arange(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
    if has_zero:
        ax.set_xscale("symlog", linthresh=first, linscale=0.35)
        # A decade right beside the 0 would be printed onto it.
        span = math.log10(last / first) + 0.35 if last > first else 0.35
        decades = np.array([d for d in decades if (math.log10(d / first) + 0.35) / span > 0.08])
    else:
        ax.set_xscale("log")
    if last > first:
        ax.set_xlim(0 if has_zero else first, last)
    if len(decades):
        # More than about six labels would touch at this width.
        shown = decades[:: math.ceil(len(decades) / 6)]
        ax.xaxis.set_major_locator(FixedLocator([0.0, *shown] if has_zero else list(shown)))
        grid = [d * m for d in 10.0 ** np.arange(-1, 16) for m in range(1, 10)]
        ax.xaxis.set_minor_locator(FixedLocator([g for g in grid if first <= g <= last]))
    else:
        ax.xaxis.set_major_locator(FixedLocator([0.0, last] if has_zero else [first, last]))
    ax.xaxis.set_major_formatter(FuncFormatter(_power_of_ten if len(decades) else "{:g}".format))
    ax.xaxis.set_minor_formatter(NullFormatter())


def linear_step_axis(ax: Axes, last: float) -> None:
    """Linear steps from 0, for stages that take most of the time; in thousands where that reads."""
    ax.set_xlim(0, last)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: f"{value / 1000:g}k" if last >= 5000 and value else f"{value:g}"
        )
    )


def loss_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic loss axis where that is possible, with plain decimals as labels."""
    if low <= 0:
        ax.set_ylim(min(low, 0.0) - 0.02 * high, high)
        return
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    subs = (1.0, 2.0, 5.0) if high / low > 3 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def loss_limits(loss: Array, levels: Sequence[float]) -> tuple[float, float]:
    """The frame: all levels near the curves, and the curves up to a little above the highest.

    Starts with large biases lie far above every level; they may leave the frame at the top.
    A level of zero makes the axis linear (low = 0).
    """
    finite = loss[np.isfinite(loss)]
    if not finite.size:
        finite = np.array(levels or [1.0])
    least, most = float(finite.min()), float(finite.max())
    last = np.atleast_1d(loss[-1]) if len(loss) else finite
    near = [v for v in levels if v <= most]
    high = 1.05 * min(most, 1.3 * max([*near, *last[np.isfinite(last)]], default=most))
    if least <= 0 or any(v <= 1e-9 for v in near):
        return 0.0, high if high > 0 else 1.0
    low = 0.92 * min([least, *(v for v in near if v > 0.5 * least)])
    return low, max(high, 1.2 * low)


def spread_apart(position: Sequence[float], gap: float, low: float, high: float) -> Array:
    """Nearest positions (least squares) at least `gap` apart within [low, high].

    Without the gaps this is isotonic regression of position_i - i gap, solved by pooling adjacent
    violators. `position` must be sorted.
    """
    blocks: list[list[float]] = []  # [mean, count]
    for i, p in enumerate(position):
        blocks.append([p - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            total = blocks[-1][1] + count
            blocks[-1][0] = (blocks[-1][0] * blocks[-1][1] + mean * count) / total
            blocks[-1][1] = total
    flat = np.array([mean for mean, count in blocks for _ in range(int(count))])
    shift = gap * np.arange(len(position))
    return np.clip(flat, low, high - gap * max(len(position) - 1, 0)) + shift


def _group_levels(
    entries: Iterable[tuple[str, float]], capacity: int
) -> list[list[tuple[str, float]]]:
    """Entries (label, value) by value; equal values share a group, then the nearest neighbours do
    until at most `capacity` groups are left."""
    groups: list[list[tuple[str, float]]] = []
    for label, value in sorted(entries, key=lambda entry: entry[1]):
        if groups and math.isclose(value, groups[-1][-1][1], rel_tol=1e-6, abs_tol=1e-9):
            groups[-1].append((label, value))
        else:
            groups.append([(label, value)])
    while len(groups) > max(capacity, 1):
        gaps = [b[0][1] - a[-1][1] for a, b in pairwise(groups)]
        i = int(np.argmin(gaps))
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
    return groups


def _group_text(group: list[tuple[str, float]]) -> str:
    """The group's labels from the top down; of many only the ends, of long ones the beginning."""
    names = list(dict.fromkeys(label for label, _ in reversed(group)))
    names = [n if len(n) <= 8 else f"{n[:7]}\N{HORIZONTAL ELLIPSIS}" for n in names]
    text = ", ".join(names)
    return text if len(text) <= 14 else f"{names[0]} .. {names[-1]}"


def margin_width(entries: Sequence[tuple[str, float]], height: float) -> float:
    """Inches that the labels at the right margin of axes of this height need."""
    groups = _group_levels(entries, int(height / LINE))
    longest = max((len(_group_text(group)) for group in groups), default=0)
    return 0.24 + longest * CHARACTER if longest else 0.12


def margin_labels(ax: Axes, entries: Sequence[tuple[str, float]], *, lines: bool) -> None:
    """Name values of the y axis at the right margin, without overlaps, with a leader to each."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches() * ax.get_position().size
    low, high = ax.get_ylim()
    inside = [(label, value) for label, value in entries if low <= value <= high]
    groups = _group_levels(inside, int(height / LINE))
    fraction = [_fraction(ax, group[len(group) // 2][1]) for group in groups]
    places = spread_apart(fraction, LINE / height, 0.0, 1.0)
    for group, place in zip(groups, places, strict=True):
        colours = [phase_color(label) for label, _ in group]
        for (label, value), colour in zip(group, colours, strict=True):
            if lines:
                ax.axhline(
                    value, color=colour, lw=0.7, ls=phase_linestyle(label), zorder=1, alpha=0.9
                ).set_gid(f"level-{label}")
            ax.plot(
                [1.0, 1.0 + 8 / 72 / width],
                [_fraction(ax, value), place],
                transform=ax.transAxes,
                color=colour,
                lw=0.6,
                clip_on=False,
            ).pop().set_gid(f"leader-{label}")
        ax.annotate(
            _group_text(group),
            xy=(1.0, place),
            xycoords="axes fraction",
            xytext=(10, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=FONT,
            color=INK,
            annotation_clip=False,
        ).set_gid("level-label")


def mark_below_frame(ax: Axes, x: Array) -> list[Line2D]:
    """Triangles on the lower edge at the abscissas of what lies below the frame; the legend's entry
    for them, none without any."""
    if not x.size:
        return []
    style: dict[str, Any] = {"ls": "", "marker": "v", "ms": 3, "color": INK}
    on_edge = ax.get_xaxis_transform()
    marks = ax.plot(x, np.full(x.size, 0.03), transform=on_edge, clip_on=False, zorder=3, **style)
    marks.pop().set_gid("below-frame")
    return [Line2D([], [], label="off scale", **style)]


def _fraction(ax: Axes, value: float) -> float:
    """Where a value of the y axis lies between the lower (0) and the upper end (1) of the axes."""
    display = ax.transData.transform((ax.get_xlim()[1], value))
    return float(ax.transAxes.inverted().transform(display)[1])


def phase_legend(figure: Figure, handles: Sequence[Any], top: float) -> None:
    """Legend rows of up to six phases, from `top` inches below the figure's upper edge."""
    height = figure.get_size_inches()[1]
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - top / height),
        ncols=_LEGEND_COLUMNS,
        fontsize=FONT,
        frameon=False,
        handlelength=1.4,
        handletextpad=0.35,
        columnspacing=0.8,
        borderpad=0.25,
        labelspacing=0.25,
    )


_LEGEND_COLUMNS = 5


def legend_height(n: int) -> float:
    return math.ceil(n / _LEGEND_COLUMNS) * LINE * 1.1 + 0.06 if n else 0.0


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png (300 dpi) and `stem`.svg, and return their paths.

    The same figure gives the same bytes: no date, and element ids from a fixed salt.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with matplotlib.rc_context({"svg.hashsalt": "kgon"}):
        figure.savefig(png, dpi=300)
        figure.savefig(svg, dpi=300, metadata={"Date": None})
    return [png, svg]
