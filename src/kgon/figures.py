"""The figures of a run: arrays in, a matplotlib `Figure` out, and `save` for PNG and SVG.

Every figure is drawn at half a page's width (3.4 inches) with no text below 7 pt. Figures are built
on `matplotlib.figure.Figure` itself, without pyplot: no global state, no display. A phase has one
colour everywhere (`phase_color`), and a marker and line style that say the same without colour.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Circle, ConnectionPatch, Patch, Polygon
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

WIDTH = 3.4
"""Width of a figure in inches: half a page."""

MAX_WEIGHTS = 16
"""Most pictures on one sheet of `weights`."""

_FONT = 7.0  # points, the smallest size in use
_TITLE = 8.0
_LINE = _FONT * 1.25 / 72  # inches from one line of text to the next
_CHARACTER = _FONT * 0.64 / 72  # inches, the width of "+" in the default font, near the widest used
_INK = "#222222"
_GREY = "#757575"

# Curves of more points than this are drawn as an image inside the SVG: the axes and all text stay
# vectors, and the file stays below a megabyte.
_VECTOR_POINTS = 50_000

# Below this length a column is drawn as dead. It concerns pictures only: live columns of the
# critical points have length >= 1.
_DEAD = 0.3


class Level(Protocol):
    """What figures need of a critical point."""

    @property
    def label(self) -> str: ...

    @property
    def loss(self) -> float: ...

    @property
    def llc(self) -> float | None: ...


class Stage(NamedTuple):
    """A member's parameters at one step, to be pictured: W (n_hidden, n_features),
    b (n_features)."""

    label: str
    step: float
    W: Array
    b: Array


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


def _parse(label: object) -> tuple[int, int, int] | None:
    """(k, sigma, phi) of a label such as `4++-`, None of anything else."""
    match = re.fullmatch(r"(\d+)(\+*)(-*)", str(label))
    return match and (int(match[1]), len(match[2]), len(match[3]))


def phase_color(label: object, *, dark: bool = False) -> str:
    """The colour of a phase as #rrggbb: the family k is the hue, each sigma is lighter, each phi
    turns the hue. What is no k-gon (`other`) is grey. `dark`: for a dark background."""
    key = _parse(label)
    if key is None:
        return "#a0a0a0" if dark else _GREY
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
    key = _parse(label)
    if key is None:
        return MarkerStyle(".")
    k, sigma, _ = key
    return MarkerStyle((max(k, 3), 0, 0), fillstyle="none" if sigma else "full")


def phase_linestyle(label: object) -> str:
    """Solid, then dashed, dash-dotted and dotted with phi; dotted for `other`."""
    key = _parse(label)
    return ":" if key is None else ("-", "--", "-.", ":")[min(key[2], 3)]


def phase_order(labels: Iterable[object]) -> list[str]:
    """The distinct labels from high to low loss: by k, then fewer phi, then more sigma; the rest
    last."""

    def rank(label: str) -> tuple[bool, int, int, int, str]:
        k, sigma, phi = _parse(label) or (0, 0, 0)
        return (_parse(label) is None, k, -phi, sigma, label)

    return sorted({str(label) for label in labels}, key=rank)


# ------------------------------------------------------------------------------------- axes, text


def _axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes whose frame is given in inches from the figure's lower left corner."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes(
        (left / width, bottom / height, (right - left) / width, (top - bottom) / height)
    )
    ax.tick_params(labelsize=_FONT, colors=_INK, width=0.6, length=2.5, pad=2)
    ax.tick_params(which="minor", width=0.4, length=1.5)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)
        spine.set_color(_INK)
    return ax


def _label_axes(ax: Axes, x: str | None, y: str | None) -> None:
    if x is not None:
        ax.set_xlabel(x, fontsize=_FONT, color=_INK, labelpad=2)
    if y is not None:
        ax.set_ylabel(y, fontsize=_FONT, color=_INK, labelpad=3)


def _title(figure: Figure, text: str) -> None:
    height = figure.get_size_inches()[1]
    figure.text(
        0.06 / WIDTH, 1 - 0.05 / height, text, fontsize=_TITLE, color=_INK, va="top", ha="left"
    )


def _power_of_ten(value: float, _position: object = None) -> str:
    if value == 0:
        return "0"
    exponent = round(math.log10(value))
    return f"{value:g}" if -2 <= exponent <= 2 else rf"$10^{{{exponent}}}$"


def _step_axis(ax: Axes, step: Array) -> None:
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


def _linear_step_axis(ax: Axes, last: float) -> None:
    """Linear steps from 0, for stages that take most of the time; in thousands where that reads."""
    ax.set_xlim(0, last)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: f"{value / 1000:g}k" if last >= 5000 and value else f"{value:g}"
        )
    )


def _loss_axis(ax: Axes, low: float, high: float) -> None:
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


def _loss_limits(loss: Array, levels: Sequence[float]) -> tuple[float, float]:
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


def _spread(position: Sequence[float], gap: float, low: float, high: float) -> Array:
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


def _margin_width(entries: Sequence[tuple[str, float]], height: float) -> float:
    """Inches that the labels at the right margin of axes of this height need."""
    groups = _group_levels(entries, int(height / _LINE))
    longest = max((len(_group_text(group)) for group in groups), default=0)
    return 0.24 + longest * _CHARACTER if longest else 0.12


def _margin_labels(ax: Axes, entries: Sequence[tuple[str, float]], *, lines: bool) -> None:
    """Name values of the y axis at the right margin, without overlaps, with a leader to each."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    width, height = figure.get_size_inches() * ax.get_position().size
    low, high = ax.get_ylim()
    inside = [(label, value) for label, value in entries if low <= value <= high]
    groups = _group_levels(inside, int(height / _LINE))
    fraction = [_fraction(ax, group[len(group) // 2][1]) for group in groups]
    places = _spread(fraction, _LINE / height, 0.0, 1.0)
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
            fontsize=_FONT,
            color=_INK,
            annotation_clip=False,
        ).set_gid("level-label")


def _fraction(ax: Axes, value: float) -> float:
    """Where a value of the y axis lies between the lower (0) and the upper end (1) of the axes."""
    display = ax.transData.transform((ax.get_xlim()[1], value))
    return float(ax.transAxes.inverted().transform(display)[1])


def _phase_legend(figure: Figure, handles: Sequence[Any], top: float) -> None:
    """Legend rows of up to six phases, from `top` inches below the figure's upper edge."""
    height = figure.get_size_inches()[1]
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - top / height),
        ncols=_LEGEND_COLUMNS,
        fontsize=_FONT,
        frameon=False,
        handlelength=1.4,
        handletextpad=0.35,
        columnspacing=0.8,
        borderpad=0.25,
        labelspacing=0.25,
    )


