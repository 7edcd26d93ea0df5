"""Pictures of weights: the columns of W as k-gons, or W^T W as a heat map."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from numpy.typing import ArrayLike

from kgon.figure_style import (
    FONT,
    INK,
    WIDTH,
    Array,
    add_axes,
    label_axes,
    phase_color,
    write_title,
)

MAX_WEIGHTS = 16
"""Most pictures on one sheet of `weights`."""

# Below this length a column is drawn as dead. It concerns pictures only: live columns of the
# critical points have length >= 1.
_DEAD = 0.3

_BIAS_NORM = Normalize(-1.0, 1.0)
_BIAS = ScalarMappable(_BIAS_NORM, "PuOr_r")


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
    _blank(ax)
    ax.set_title(label, fontsize=FONT, color=INK, pad=1.5)
    reach = _reach(W)
    ax.set_aspect("equal")
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    _draw(ax, W, b, label, np.zeros(2), reach)


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
    height = 0.2 + rows * pitch + foot
    figure = Figure(figsize=(WIDTH, height))
    # One frame for all of them, in inches: axes of their own would take three times as long.
    sheet = add_axes(figure, 0.0, 0.0, WIDTH, height)
    _blank(sheet)
    sheet.set_xlim(0.0, WIDTH)
    sheet.set_ylim(0.0, height)
    left = (WIDTH - columns * 0.84) / 2
    for n in range(len(W)):
        row, column = divmod(n, columns)
        x = left + 0.84 * (column + 0.5)
        y = foot + pitch * (rows - 1 - row) + size / 2
        _draw(sheet, W[n], b[n], labels[n], np.array([x, y]), size / 2)
        top = y + size / 2 + 0.02
        sheet.text(x, top, labels[n], fontsize=FONT, color=INK, ha="center", va="bottom")
    bar = add_axes(figure, 0.95, 0.36, WIDTH - 0.95, 0.43)
    figure.colorbar(
        _BIAS, cax=bar, orientation="horizontal", ticks=[-1, 0, 1]
    ).outline.set_linewidth(0.4)
    label_axes(bar, _KEY if W.shape[1] == 2 else "$W^TW$, then $b$ as a last column", None)
    write_title(figure, f"Weights of {len(W)} member{'s' * (len(W) != 1)}")
    return figure


_KEY = "bias $b_i$; dead columns: ring +, dot \N{MINUS SIGN}; cross: off by its bias"


def _blank(ax: Axes) -> None:
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])


def _reach(W: Array) -> float:
    """Half the side of the square that shows W."""
    length = np.linalg.norm(W, axis=0)
    return max(1.2, 1.12 * float(length.max(initial=0.0, where=np.isfinite(length))))


def _draw(ax: Axes, W: Array, b: Array, label: str, centre: Array, half: float) -> None:
    """Draw the picture into the square of side 2 * half around `centre`, in units of `ax`."""
    x, y = centre
    if not (np.isfinite(W).all() and np.isfinite(b).all()):
        ax.text(x, y, "not finite", fontsize=FONT, ha="center", va="center")
    elif W.shape[0] != 2:
        gap = np.full((W.shape[1], 1), np.nan)
        image = np.concatenate([W.T @ W, gap, b[:, None]], axis=1)
        tall = half * min(1.0, image.shape[0] / image.shape[1])
        wide = half * min(1.0, image.shape[1] / image.shape[0])
        ax.imshow(
            image,
            cmap=_BIAS.cmap,
            norm=_BIAS_NORM,
            interpolation="nearest",
            extent=(x - wide, x + wide, y - tall, y + tall),
        ).set_gid("gram")
    else:
        _draw_columns(ax, W, b, phase_color(label), centre, half / _reach(W))


def _draw_columns(ax: Axes, W: Array, b: Array, colour: str, centre: Array, unit: float) -> None:
    """Draw the columns of a W of two rows around `centre`; `unit` is length 1 in units of `ax`."""
    length = np.linalg.norm(W, axis=0)
    live = length >= _DEAD
    off = live & (b < -(length**2))
    tips = centre + unit * W.T
    circle = Circle(tuple(centre), unit, fill=False, ls=(0, (3, 3)), lw=0.5, ec="#b0b0b0", zorder=0)
    ax.add_patch(circle)
    hull = _hull(tips[live])
    if len(hull) >= 3:
        polygon = Polygon(hull, closed=True, fc=to_rgba(colour, 0.25), ec=colour, lw=1.0, zorder=1)
        polygon.set_gid("hull")
        ax.add_patch(polygon)
    for chosen, style, marker, gid in (
        (live & ~off, "-", "o", "columns"),
        (off, ":", "X", "columns-off"),
    ):
        if not chosen.any():
            continue
        spokes = np.stack(np.broadcast_arrays(centre, tips[chosen]), axis=1)
        ax.add_collection(
            LineCollection(list(spokes), colors=INK, linewidths=0.7, linestyles=style, zorder=2),
            autolim=False,
        )
        _mark(ax, tips[chosen], gid, marker=marker, s=16, c=_BIAS.to_rgba(b[chosen]), lw=0.5)
    dead = np.flatnonzero(~live)
    dead = dead[np.argsort(-b[dead], kind="stable")]
    row = np.zeros((len(dead), 2))
    row[:, 0] = 0.3 * unit * _reach(W) * (np.arange(len(dead)) - (len(dead) - 1) / 2)
    row += centre
    positive = b[dead] > 0
    for chosen, fill, size, gid in (
        (positive, "white", 20, "dead-positive"),
        (~positive, INK, 4, "dead-negative"),
    ):
        if chosen.any():
            _mark(ax, row[chosen], gid, marker="o", s=size, c=fill, lw=0.9)


def _mark(ax: Axes, at: Array, gid: str, **style: Any) -> None:
    ax.scatter(*at.T, edgecolors=INK, zorder=3, **style).set_gid(gid)


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
