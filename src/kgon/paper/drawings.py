"""The page's figures: each a function of data as they are written beside it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from kgon.figures import llc as llc_figures
from kgon.figures import posterior as posterior_figures
from kgon.figures import training as training_figures
from kgon.figures.style import (
    FONT,
    GREY,
    INK,
    WIDTH,
    add_axes,
    label_axes,
    legend_height,
    linear_step_axis,
    phase_color,
    phase_legend,
    phase_marker,
    phase_order,
    write_title,
)
from kgon.figures.weights import k_gon
from kgon.posterior.phase_diagram import PhaseDiagram
from kgon.theory.critical import critical_points

Data = Mapping[str, Any]


def staircase(data: Data) -> Figure:
    """Figure 1."""
    return training_figures.staircase(
        data["step"],
        data["loss"],
        llc_step=data["llc_step"],
        llc=data["llc"],
        llc_stderr=data["llc_stderr"],
        plateaus=data["plateaus"],
        stages=[tuple(stage) for stage in data["stages"]],
        points=critical_points(data["n_features"]),
    )


def losses(data: Data) -> Figure:
    """Figure 3, the losses."""
    return training_figures.loss_curves(
        data["step"],
        data["loss"],
        critical_points(data["n_features"]),
        final_phase=data["final_phase"],
    )


_FEWEST = 5


def llc_against_time(data: Data) -> Figure:
    """Figure 3, the learning coefficients: median and quartiles of the members in each phase."""
    rows = [row for row in data["rows"] if row["members"] >= _FEWEST and row["phase"] != "other"]
    top = max(row["high"] for row in rows)
    floor = max(min(row["low"] for row in rows), -0.5 * max(top, 1.0))
    below = [
        phase
        for phase in phase_order(row["phase"] for row in rows)
        if max(row["median"] for row in rows if row["phase"] == phase) < floor
    ]
    rows = [row for row in rows if row["phase"] not in below]
    order = phase_order(row["phase"] for row in rows)
    above = 0.24 + legend_height(len(order))
    body = 2.2
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = add_axes(figure, 0.5, 0.36, WIDTH - 0.12, 0.36 + body)
    linear_step_axis(ax, 1.03 * max(row["step"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    width = 0.6 * (steps[1] - steps[0] if len(steps) > 1 else steps[0])
    handles = []
    for i, label in enumerate(order):
        own = [row for row in rows if row["phase"] == label]
        shift = width * ((i + 0.5) / len(order) - 0.5)
        x = np.array([row["step"] for row in own]) + shift
        y, low, high = (np.array([row[k] for row in own]) for k in ("median", "low", "high"))
        style: dict[str, Any] = {"color": phase_color(label), "marker": phase_marker(label)}
        ax.errorbar(
            x, y, yerr=np.stack([y - low, high - y]), lw=0.8, elinewidth=0.6, ms=3.5, **style
        ).lines[0].set_gid(f"llc-{label}")
        handles.append(Line2D([], [], ms=4, lw=0.8, label=label, **style))
    if below:
        ax.text(0.99, 0.01, f"below the frame: {', '.join(below)}", transform=ax.transAxes,
                fontsize=FONT, color=INK, ha="right", va="bottom", zorder=5,
                bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    ax.set_ylim(floor - 0.05 * (top - floor), top + 0.05 * (top - floor))
    label_axes(ax, "SGD steps", r"LLC $\hat\lambda$, median and quartiles")
    write_title(figure, f"Learning coefficients by phase, c = {data['n_features']}")
    phase_legend(figure, handles, 0.2)
    return figure


def shares(data: Data) -> Figure:
    """Figure 2."""
    pair = data["pair"]
    mean, sd = (math.nan if v is None else v for v in data["crossing"])
    return posterior_figures.phases(
        PhaseDiagram.from_rows(data, n_draws=data["n_draws"]),
        predicted=data["predicted"],
        pair=None if pair is None else tuple(pair),
        crossing=(mean, sd),
    )


def estimates(data: Data) -> Figure:
    """Learning coefficients at critical points."""
    return llc_figures.against_theory(data["rows"])


def first_transition(data: Data) -> Figure:
    """When members leave their first plateau, against batch size and learning rate."""
    figure = Figure(figsize=(WIDTH, 3.0))
    panels = (
        ("batch_size", "batch size (lr 0.005)", lambda r: r["lr"] == 0.005),
        ("lr", "learning rate (batch 20)", lambda r: r["batch_size"] == 20),
    )
    for place, (key, name, keep) in enumerate(panels):
        rows = sorted((r for r in data["rows"] if keep(r)), key=lambda r: r[key])
        left = 0.5 + place * 1.52
        upper = add_axes(figure, left, 1.45, left + 1.28, 2.68)
        lower = add_axes(figure, left, 0.4, left + 1.28, 1.2)
        x = np.arange(len(rows))
        y, low, high = (
            np.array([math.nan if r[k] is None else r[k] for r in rows], dtype=float)
            for k in ("median", "low", "high")
        )
        style: dict[str, Any] = {"color": INK, "marker": "o", "ms": 3.5, "lw": 0.8}
        upper.errorbar(x, y, yerr=np.stack([y - low, high - y]), capsize=2, **style).lines[
            0
        ].set_gid(f"median-{key}")
        lower.errorbar(
            x,
            [r["share"] for r in rows],
            yerr=[r["share_stderr"] for r in rows],
            capsize=2,
            **style,
        ).lines[0].set_gid(f"share-{key}")
        upper.set_ylim(0, max(r["end"] for r in data["rows"]))
        lower.set_ylim(0, 1)
        for ax in (upper, lower):
            ax.set_xlim(-0.4, len(rows) - 0.6)
            ax.set_xticks(x, [f"{r[key]:g}" for r in rows])
        upper.tick_params(labelbottom=False)
        if place:
            for ax in (upper, lower):
                ax.tick_params(labelleft=False)
        label_axes(lower, name, None if place else "share that leaves")
        label_axes(upper, None, None if place else "step × learning rate")
    members = {r["members"] for r in data["rows"]}
    count = f"{min(members)} to {max(members)}" if len(members) > 1 else f"{max(members)}"
    write_title(figure, f"First transition: median, quartiles of {count} runs")
    return figure


def survival(data: Data) -> Figure:
    """The share of members that stay in the phase where they began, by sparsity."""
    rows = data["rows"]
    labels = phase_order(row["label"] for row in rows)
    sizes = sorted({row["sparsity"] for row in rows})
    figure = Figure(figsize=(WIDTH, 0.42 * len(labels) + 0.75))
    ax = add_axes(figure, 0.55, 0.4, WIDTH - 0.12, 0.4 + 0.42 * len(labels))
    for row in rows:
        i, j = labels.index(row["label"]), sizes.index(row["sparsity"])
        share = row["survived"] / row["members"]
        box = Rectangle((j, i), 1, 1, fc=phase_color(row["label"]), alpha=share, lw=0)
        box.set_gid(f"survived-{row['label']}-{row['sparsity']:g}")
        ax.add_patch(box)
        ends = max(row["ends"], key=lambda k: row["ends"][k])
        text = f"{row['survived']}/{row['members']}"
        if ends != row["label"]:
            text += f"\nto {ends}"
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=FONT,
                color="white" if share > 0.6 and "+" not in row["label"] else INK)  # fmt: skip
    ax.set_xlim(0, len(sizes))
    ax.set_ylim(0, len(labels))
    ax.set_xticks(np.arange(len(sizes)) + 0.5, [f"{s:g}" for s in sizes])
    ax.set_yticks(np.arange(len(labels)) + 0.5, labels)
    label_axes(ax, "sparsity S", "start")
    write_title(figure, "Members still in the phase where they began")
    return figure


def polygons(data: Data) -> Figure:
    """The columns of W in the plane, and W^T W below, by sparsity."""
    pictures = data["pictures"]
    n = len(pictures)
    size = min(1.0, (WIDTH - 0.2) / n - 0.06)
    pitch = (WIDTH - 0.1) / n
    figure = Figure(figsize=(WIDTH, 2 * size + 0.95))
    for place, picture in enumerate(pictures):
        left = 0.05 + pitch * place + (pitch - size) / 2
        W, b = np.array(picture["W"]), np.array(picture["b"])
        k_gon(add_axes(figure, left, size + 0.5, left + size, 2 * size + 0.5), W, b,
              f"S = {picture['sparsity']:g}")  # fmt: skip
        _gram(add_axes(figure, left, 0.4, left + size, 0.4 + size), W, b, picture["sparsity"])
    _gram_key(figure)
    write_title(figure, f"{len(pictures[0]['b'])} features in 2 dimensions, best member")
    return figure


_SCALE = Normalize(-1.0, 1.0)


def _gram(ax: Axes, W: Any, b: Any, name: float) -> None:
    gap = np.full((W.shape[1], 1), np.nan)
    ax.imshow(
        np.concatenate([W.T @ W, gap, b[:, None]], 1), cmap="PuOr_r", norm=_SCALE,
        interpolation="nearest",
    ).set_gid(f"gram-{name:g}")  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _gram_key(figure: Figure) -> None:
    bar = add_axes(figure, WIDTH - 1.3, 0.22, WIDTH - 0.2, 0.29)
    key = matplotlib.cm.ScalarMappable(_SCALE, "PuOr_r")
    figure.colorbar(key, cax=bar, orientation="horizontal", ticks=[-1, 0, 1])
    figure.text(0.1 / WIDTH, 0.25 / figure.get_size_inches()[1], "$W^TW$, then $b$ as last column",
                fontsize=FONT, color=INK, va="center")  # fmt: skip


def grams(data: Data) -> Figure:
    """W^T W and b by sparsity, with the dimensionality of each feature below."""
    pictures = data["pictures"]
    n = len(pictures)
    pitch = (WIDTH - 0.4) / n
    size = pitch - 0.06
    figure = Figure(figsize=(WIDTH, size + 1.65))
    for place, picture in enumerate(pictures):
        left = 0.4 + pitch * place
        W, b = np.array(picture["W"]), np.array(picture["b"])
        ax = add_axes(figure, left, 1.32, left + size, 1.32 + size)
        _gram(ax, W, b, picture["sparsity"])
        ax.set_title(f"S = {picture['sparsity']:g}", fontsize=FONT, color=INK, pad=2)
        bars = add_axes(figure, left, 0.62, left + size, 1.25)
        D = picture["dimensionality"]
        bars.bar(range(len(D)), D, color=INK, width=0.8, gid=f"dimensionality-{place}")
        bars.axhline(0.5, color=GREY, lw=0.6, ls="--")
        bars.set_ylim(0, 1.05)
        bars.set_xticks([])
        bars.set_yticks([0, 0.5, 1])
        bars.tick_params(labelleft=place == 0)
        label_axes(bars, "feature" if place == n // 2 else None,
                    "$D_i$" if place == 0 else None)  # fmt: skip
    _gram_key(figure)
    m, c = np.shape(pictures[0]["W"])
    write_title(figure, f"{c} features in {m} dimensions, importance $0.7^i$")
    return figure


def dimensions(data: Data) -> Figure:
    """Dimensionality of every feature, and dimensions per feature, against 1 / (1 - S)."""
    pictures = data["pictures"]
    x = np.array([1 / (1 - p["sparsity"]) for p in pictures])
    per_feature = [len(p["W"]) / float((np.array(p["W"]) ** 2).sum()) for p in pictures]
    figure = Figure(figsize=(WIDTH, 2.75))
    ax = add_axes(figure, 0.5, 0.4, WIDTH - 0.28, 2.25)
    for value, name in ((1.0, "1"), (0.5, "1/2"), (0.4, "2/5"), (0.75, "3/4"), (2 / 3, "2/3")):
        ax.axhline(value, color=GREY, lw=0.5, ls=":", zorder=0)
        ax.text(1.005, value, name, transform=ax.get_yaxis_transform(), fontsize=FONT,
                color=GREY, va="center")  # fmt: skip
    rng = np.random.default_rng(0)
    for place, (at, picture) in enumerate(zip(x, pictures, strict=True)):
        D = np.array(picture["dimensionality"])
        spread = at * np.exp(rng.uniform(-0.06, 0.06, len(D)))
        ax.plot(spread, D, ls="", marker="o", ms=2, color=phase_color("4"), alpha=0.5,
                gid=f"features-{place}")  # fmt: skip
    ax.plot(x, per_feature, color=phase_color("5"), lw=1.2, marker="s", ms=3, gid="per-feature")
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.05)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    label_axes(ax, "1 / (1 - S)", "dimensionality")
    m, c = np.shape(pictures[0]["W"])
    write_title(figure, f"Dimensionality of {c} equal features in {m} dimensions")
    handles = [
        Line2D([], [], ls="", marker="o", ms=3, color=phase_color("4"), label="$D_i$ of a feature"),
        Line2D([], [], marker="s", ms=3, lw=1.2, color=phase_color("5"), label="$m / |W|^2$"),
    ]
    phase_legend(figure, handles, 0.2)
    return figure


_STATES = {
    "not represented": ("#f0f0f0", ""),
    "dedicated dimension": (phase_color("4"), ""),
    "superposition": (phase_color("5"), "////"),
    "neither": ("#ffffff", "xx"),
}


def phase_change(data: Data) -> Figure:
    """What becomes of the second feature, by sparsity and relative importance."""
    cells = data["cells"]
    sizes = sorted({cell["sparsity"] for cell in cells})
    weights = sorted({cell["importance"] for cell in cells})
    figure = Figure(figsize=(WIDTH, 2.6))
    ax = add_axes(figure, 0.5, 0.4, WIDTH - 0.12, 1.95)
    for cell in cells:
        colour, hatch = _STATES[cell["state"]]
        j, i = sizes.index(cell["sparsity"]), weights.index(cell["importance"])
        box = Rectangle((j, i), 1, 1, fc=colour, ec="white", hatch=hatch, lw=0.6)
        box.set_gid(f"{cell['state']}-{cell['sparsity']:g}-{cell['importance']:g}")
        ax.add_patch(box)
    ax.set_xlim(0, len(sizes))
    ax.set_ylim(0, len(weights))
    ax.set_xticks(np.arange(len(sizes)) + 0.5, [f"{s:g}" for s in sizes])
    ax.set_yticks(np.arange(len(weights)) + 0.5, [f"{w:g}" for w in weights])
    label_axes(ax, "sparsity S", "relative importance")
    write_title(figure, "The second feature of two in one dimension")
    shown = [s for s in _STATES if any(c["state"] == s for c in cells)]
    handles = [
        Patch(fc=_STATES[s][0], hatch=_STATES[s][1], ec=GREY, lw=0.4, label=s) for s in shown
    ]
    phase_legend(figure, handles, 0.2)
    return figure


def pairs(data: Data) -> Figure:
    """Cosines between the features of pairs, and the best member's columns."""
    figure = Figure(figsize=(WIDTH, 3.1))
    for place, kind in enumerate(data["kinds"]):
        left = 0.5 + place * 1.5
        picture = add_axes(figure, left + 0.1, 1.6, left + 1.2, 2.7)
        k_gon(picture, kind["W"], kind["b"], f"{kind['kind']}")
        picture.set_xlim(-1.6, 1.6)  # room for the names
        picture.set_ylim(-1.6, 1.6)
        for i, marker in enumerate((r"$a$", r"$a'$", r"$b$", r"$b'$")):
            at = 1.28 * np.array(kind["W"])[:, i]
            picture.text(at[0], at[1], marker, fontsize=FONT, ha="center", va="center")
        ax = add_axes(figure, left, 0.4, left + 1.3, 1.4)
        ax.hist(
            kind["cosines"], bins=np.linspace(-1, 1, 21).tolist(), color=phase_color("4"),
            gid=f"cosines-{kind['kind']}",
        )  # fmt: skip
        ax.set_xlim(-1.05, 1.05)
        ax.set_xticks([-1, 0, 1])
        label_axes(ax, "cosine in a pair", None if place else "pairs")
    kind = data["kinds"][0]
    write_title(
        figure, f"Two pairs in 2 dimensions, S = {kind['sparsity']:g}, {kind['members']} members"
    )
    return figure


DRAWINGS: Mapping[str, Callable[[Data], Figure]] = {
    function.__name__: function
    for function in (staircase, losses, llc_against_time, shares, estimates, first_transition,
                     survival, polygons, grams, dimensions, phase_change, pairs)
}  # fmt: skip
"""By the name that a data file gives as its `drawing`."""