_LEGEND_COLUMNS = 5


def _legend_height(n: int) -> float:
    return math.ceil(n / _LEGEND_COLUMNS) * _LINE * 1.1 + 0.06 if n else 0.0


# ------------------------------------------------------------------------------------- figures


def loss_curves(
    step: ArrayLike,
    loss: ArrayLike,
    points: Sequence[Level],
    *,
    final_phase: Sequence[str] | None = None,
) -> Figure:
    """The population loss of all members against SGD steps, with the critical levels (Fig. 3).

    Args:
        step: (S,), increasing.
        loss: (S, M), NaN where a member has stopped.
        points: critical points; those whose level lies in the frame are drawn and named.
        final_phase: M labels that colour the curves.
    """
    x = np.asarray(step, dtype=float)
    y = np.asarray(loss, dtype=float)
    if y.ndim != 2 or x.shape != y.shape[:1]:
        raise ValueError(f"loss must be (S, M) for step (S,), got {y.shape} and {x.shape}")
    n_members = y.shape[1]
    if final_phase is not None and len(final_phase) != n_members:
        raise ValueError(f"final_phase must have {n_members} labels, got {len(final_phase)}")
    phases = ["other"] * n_members if final_phase is None else [str(p) for p in final_phase]
    counts = Counter(phases)
    legend = [] if final_phase is None else phase_order(phases)

    low, high = _loss_limits(y, [p.loss for p in points])
    n_above = int((np.where(np.isfinite(y), y, -np.inf) > high).any(axis=0).sum())
    above = 0.24 + _legend_height(len(legend)) + _LINE * (n_above > 0)
    body = 2.35
    entries = [(p.label, p.loss) for p in points if low <= p.loss <= high]
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = _axes(figure, 0.5, 0.36, WIDTH - _margin_width(entries, body), 0.36 + body)
    _step_axis(ax, x)
    _loss_axis(ax, low, high)
    _label_axes(ax, "SGD steps", "population loss $L(w)$")

    alpha = float(np.clip(12 / max(n_members, 1), 0.25, 0.9))
    # Rare phases last, so that they are not buried.
    for m in sorted(range(n_members), key=lambda m: -counts[phases[m]]):
        (line,) = ax.plot(
            x,
            y[:, m],
            color=phase_color(phases[m]),
            ls=phase_linestyle(phases[m]) if final_phase is not None else "-",
            lw=0.7,
            alpha=alpha,
            zorder=2,
            rasterized=y.size > _VECTOR_POINTS,
        )
        line.set_gid(f"member-{m}")
    _margin_labels(ax, entries, lines=True)

    if n_above:
        ax.text(
            1.0,
            1.015,
            f"{n_above} begin above the frame",
            transform=ax.transAxes,
            fontsize=_FONT,
            color=_INK,
            ha="right",
            va="bottom",
        )
    _title(figure, f"Loss of {n_members} member{'s' * (n_members != 1)}, and the critical levels")
    handles = [
        Line2D(
            [], [], color=phase_color(p), ls=phase_linestyle(p), lw=1.6, label=f"{p}: {counts[p]}"
        )
        for p in legend
    ]
    if handles:
        _phase_legend(figure, handles, 0.2)
    return figure


