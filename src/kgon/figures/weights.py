"""Pictures of weights: the columns of W as k-gons, or W^T W as a heat map."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize, to_hex, to_rgba
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.spatial import ConvexHull, QhullError

from kgon.figures.style import INK, Array, hide_axes, new_figure, phase_color, styled

MAX_WEIGHTS = 16
"""The largest number of pictures in the figure `weights`."""

DEAD = 0.3
"""A shorter column is drawn as dead. Live columns of critical points have length >= 1."""

_BIAS_NORM = Normalize(-1.0, 1.0)
_BIAS = ScalarMappable(_BIAS_NORM, "PuOr_r")


@styled
def k_gon(
    ax: Axes, W: ArrayLike, b: ArrayLike, label: str, *, series: ArrayLike | None = None
) -> None:
    """Draw the columns of W as vectors with their convex hull, and the biases.

    The colour of a tip shows the bias. A live column that is switched off by its bias
    (b_i < -|W_i|^2, counted in phi) is dotted and ends in a cross. Dead columns are in a row at the
    origin: a ring for a positive bias (counted in sigma), a dot for a negative one. The dashed
    circle is the unit circle. For n_hidden = 3 there are two pictures, seen along the columns' last
    principal axis and along the first. For other n_hidden the picture is a heat map of W^T W with
    the biases as a last column.

    Args:
        series: (N, n_hidden, n_features), if W is one of several in order of time. All of them are
            then drawn at one scale, and seen along the principal axes of the last.
    """
    W, b = np.asarray(W, dtype=float), np.asarray(b, dtype=float)
    series = W[None] if series is None else np.asarray(series, dtype=float)
    hide_axes(ax)
    ax.set_title(label)
    reach = max(map(_reach, series))
    ax.set_aspect("equal")
    ax.set_xlim(-reach, reach)
    height = reach / 2 if W.shape[0] == 3 else reach
    ax.set_ylim(-height, height)
    _draw(ax, W[None], b[None], [label], np.zeros((1, 2)), reach, np.array([reach]), series[-1:])


@styled
def weights(W: ArrayLike, b: ArrayLike, labels: Sequence[str]) -> Figure:
    """The k-gon pictures of up to 16 members: W (N, n_hidden, n_features), b (N, n_features)."""
    W, b = np.asarray(W, dtype=float), np.asarray(b, dtype=float)
    if not 1 <= len(W) <= MAX_WEIGHTS:
        raise ValueError(f"weights draws 1 to {MAX_WEIGHTS} members, got {len(W)}")
    columns = min(4, len(W))
    rows = math.ceil(len(W) / columns)
    figure = new_figure(f"Weights of {len(W)} member{'s' * (len(W) != 1)}", 0.9 * rows + 0.4)
    # All pictures are in one frame, because axes for each would take five times as long.
    sheet = figure.add_subplot()
    hide_axes(sheet)
    sheet.set_aspect("equal")
    # A picture is 2 wide, and 2.6 from the next below it.
    row, column = np.divmod(np.arange(len(W)), columns)
    x, y = 2.4 * column + 1.2, 2.6 * (rows - 1 - row) + 1.1
    sheet.set_xlim(0.0, 2.4 * max(columns, 2))
    sheet.set_ylim(0.0, 2.6 * rows)
    _draw(sheet, W, b, labels, np.stack([x, y], 1), 1.0, np.array([_reach(w) for w in W]), W)
    for n, label in enumerate(labels):
        sheet.text(x[n], y[n] + 1.05, label, ha="center", va="bottom")
    bias_key(figure, sheet, COLUMNS_KEY if W.shape[1] in (2, 3) else GRAM_KEY)
    return figure


COLUMNS_KEY = "bias $b_i$; dead columns: ring +, dot \N{MINUS SIGN}; cross: off by its bias"
"""The key to the marks of columns in the plane or in space."""
GRAM_KEY = "$W^TW$, then $b$ as a last column"


def bias_key(figure: Figure, axes: Axes | Sequence[Axes], text: str) -> None:
    """Draw the colour scale of biases and of W^T W below the axes."""
    bar = figure.colorbar(_BIAS, ax=axes, location="bottom", ticks=[-1, 0, 1], aspect=30,
                          shrink=0.6, pad=0.02)  # fmt: skip
    bar.outline.set_linewidth(0.4)
    bar.set_label(text)


def bias_colors(n: int) -> list[str]:
    """The colours of n evenly spaced biases from -1 to 1, as #rrggbb."""
    return [to_hex(tuple(rgba)) for rgba in _BIAS.to_rgba(np.linspace(-1, 1, n))]


def _reach(W: Array) -> float:
    """Half the side of the square that shows W."""
    length = np.linalg.norm(W, axis=0)
    return max(1.2, 1.12 * float(length.max(initial=0.0, where=np.isfinite(length))))


def principal_axes(W: Array) -> Array:
    """The principal axes of the columns of W (..., n_hidden, n_features), as rows in order."""
    axes: Array = np.linalg.svd(np.nan_to_num(W))[0].swapaxes(-1, -2)
    return axes


