"""The page's figures after Elhage et al. (2022); see `drawings`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from kgon.figures.style import (
    GREY,
    INK,
    Array,
    loss_axis,
    new_panels,
    phase_color,
    step_axis,
    styled,
)
from kgon.figures.weights import GRAM_KEY, bias_key, gram, k_gon
from kgon.paper.computation import SERVES

Data = Mapping[str, Any]


def grid(ax: Axes, columns: list[str], rows: list[str]) -> None:
    """Label axes of unit squares with names of columns and rows."""
    ax.set(xlim=(0, len(columns)), ylim=(0, len(rows)))
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)


def _weights_of(picture: Data) -> tuple[Array, Array]:
    return np.array(picture["W"]), np.array(picture["b"])


@styled
def polygons(data: Data) -> Figure:
    """The columns of W in the plane, W^T W below, then the losses of all starts, by sparsity."""
    pictures = data["pictures"]
    n = len(pictures)
    title = f"{len(pictures[0]['b'])} features in 2 dimensions, best member"
    figure, axes = new_panels(title, [3.2 / n, 3.2 / n, 0.7], columns=n, share_x=False)
    for place, picture in enumerate(pictures):
        W, b = _weights_of(picture)
        k_gon(axes[place], W, b, f"S = {picture['sparsity']:g}")
        gram(axes[n + place], W, b, f"gram-{picture['sparsity']:g}")
    _starts(axes[2 * n :], pictures)
    figure.supxlabel("features represented")
    bias_key(figure, axes[: 2 * n], GRAM_KEY)
    return figure


def _starts(axes: Sequence[Axes], pictures: Sequence[Data]) -> None:
    """The loss of every start against the number of features that it represents."""
    for ax, picture in zip(axes, pictures, strict=True):
        starts = picture["starts"]
        ax.plot(starts["represented"], starts["loss"], ls="", marker="o", ms=3, mfc="none",
                mew=0.6, color=INK, gid=f"starts-{picture['sparsity']:g}")  # fmt: skip
        best = starts["represented"][picture["best"]]
        ax.errorbar(best, picture["loss"], picture["loss_stderr"], marker="o", ms=3, lw=0.8,
                    color=INK)  # fmt: skip
        least, most = min(starts["represented"]), max(starts["represented"])
        ax.set_xlim(least - 1, most + 1)
        ax.set_xticks(sorted({least, most}))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.margins(y=0.15)
    axes[0].set_ylabel("loss")


@styled
def grams(data: Data) -> Figure:
    """W^T W and b, the dimensionality of each feature below, then the losses of all starts, by
    sparsity."""
    pictures = data["pictures"]
    n = len(pictures)
    m, c = np.shape(pictures[0]["W"])
    title = f"{c} features in {m} dimensions, importance $0.7^i$"
    figure, axes = new_panels(title, [3.0 / n, 0.7, 0.7], columns=n, share_x=False)
    for place, picture in enumerate(pictures):
        upper, lower = axes[place], axes[n + place]
        gram(upper, *_weights_of(picture), f"gram-{picture['sparsity']:g}")
        upper.set_title(f"S = {picture['sparsity']:g}")
        D = picture["dimensionality"]
        lower.bar(range(len(D)), D, color=INK, width=0.8, gid=f"dimensionality-{place}")
        lower.axhline(0.5, color=GREY, lw=0.6, ls="--")
        lower.set_ylim(0, 1.05)
        lower.set_xticks([])
        lower.set_yticks([0, 0.5, 1])
        lower.tick_params(labelleft=place == 0)
    axes[n].set_ylabel("$D_i$ by feature")
    _starts(axes[2 * n :], pictures)
    figure.supxlabel("features represented")
    bias_key(figure, axes[:n], GRAM_KEY)
    return figure


@styled
def dimensions(data: Data) -> Figure:
    """Dimensionality of every feature, and dimensions per feature, against 1 / (1 - S)."""
    pictures = data["pictures"]
    x = np.array([1 / (1 - p["sparsity"]) for p in pictures])
    per_feature = [len(p["W"]) / float((np.array(p["W"]) ** 2).sum()) for p in pictures]
    m, c = np.shape(pictures[0]["W"])
    dots: dict[str, Any] = {"ls": "", "marker": "o", "color": phase_color("4")}
    line: dict[str, Any] = {"marker": "s", "ms": 3, "lw": 1.2, "color": phase_color("5")}
    legend = [
        Line2D([], [], label="$D_i$ of a feature", ms=3, **dots),
        Line2D([], [], label="$m / |W|^2$", **line),
    ]
    title = f"Dimensionality of {c} equal features in {m} dimensions"
    figure, (ax,) = new_panels(title, [1.85], legend)
    _geometries(ax)
    rng = np.random.default_rng(0)
    for place, (at, picture) in enumerate(zip(x, pictures, strict=True)):
        D = np.array(picture["dimensionality"])
        beside = at * np.exp(rng.uniform(-0.06, 0.06, len(D)))
        ax.plot(beside, D, ms=2, alpha=0.5, gid=f"features-{place}", **dots)
    for at, picture in zip(x, pictures, strict=True):
        others = picture["starts"]["per_feature"]
        ax.plot([at] * len(others), others, **line | {"lw": 0, "alpha": 0.3})
    ax.plot(x, per_feature, gid="per-feature", **line)
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.05)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set(xlabel="1 / (1 - S)", ylabel="dimensionality")
    return figure


def _geometries(ax: Axes) -> None:
    """Lines at the dimensionalities of regular arrangements."""
    for value, name in ((1.0, "1"), (0.5, "1/2"), (0.4, "2/5"), (0.75, "3/4"), (2 / 3, "2/3")):
        ax.axhline(value, color=GREY, lw=0.5, ls=":", zorder=0)
        ax.annotate(name, (1.01, value), xycoords=ax.get_yaxis_transform(), color=GREY,
                    va="center", annotation_clip=False)  # fmt: skip


@styled
def learning_dynamics(data: Data) -> Figure:
    """The loss, and below it the dimensionality of each feature, against steps."""
    D = np.array(data["dimensionality"])
    n, m = D.shape[1], data["n_hidden"]
    title = f"{n} equal features in {m} dimensions, S = {data['sparsity']:g}"
    figure, (upper, lower) = new_panels(title, [0.8, 1.6])
    upper.plot(data["loss_step"], data["loss"], color=INK, lw=1.2, gid="loss")
    loss_axis(upper, 0.9 * min(data["loss"]), 1.1 * max(data["loss"]))
    upper.set_ylabel("loss")
    for i, curve in enumerate(D.T):
        lower.plot(data["step"], curve, color=phase_color("4"), lw=0.8, alpha=0.7,
                   gid=f"dimensionality-{i}")  # fmt: skip
    _geometries(lower)
    step_axis(lower, np.array(data["step"]))
    lower.set_ylim(-0.03, 1.05)
    lower.set(xlabel="optimizer steps", ylabel="dimensionality $D_i$")
    return figure


@styled
def feature_sparsity(data: Data) -> Figure:
    """Length and dimensionality of features against the probability of being active."""
    active = 1 - np.array(data["sparsity"])
    title = f"{len(active)} features that differ in sparsity, {len(data['W'])} dimensions"
    figure, (upper, lower) = new_panels(title, [1.0, 1.0])
    dots: dict[str, Any] = {"ls": "", "marker": "o", "ms": 3, "color": phase_color("4")}
    for start, length in enumerate(data["length"]):
        best = start == data["best"]
        upper.plot(active, length, **dots | {"alpha": 1.0 if best else 0.15},
                   zorder=2 + best, gid=f"length-{start}")  # fmt: skip
    upper.set_ylabel("$|W_i|$")
    lower.plot(active, data["dimensionality"], gid="dimensionality", **dots)
    lower.set_xscale("log")
    lower.set_ylim(-0.03, 1.05)
    lower.set(xlabel="probability $1 - S_i$ of being active", ylabel="dimensionality $D_i$")
    return figure


_STATES = {
    "not represented": ("#f0f0f0", ""),
    "dedicated dimension": (phase_color("4"), ""),
    "superposition": (phase_color("5"), "////"),
    "undecided": ("#d0d0d0", "...."),
}


@styled
def phase_change(data: Data) -> Figure:
    """What becomes of the last feature, by sparsity and relative importance."""
    cells = data["cells"]
    sizes = sorted({cell["sparsity"] for cell in cells})
    weights = sorted({cell["importance"] for cell in cells})
    legend = [
        Patch(fc=colour, hatch=hatch, ec=GREY, lw=0.4, label=state)
        for state, (colour, hatch) in _STATES.items()
        if any(cell["state"] == state for cell in cells)
    ]
    n = data["n_features"]
    title = f"The last of {n} features in {n - 1} dimension{'s' * (n > 2)}"
    figure, (ax,) = new_panels(title, [1.55], legend)
    for cell in cells:
        colour, hatch = _STATES[cell["state"]]
        at = sizes.index(cell["sparsity"]), weights.index(cell["importance"])
        ax.add_patch(
            Rectangle(at, 1, 1, fc=colour, ec="white", hatch=hatch, lw=0.6,
                      gid=f"{cell['state']}-{cell['sparsity']:g}-{cell['importance']:g}")
        )  # fmt: skip
        if cell["agree"] < data["members"] and cell["state"] != "undecided":
            text = f"{cell['agree']}/{data['members']}"
            ax.text(at[0] + 0.5, at[1] + 0.5, text, ha="center", va="center", color=INK,
                    bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    grid(ax, [f"{s:g}" for s in sizes], [f"{w:g}" for w in weights])
    ax.set(xlabel="sparsity S", ylabel="relative importance")
    return figure


@styled
def pairs(data: Data) -> Figure:
    """Cosines between the features of pairs, and the best member's columns."""
    kinds = data["kinds"]
    title = (
        f"Two pairs in 2 dimensions, S = {kinds[0]['sparsity']:g}, {kinds[0]['members']} members"
    )
    figure, axes = new_panels(title, [1.2, 1.0], columns=len(kinds), share_x=False)
    for kind, picture, ax in zip(kinds, axes, axes[len(kinds) :], strict=False):
        k_gon(picture, kind["W"], kind["b"], kind["kind"])
        picture.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))  # room for the names
        names = ("$a$", "$a'$", "$b$", "$b'$")
        for name, (x, y) in zip(names, 1.28 * np.array(kind["W"]).T, strict=True):
            picture.text(x, y, name, ha="center", va="center")
        ax.hist(kind["cosines"], bins=np.linspace(-1, 1, 21).tolist(), color=phase_color("4"),
                gid=f"cosines-{kind['kind']}")  # fmt: skip
        ax.set_xlim(-1.05, 1.05)
        ax.set_xticks([-1, 0, 1])
        ax.set_xlabel("cosine in a pair")
    axes[len(kinds)].set_ylabel("pairs")
    return figure