def staircase(
    step: ArrayLike,
    loss: ArrayLike,
    *,
    llc_step: ArrayLike | None,
    llc: ArrayLike | None,
    llc_stderr: ArrayLike | None,
    plateaus: Sequence[Mapping[str, Any]],
    stages: Sequence[tuple[str, float, ArrayLike, ArrayLike]],
    points: Sequence[Level],
) -> Figure:
    """One member's opposing staircases (Fig. 1): the loss falls and the LLC rises in steps.

    Args:
        step, loss: (S,), the member's population loss.
        llc_step, llc, llc_stderr: (T,), its estimates, or None when there are none.
        plateaus: mappings with `start`, `end` and `nearest`; shaded.
        stages: (label, step, W (n_hidden, n_features), b (n_features)) in time order; pictured.
        points: critical points, for the stages' losses and theory LLCs.
    """
    x = np.asarray(step, dtype=float)
    y = np.asarray(loss, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"step and loss must both be (S,), got {x.shape} and {y.shape}")
    pictured = [Stage(s[0], s[1], np.asarray(s[2]), np.asarray(s[3])) for s in stages]
    by_label = {p.label: p for p in points}
    met = phase_order(
        [s.label for s in pictured] + [str(p["nearest"]) for p in plateaus if p["nearest"]]
    )
    levels = [(label, by_label[label].loss) for label in met if label in by_label]
    low, high = _loss_limits(y, [value for _, value in levels])
    levels = [(label, value) for label, value in levels if low <= value <= high]
    theory = [
        (f"{label}", float(point.llc))
        for label in met
        if (point := by_label.get(label)) is not None and point.llc is not None
    ]
    with_llc = llc is not None and llc_step is not None

    panel = 1.3
    right = WIDTH - max(_margin_width(levels, panel), _margin_width(theory, panel))
    size = min(0.72, (WIDTH - 0.3) / len(pictured) - 0.04) if pictured else 0.0
    row = size + 0.42 if pictured else 0.1
    bottom = 0.36
    loss_bottom = bottom + (panel + 0.14 if with_llc else 0.0)
    figure = Figure(figsize=(WIDTH, loss_bottom + panel + row + 0.24))
    ax = _axes(figure, 0.5, loss_bottom, right, loss_bottom + panel)
    span = x if not with_llc else np.concatenate([x, np.asarray(llc_step, dtype=float)])
    _linear_step_axis(ax, float(span.max()))
    _loss_axis(ax, low, high)
    ax.plot(x, y, color=_INK, lw=1.0, zorder=3).pop().set_gid("loss")
    _margin_labels(ax, levels, lines=True)
    panels = [ax]
    if with_llc:
        below = _axes(figure, 0.5, bottom, right, bottom + panel)
        _linear_step_axis(below, float(span.max()))
        panels.append(below)
        _draw_llc(
            below,
            np.asarray(llc_step, dtype=float),
            np.asarray(llc, dtype=float),
            None if llc_stderr is None else np.asarray(llc_stderr, dtype=float),
            theory,
        )
        _draw_theory(below, pictured, plateaus, by_label, float(span.max()))
        _margin_labels(below, theory, lines=False)
        _label_axes(below, None, r"LLC $\hat\lambda$ ($\pm$ s.e.)")
        ax.tick_params(labelbottom=False)
    for panel_axes in panels:
        for plateau in plateaus:
            panel_axes.axvspan(
                plateau["start"],
                plateau["end"],
                color=phase_color(plateau["nearest"]),
                alpha=0.13,
                lw=0,
                zorder=0,
            )
    for panel_axes in panels:
        # Room for the markers at the last step.
        panel_axes.set_xlim(right=float(span.max()) * 1.02)
    _label_axes(ax, None, "population loss $L(w)$")
    _label_axes(panels[-1], "SGD steps", None)
    _place_pictures(figure, ax, x, y, pictured, size, loss_bottom + panel + 0.26)
    path = " \N{RIGHTWARDS ARROW} ".join(s.label for s in pictured)
    _title(figure, f"Stages of one member: {path}" if 0 < len(path) <= 30 else "One member")
    return figure


