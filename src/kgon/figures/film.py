"""A film of one member: the columns of W, while a cursor runs along its loss and its LLC.

A film is a GIF, which READMEs and slides play and which Pillow writes, or a WebM (VP9), which has
all colours and which PyAV, the extra kgon[film], writes.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image
from scipy.spatial import KDTree

from kgon.figures import style
from kgon.figures.style import Array, styled
from kgon.figures.training import Curves, draw_curves
from kgon.figures.weights import COLUMNS_KEY, GRAM_KEY, bias_key, k_gon

_FRAMES = 240
_PER_SECOND = 20
_COLOURS, _FREQUENT = 255, 64  # in a GIF's palette, which needs one more for what does not change
_SAMPLE = 8  # frames, or somewhat more, from which the palette is made
_LAST = 2000  # milliseconds for which the last frame stays longer
_VP9 = {"crf": "24", "b": "0"}  # a quality, and no limit of bits


@styled
def film(
    path: Path,
    step: ArrayLike,
    W: ArrayLike,
    b: ArrayLike,
    phase: Sequence[str],
    curves: Curves,
    *,
    log: bool = False,
) -> Path:
    """Write the film of one member to `path` and return it.

    Each frame shows a recorded state, with the cursor at its step; nothing is interpolated. The
    states are those nearest to evenly spaced points of the axis of steps. A state that is nearest
    to several points is shown for longer.

    Args:
        path: ends in .gif or .webm.
        step: (S,), the steps of the states, increasing.
        W, b: (S, n_hidden, n_features) and (S, n_features).
        phase: S labels.
        curves: the loss and the LLC of the member.
        log: whether the axis of steps is logarithmic; otherwise it is linear, as in Fig. 1.
    """
    check_file(path)
    step, W, b = np.asarray(step, dtype=float), np.asarray(W), np.asarray(b)
    figure = Figure(figsize=(2 * style.WIDTH, 3.2), dpi=144,
                    layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))  # fmt: skip
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.25])[0]
    picture = left.add_subplot()
    bias_key(left, picture, COLUMNS_KEY if W.shape[1] in (2, 3) else GRAM_KEY)
    panels = right.subplots(1 if curves.llc is None else 2, 1, squeeze=False)[:, 0]
    for ax in panels:
        style.style_ticks(ax)
        ax.tick_params(labelbottom=ax is panels[-1])
    draw_curves(panels, curves, log=log)
    cursors = [_Cursor(ax, step[-1]) for ax in panels]

    def draw(n: int) -> None:
        picture.clear()
        k_gon(picture, W[n], b[n], phase[n], series=shown)
        picture.title.set(fontsize=14, color=style.phase_color(phase[n]))
        picture.text(0.5, 0.0, f"step {step[n]:,.0f}", fontsize=9, ha="center", va="top",
                     transform=picture.transAxes)  # fmt: skip
        for cursor in cursors:
            cursor.move(step[n])

    chosen, times = _evenly_spaced(panels[0], step)
    # The scale is set by the last 7/8 of the film: large columns at the start may leave the frame.
    shown = W[chosen[len(chosen) // 8 :]]
    draw(0)
    # All frames begin with a picture of what does not move.
    moving = [picture, *(part for cursor in cursors for part in cursor.parts)]
    for artist in moving:
        artist.set_animated(True)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    still = canvas.copy_from_bbox(figure.bbox)

    def frame(n: int) -> Array:
        canvas.restore_region(still)
        draw(n)
        for artist in moving:
            figure.draw_artist(artist)
        return np.array(canvas.buffer_rgba())[..., :3]

    milliseconds = times * (1000 // _PER_SECOND)
    milliseconds[-1] += _LAST
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".webm":
        _write_webm(path, frame, chosen, milliseconds)
    else:
        # The sample has all phases, so that each keeps its colour.
        sample = {*chosen[:: len(chosen) // _SAMPLE + 1],
                  *chosen[np.unique(np.asarray(phase)[chosen], return_index=True)[1]]}  # fmt: skip
        palette = _palette([frame(n) for n in sample])
        first, *others = (_with_palette(frame(n), palette) for n in chosen)
        first.save(path, save_all=True, append_images=others, duration=milliseconds.tolist(),
                   loop=0)  # fmt: skip
    return path


def check_file(path: Path) -> None:
    """Raise ValueError if a film cannot be written to a file of this name."""
    if path.suffix not in (".gif", ".webm"):
        raise ValueError(f"the file of a film must end in .gif or .webm, got {path}")
    if path.suffix == ".webm" and not importlib.util.find_spec("av"):
        raise ValueError(f"{path}: a WebM needs PyAV: pip install 'kgon[film]'; or end it in .gif")


def _write_webm(
    path: Path, frame: Callable[[int], Array], states: Array, milliseconds: Array
) -> None:
    """Write the frames of these states, each shown for its number of milliseconds, as VP9."""
    import av

    height, width = (size // 2 * 2 for size in frame(states[0]).shape[:2])  # VP9 halves colours
    with av.open(path, "w") as container:
        video = container.add_stream("libvpx-vp9", rate=_PER_SECOND, options=_VP9)
        video.height, video.width = height, width
        for n, shown in zip(states, milliseconds * _PER_SECOND // 1000, strict=True):
            picture = np.ascontiguousarray(frame(n)[:height, :width])
            image = av.VideoFrame.from_ndarray(picture, format="rgb24")
            for _ in range(shown):
                container.mux(video.encode(image))
        container.mux(video.encode())


def _palette(frames: Sequence[Array]) -> Array:
    """The frames' most frequent colours, which fill areas, then the others that are farthest from
    all chosen so far, (_COLOURS, 3)."""
    codes, counts = np.unique(np.concatenate([_codes(f).ravel() for f in frames]),
                              return_counts=True)  # fmt: skip
    found = _colours(codes[np.argsort(-counts, kind="stable")])
    kept = [*range(min(_FREQUENT, len(found)))]
    distance = KDTree(found[kept]).query(found)[0]
    while len(kept) < min(_COLOURS, len(found)):
        kept.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(found - found[kept[-1]], axis=1))
    return found[kept]


def _with_palette(frame: Array, palette: Array) -> Image.Image:
    """The frame (height, width, 3) in the nearest colours of a palette."""
    codes, inverse = np.unique(_codes(frame), return_inverse=True)
    nearest = KDTree(palette).query(_colours(codes))[1].astype(np.uint8)
    image = Image.fromarray(nearest[inverse].reshape(frame.shape[:2]))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def _codes(frame: Array) -> Array:
    """A number for each pixel's colour."""
    codes: Array = frame.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    return codes


def _colours(codes: Array) -> Array:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)


class _Cursor:
    """A line at a step, and a veil over the curve after it."""

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
    """The states nearest to _FRAMES evenly spaced points of an axis of steps, and for each the
    number of points to which it is the nearest."""
    place = ax.transData.transform(np.stack([step, np.ones_like(step)], 1))[:, 0]
    points = np.linspace(place[0], place[-1], _FRAMES)
    chosen, times = np.unique(np.searchsorted((place[1:] + place[:-1]) / 2, points),
                              return_counts=True)  # fmt: skip
    return chosen, times