def _draw(
    ax: Axes,
    W: Array,
    b: Array,
    labels: Sequence[str],
    centres: Array,
    half: float,
    reach: Array,
    like: Array,
) -> None:
    """Draw the picture of each W[n] in the square of side 2 * half around its centre, in units of
    `ax`. It shows lengths up to `reach`, along the principal axes of like[n]."""
    finite = np.isfinite(W).all((1, 2)) & np.isfinite(b).all(1)
    for x, y in centres[~finite]:
        ax.text(x, y, "not finite", ha="center", va="center")
    if W.shape[1] not in (2, 3):
        # The heat map has two columns more than rows, and is as wide as the square.
        tall = half * b.shape[1] / (b.shape[1] + 2)
        for n in np.flatnonzero(finite):
            x, y = centres[n]
            gram(ax, W[n], b[n], "gram", (x - half, x + half, y - tall, y + tall))
    elif finite.any():
        colours = [phase_color(label) for label in np.array(labels, dtype=object)[finite]]
        W, b, centres, reach = W[finite], b[finite], centres[finite], reach[finite]
        length = np.linalg.norm(W, axis=1)
        if W.shape[1] == 2:
            _draw_columns(ax, W, length, b, colours, centres, half, reach)
            return
        axes = principal_axes(like[finite])
        for side, rows in ((-1, [0, 1]), (1, [2, 1])):
            seen = axes[:, rows] @ W
            beside = centres + side * np.array([half / 2, 0.0])
            _draw_columns(ax, seen, length, b, colours, beside, half / 2, reach)


def gram(
    ax: Axes, W: Array, b: Array, gid: str, extent: tuple[float, float, float, float] | None = None
) -> None:
    """Fill axes, or a rectangle in them, with the heat map of W^T W and b as a last column."""
    hide_axes(ax)
    image = np.concatenate([W.T @ W, np.full((len(b), 1), np.nan), b[:, None]], axis=1)
    ax.imshow(
        image, cmap=_BIAS.cmap, norm=_BIAS_NORM, interpolation="nearest", extent=extent
    ).set_gid(gid)


def _draw_columns(
    ax: Axes,
    W: Array,
    length: Array,
    b: Array,
    colours: list[str],
    centres: Array,
    half: float,
    reach: Array,
) -> None:
    """Draw the columns of each W[n] (2, n_features) around its centre; a length of `reach` is drawn
    as `half`. `length` has the columns' lengths before projection to the plane. All marks that look
    alike are one artist, because that is quick."""
    live = length >= DEAD
    off = live & (b < -(length**2))
    unit = half / reach[:, None, None]
    roots = np.broadcast_to(centres[:, None], (*live.shape, 2))
    tips = roots + unit * W.swapaxes(1, 2)
    turn = np.linspace(0.0, 2 * np.pi, 73)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    _lines(ax, centres[:, None] + unit * circle, "#b0b0b0", lw=0.5, ls=(0, (3, 3)), zorder=0)
    hulls = [_hull(tip[on]) for tip, on in zip(tips, live, strict=True)]
    shown = [n for n, hull in enumerate(hulls) if len(hull)]
    if shown:
        polygons = PolyCollection(
            [hulls[n] for n in shown],
            facecolors=[to_rgba(colours[n], 0.25) for n in shown],
            edgecolors=[colours[n] for n in shown],
            linewidths=1.0,
            zorder=1,
        )
        polygons.set_gid("hulls")
        ax.add_collection(polygons, autolim=False)
    for chosen, style, marker, gid in (
        (live & ~off, "-", "o", "columns"),
        (off, ":", "X", "columns-off"),
    ):
        if chosen.any():
            spokes = np.stack([roots[chosen], tips[chosen]], axis=1)
            _lines(ax, spokes, INK, lw=0.7, ls=style, zorder=2)
            _mark(ax, tips[chosen], gid, marker=marker, s=16, c=_BIAS.to_rgba(b[chosen]), lw=0.5)
    row = _row_of_the_dead(b, ~live)
    places = roots + 0.3 * half * np.stack([row, np.zeros_like(row)], -1)
    for chosen, fill, size, gid in (
        (~live & (b > 0), "white", 20, "dead-positive"),
        (~live & (b <= 0), INK, 4, "dead-negative"),
    ):
        if chosen.any():
            _mark(ax, places[chosen], gid, marker="o", s=size, c=fill, lw=0.9)


def _row_of_the_dead(b: Array, dead: Array) -> Array:
    """The position of each dead column in the row: 1 apart, mean 0, by decreasing bias."""
    order = np.argsort(np.where(dead, -b, np.inf), axis=1, kind="stable")
    rank: Array = np.argsort(order, axis=1) - (dead.sum(1, keepdims=True) - 1) / 2
    return rank


def _lines(ax: Axes, points: Array, colour: str, **style: Any) -> None:
    """Draw lines (n_lines, n_points, 2)."""
    ax.add_collection(LineCollection(list(points), colors=colour, **style), autolim=False)


def _mark(ax: Axes, at: Array, gid: str, **style: Any) -> None:
    ax.scatter(*at.T, edgecolors=INK, zorder=3, **style).set_gid(gid)


def _hull(xy: Array) -> Array:
    """The vertices of the convex hull of points (n, 2), counter-clockwise; none without area."""
    try:
        return xy[ConvexHull(xy).vertices] if len(xy) > 2 else xy[:0]
    except QhullError:
        return xy[:0]