def _draw_llc(
    ax: Axes, step: Array, llc: Array, stderr: Array | None, theory: Sequence[tuple[str, float]]
) -> None:
    """Estimates with error bars; those below the frame as triangles on its lower edge."""
    finite = llc[np.isfinite(llc)]
    values = [*finite, *(value for _, value in theory)] or [0.0, 1.0]
    top = max(values)
    # Far from critical points estimates can be very negative: not all of that is worth the height.
    floor = max(min(min(values), 0.0), -0.25 * max(top, 1.0))
    ax.set_ylim(floor - 0.05 * (top - floor or 1.0), top + 0.1 * (top - floor or 1.0))
    ax.errorbar(
        step,
        llc,
        yerr=stderr,
        color=_INK,
        lw=0.8,
        elinewidth=0.6,
        marker="o",
        ms=2.2,
        zorder=3,
        label="estimate",
    ).lines[0].set_gid("llc")
    hidden = step[llc < floor]
    if hidden.size:
        ax.plot(
            hidden,
            np.zeros(hidden.size) + 0.03,
            ls="",
            marker="v",
            ms=3,
            color=_INK,
            transform=ax.get_xaxis_transform(),
            zorder=3,
            clip_on=False,
        ).pop().set_gid("llc-below-frame")


def _draw_theory(
    ax: Axes,
    stages: Sequence[Stage],
    plateaus: Sequence[Mapping[str, Any]],
    by_label: Mapping[str, Level],
    end: float,
) -> None:
    """The theory LLC over each stage: over its plateau, or else up to the next stage."""
    drawn = False
    for i, stage in enumerate(stages):
        point = by_label.get(stage.label)
        if point is None or point.llc is None:
            continue
        following = stages[i + 1].step if i + 1 < len(stages) else end
        left, right = stage.step, following
        for plateau in plateaus:
            if plateau["start"] <= stage.step <= plateau["end"]:
                left, right = plateau["start"], plateau["end"]
        ax.plot(
            [left, right],
            [point.llc] * 2,
            color=phase_color(stage.label),
            ls="--",
            lw=1.2,
            zorder=2,
        ).pop().set_gid(f"theory-{stage.label}")
        drawn = True
    if drawn:
        dashes = Line2D([], [], color=_GREY, ls="--", lw=1.2, label="theory")
        dots = Line2D([], [], color=_INK, marker="o", ms=2.2, lw=0.8, label="estimate")
        ax.legend(
            handles=[dots, dashes],
            loc="lower right",
            fontsize=_FONT,
            frameon=False,
            handlelength=1.8,
            borderpad=0.1,
            labelspacing=0.2,
        )