@styled
def computation(data: Data) -> Figure:
    """What each neuron contributes to the slopes of the absolute values, by sparsity."""
    pictures = data["pictures"]
    one, several = phase_color("4"), phase_color("5")
    legend = [Patch(fc=colour, label=f"a neuron that serves {words}")
              for colour, words in ((one, "one feature"), (several, "several"))]  # fmt: skip
    n, m = np.shape(pictures[0]["slope"])
    title = f"{n} absolute values by {m} neurons"
    columns = math.ceil(len(pictures) / 2)
    top = 1.05 * max(float(np.sum(p["slope"], 0).max()) for p in pictures)
    figure, axes = new_panels(title, [0.9, 0.9], legend, columns=columns)
    for ax, picture in zip(axes, pictures, strict=False):
        slope = np.array(picture["slope"])
        slope = slope[:, np.lexsort((-slope.max(0), slope.argmax(0)))]
        below = np.vstack([np.zeros(m), slope.cumsum(0)[:-1]])
        counts = (slope >= SERVES).sum(0)
        for neuron in range(m):
            seen = np.flatnonzero(slope[:, neuron] > 0.005 * top)
            ax.bar([neuron] * len(seen), slope[seen, neuron], bottom=below[seen, neuron], width=0.8,
                   lw=0.3, ec="white", color=several if counts[neuron] > 1 else one)  # fmt: skip
        ax.set_xticks([])
        ratio = picture["loss"] / picture["dedicated"]
        ax.set_title(f"S = {picture['sparsity']:g}: {ratio:.2f}", loc="left")
        ax.set_ylim(0, top)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for place, ax in enumerate(axes):
        ax.tick_params(labelleft=place % columns == 0)
    figure.supylabel("slopes, stacked")
    figure.supxlabel("neurons (above: loss / least loss without superposition)")
    return figure
