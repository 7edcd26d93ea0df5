"""A film of one member: the columns of W, while a cursor runs along its loss and its LLC.

A film is a GIF: Pillow writes it, which matplotlib needs anyway, and a browser, a README and a slide
play it. With one palette for all frames it takes a fifth more bytes than an animated WebP; a video
would need ffmpeg.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from kgon.figures import style
from kgon.figures.style import Array, styled
from kgon.figures.training import draw_curves
from kgon.figures.weights import COLUMNS_KEY, GRAM_KEY, bias_key, k_gon

_FRAMES = 240
_PER_SECOND = 20
_COLOURS, _SAMPLE = 128, 8  # of the palette, and frames that it is made from
_LAST = 2000  # milliseconds more for the last frame


@styled
def film(
    path: Path,
    step: ArrayLike,
    W: ArrayLike,
    b: ArrayLike,
    phase: Sequence[str],
    curves: dict[str, Any],
    *,
    log: bool = False,
) -> Path:
    """Write the film of one member to `path` and return it.

    Each frame shows a recorded state, with the cursor at its step: nothing is interpolated. The
    states are those nearest to evenly spaced points of the axis of steps; one that is nearest to
    several of them stays for as long.

    Args:
        path: ends in .gif.
        step: (S,), of the states, increasing.
        W, b: (S, n_hidden, n_features) and (S, n_features).
        phase: S labels.
        curves: the arguments of `training.staircase` by name.
        log: whether the axis of steps is logarithmic; otherwise it is linear, as in Fig. 1.
    """
    if path.suffix != ".gif":
        raise ValueError(f"a film is a file that ends in .gif, got {path}")
    step, W, b = np.asarray(step, dtype=float), np.asarray(W), np.asarray(b)
    figure = Figure(figsize=(2 * style.WIDTH, 3.2), dpi=144, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25])
    picture = left.add_subplot()
    bias_key(left, picture, COLUMNS_KEY if W.shape[1] in (2, 3) else GRAM_KEY)
    panels = right.subplots(1 if curves["llc"] is None else 2, 1, squeeze=False)[:, 0]
    for ax in panels:
        style.style_ticks(ax)
        ax.tick_params(labelbottom=ax is panels[-1])
    draw_curves(panels, **curves, log=log)
    cursors = [_Cursor(ax, step[-1]) for ax in panels]

    def draw(n: int) -> None:
        picture.clear()
        k_gon(picture, W[n], b[n], phase[n], series=W)
        picture.title.set(fontsize=14, color=style.phase_color(phase[n]))
        picture.text(0.5, 0.0, f"step {step[n]:,.0f}", fontsize=9, ha="center", va="top",
                     transform=picture.transAxes)  # fmt: skip
        for cursor in cursors:
            cursor.move(step[n])

    draw(0)
    # What moves is left out of the picture that all frames begin with.
    moving = [picture, *(part for cursor in cursors for part in cursor.parts)]
    for artist in moving:
        artist.set_animated(True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    still = canvas.copy_from_bbox(figure.bbox)

    def frame(n: int) -> Image.Image:
        canvas.restore_region(still)
        draw(n)
        for artist in moving:
            figure.draw_artist(artist)
        return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3])

    chosen, times = _evenly_spaced(panels[0], step)
    some = [np.asarray(frame(n)) for n in chosen[:: math.ceil(len(chosen) / _SAMPLE)]]
    palette = Image.fromarray(np.concatenate(some)).quantize(_COLOURS, Image.Quantize.FASTOCTREE)
    first, *others = [frame(n).quantize(palette=palette, dither=Image.Dither.NONE) for n in chosen]
    milliseconds = times * (1000 // _PER_SECOND)
    milliseconds[-1] += _LAST
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=milliseconds.tolist(), loop=0)
    return path


class _Cursor:
    """A line at a step, and a veil over what comes after it."""

    def __init__(self, ax: Axes, last: float):
        self._end, self._last = ax.get_xlim()[1], last
        across = ax.get_xaxis_transform()
        self._line = Line2D([0, 0], [0, 1], transform=across, color=style.INK, lw=0.8, zorder=6)
        self._veil = Rectangle((0, 0), 0, 1, transform=across, color="white", alpha=0.7, lw=0,
                               zorder=5)  # fmt: skip
        self.parts = [ax.add_patch(self._veil), ax.add_line(self._line)]

    def move(self, step: float) -> None:
        self._line.set_xdata([step, step])
        self._veil.set_bounds(step, 0, self._end - step if step < self._last else 0.0, 1)


def _evenly_spaced(ax: Axes, step: Array) -> tuple[Array, Array]:
    """The states nearest to evenly spaced points of an axis of steps, and to how many points each
    is the nearest."""
    place = ax.transData.transform(np.stack([step, np.ones_like(step)], 1))[:, 0]
    points = np.linspace(place[0], place[-1], _FRAMES)
    chosen, times = np.unique(np.searchsorted((place[1:] + place[:-1]) / 2, points),
                              return_counts=True)  # fmt: skip
    return chosen, times