def _place_pictures(
    figure: Figure,
    ax: Axes,
    x: Array,
    y: Array,
    stages: Sequence[Stage],
    size: float,
    bottom: float,
) -> None:
    """A row of k-gon pictures above `ax`, each tied to its place on the curve."""
    box = ax.get_position()
    left, right = box.x0 * WIDTH, box.x1 * WIDTH
    low, high = ax.get_ylim()
    for i, stage in enumerate(stages):
        centre = left + (right - left) * (i + 0.5) / len(stages)
        picture = _axes(figure, centre - size / 2, bottom, centre + size / 2, bottom + size)
        k_gon(picture, stage.W, stage.b, stage.label)
        nearest = int(np.argmin(np.abs(x - stage.step)))
        figure.add_artist(
            ConnectionPatch(
                xyA=(0.5, 0.0),
                coordsA=picture.transAxes,
                xyB=(stage.step, float(np.clip(y[nearest], low, high))),
                coordsB=ax.transData,
                color=phase_color(stage.label),
                lw=0.8,
                zorder=5,
            )
        )
        ax.plot(
            [stage.step],
            [y[nearest]],
            marker=phase_marker(stage.label),
            ms=4,
            color=phase_color(stage.label),
            zorder=4,
            clip_on=False,
        ).pop().set_gid(f"stage-{i}")


def _hull(xy: Array) -> Array:
    """The vertices of the convex hull of points (n, 2), counter-clockwise (monotone chain)."""
    ordered = [tuple(p) for p in np.unique(xy, axis=0)]
    if len(ordered) < 3:
        return np.array(ordered).reshape(-1, 2)

    def half(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for p in points:
            while len(chain) > 1 and (
                (chain[-1][0] - chain[-2][0]) * (p[1] - chain[-2][1])
                - (chain[-1][1] - chain[-2][1]) * (p[0] - chain[-2][0])
                <= 0
            ):
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return np.array(half(ordered) + half(reversed(ordered)))


_BIAS_NORM = Normalize(-1.0, 1.0)


def _bias_color(bias: float) -> Any:
    return matplotlib.colormaps["PuOr_r"](_BIAS_NORM(bias))


def k_gon(ax: Axes, W: ArrayLike, b: ArrayLike, label: str) -> None:
    """Draw one element's columns of W as vectors with their convex hull, and the biases.

    A tip is filled with the colour of its bias. A live column that its bias switches off
    (b_i < -|W_i|^2, phi) is dotted and ends in a cross. Dead columns stand in a row at the origin:
    a ring for a positive bias (sigma), a dot for a negative one. The dashed circle is the unit
    circle. For n_hidden != 2 the picture is the heat map of W^T W with the biases as a last column.
    """
    W, b = np.asarray(W, dtype=float), np.asarray(b, dtype=float)
    if W.ndim != 2 or b.shape != W.shape[1:]:
        raise ValueError(
            f"W must be (n_hidden, n_features) and b (n_features), got {W.shape} and {b.shape}"
        )
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(label, fontsize=_FONT, color=_INK, pad=1.5)
    if not (np.isfinite(W).all() and np.isfinite(b).all()):
        ax.text(0.5, 0.5, "not finite", transform=ax.transAxes, fontsize=_FONT, ha="center")
        return
    if W.shape[0] != 2:
        gap = np.full((W.shape[1], 1), np.nan)
        image = np.concatenate([W.T @ W, gap, b[:, None]], axis=1)
        ax.imshow(image, cmap="PuOr_r", norm=_BIAS_NORM, interpolation="nearest").set_gid("gram")
        return

    length = np.linalg.norm(W, axis=0)
    live = length >= _DEAD
    off = live & (b < -(length**2))
    reach = max(1.2, 1.12 * float(length.max(initial=0.0)))
    ax.set_aspect("equal")
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.add_patch(Circle((0, 0), 1.0, fill=False, ls=(0, (3, 3)), lw=0.5, ec="#b0b0b0", zorder=0))
    colour = phase_color(label)
    hull = _hull(W[:, live].T)
    if len(hull) >= 3:
        polygon = Polygon(hull, closed=True, fc=to_rgba(colour, 0.25), ec=colour, lw=1.0, zorder=1)
        polygon.set_gid("hull")
        ax.add_patch(polygon)
    for i in np.flatnonzero(live):
        ax.plot(
            *np.c_[[0.0, 0.0], W[:, i]], color=_INK, lw=0.7, ls=":" if off[i] else "-", zorder=2
        )
        ax.plot(
            *W[:, i],
            marker="X" if off[i] else "o",
            ms=4,
            mfc=_bias_color(b[i]),
            mec=_INK,
            mew=0.5,
            zorder=3,
        ).pop().set_gid(f"column-{i}")
    dead = np.flatnonzero(~live)
    for place, i in enumerate(sorted(dead, key=lambda i: -b[i])):
        offset = 0.3 * reach * (place - (len(dead) - 1) / 2)
        positive = b[i] > 0
        ax.plot(
            offset,
            0.0,
            marker="o",
            ms=4.5 if positive else 2,
            mfc="white" if positive else _INK,
            mec=_INK,
            mew=0.9,
            zorder=4,
        ).pop().set_gid(f"dead-{i}-{'positive' if positive else 'negative'}")


_KEY = "bias $b_i$; dead columns: ring +, dot \N{MINUS SIGN}; cross: off by its bias"


def weights(W: ArrayLike, b: ArrayLike, labels: Sequence[str]) -> Figure:
    """The k-gon pictures of up to 16 members: W (N, n_hidden, n_features), b (N, n_features)."""
    W, b = np.asarray(W, dtype=float), np.asarray(b, dtype=float)
    if W.ndim != 3 or b.shape != (W.shape[0], W.shape[2]) or len(labels) != len(W):
        raise ValueError(
            "W must be (N, n_hidden, n_features), b (N, n_features) and labels N, "
            f"got {W.shape}, {b.shape} and {len(labels)}"
        )
    if not 1 <= len(W) <= MAX_WEIGHTS:
        raise ValueError(f"weights draws 1 to {MAX_WEIGHTS} members, got {len(W)}")
    columns = min(4, len(W))
    rows = math.ceil(len(W) / columns)
    size, pitch, foot = 0.7, 0.9, 0.54
    figure = Figure(figsize=(WIDTH, 0.2 + rows * pitch + foot))
    left = (WIDTH - 4 * 0.84) / 2 if columns == 4 else (WIDTH - columns * 0.84) / 2
    for n in range(len(W)):
        row, column = divmod(n, columns)
        x = left + 0.84 * column + 0.07
        y = foot + pitch * (rows - 1 - row)
        k_gon(_axes(figure, x, y, x + size, y + size), W[n], b[n], labels[n])
    bar = _axes(figure, 0.95, 0.36, WIDTH - 0.95, 0.43)
    figure.colorbar(
        ScalarMappable(_BIAS_NORM, "PuOr_r"), cax=bar, orientation="horizontal", ticks=[-1, 0, 1]
    ).outline.set_linewidth(0.4)
    two = W.shape[1] == 2
    _label_axes(bar, _KEY if two else "$W^TW$, then $b$ as a last column", None)
    _title(figure, f"Weights of {len(W)} member{'s' * (len(W) != 1)}")
    return figure


_HATCHES = {"-": None, "--": "////", "-.": "xxxx", ":": "...."}


def phase_counts(step: ArrayLike, labels: ArrayLike) -> Figure:
    """How many members are in each phase over time, stacked: step (T,), labels (T, M)."""
    x = np.asarray(step, dtype=float)
    phase = np.asarray(labels).astype(str)
    if phase.ndim != 2 or x.shape != phase.shape[:1]:
        raise ValueError(f"labels must be (T, M) for step (T,), got {phase.shape} and {x.shape}")
    order = phase_order(phase.ravel())
    counts = np.stack([(phase == label).sum(axis=1) for label in order])
    n_members = phase.shape[1]
    body = 1.9
    above = 0.24 + _legend_height(len(order))
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = _axes(figure, 0.5, 0.36, WIDTH - 0.12, 0.36 + body)
    _step_axis(ax, x)
    ax.set_ylim(0, n_members)
    _label_axes(ax, "SGD steps", "members")
    handles = []
    floor = np.zeros(len(x))
    for label, count in zip(order, counts, strict=True):
        style: dict[str, Any] = {
            "facecolor": phase_color(label),
            "edgecolor": "white",
            # Colour is not the only difference: hatched where biases switch columns off.
            "hatch": _HATCHES[phase_linestyle(label)] if _parse(label) else None,
            "linewidth": 0.3,
        }
        ax.fill_between(x, floor, floor + count, **style).set_gid(f"phase-{label}")
        handles.append(Patch(label=label, **style))
        floor = floor + count
    _title(figure, f"Phases of {n_members} member{'s' * (n_members != 1)}")
    _phase_legend(figure, handles, 0.2)
    return figure


def llc_by_phase(
    loss: ArrayLike, llc: ArrayLike, labels: Sequence[str], points: Sequence[Level]
) -> Figure:
    """LLC estimates against the loss, snapshot by snapshot, coloured by phase: all (N,).

    Crosses are the theory values of the phases that occur, where one is known.
    """
    x, y = np.asarray(loss, dtype=float), np.asarray(llc, dtype=float)
    phase = np.asarray([str(label) for label in labels])
    if x.ndim != 1 or not x.shape == y.shape == phase.shape:
        raise ValueError(
            f"loss, llc and labels must all be (N,), got {x.shape}, {y.shape} and {phase.shape}"
        )
    order = phase_order(phase)
    crosses = [p for p in points if p.llc is not None and p.label in order]
    body, above = 2.0, 0.24 + _legend_height(len(order))
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = _axes(figure, 0.5, 0.36, WIDTH - 0.16, 0.36 + body)
    _label_axes(ax, "population loss $L(w)$", r"LLC $\hat\lambda$")
    handles = []
    for label in order:
        here = phase == label
        colour = phase_color(label)
        style: dict[str, Any] = {
            "ls": "",
            "marker": phase_marker(label),
            "color": colour,
            "mew": 0.7,
        }
        ax.plot(x[here], y[here], ms=3.5, alpha=0.6, zorder=2, **style).pop().set_gid(
            f"phase-{label}"
        )
        handles.append(Line2D([], [], ms=4, label=label, **style))
    known = [float(p.llc) for p in crosses if p.llc is not None]
    for point, value in zip(crosses, known, strict=True):
        colour = phase_color(point.label)
        ax.plot(point.loss, value, marker="x", ms=9, mew=3.0, color="white", zorder=3)
        cross = ax.plot(point.loss, value, marker="x", ms=8, mew=1.8, color=colour, zorder=4)
        cross.pop().set_gid(f"theory-{point.label}")
    positive = x[np.isfinite(x)]
    if positive.size and positive.min() > 0 and all(p.loss > 0 for p in crosses):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    finite = [*y[np.isfinite(y)], *known]
    if finite:
        floor = max(min(finite), -0.25 * max(*finite, 1.0))
        ax.set_ylim(floor - 0.05 * (max(finite) - floor or 1), max(finite) * 1.15)
        hidden = x[y < floor]
        if hidden.size:
            ax.plot(
                hidden,
                np.zeros(hidden.size) + 0.02,
                ls="",
                marker="v",
                ms=3,
                color=_GREY,
                transform=ax.get_xaxis_transform(),
            ).pop().set_gid("llc-below-frame")
    # Names above the crosses, moved sideways where they would touch.
    named = sorted(zip(crosses, known, strict=True), key=lambda pair: pair[0].loss)
    to_axes = ax.transAxes.inverted().transform
    at = [to_axes(ax.transData.transform((point.loss, value))) for point, value in named]
    width = WIDTH - 0.66
    gap = (max((len(p.label) for p in crosses), default=0) * _CHARACTER + 0.05) / width
    places = _spread([float(xy[0]) for xy in at], gap, 0.0, 1.0)
    for (point, _), xy, place in zip(named, at, places, strict=True):
        ax.annotate(
            point.label,
            (place, xy[1]),
            xycoords="axes fraction",
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=_FONT,
            color=_INK,
            zorder=5,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        ).set_gid("theory-label")
    _title(figure, f"LLC against loss, {len(x)} snapshots; crosses: theory")
    _phase_legend(figure, handles, 0.2)
    return figure


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
