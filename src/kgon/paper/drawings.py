"""The page's figures: each a function of data as they are written beside it."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from kgon.figures import atlas as atlas_figures
from kgon.figures import llc as llc_figures
from kgon.figures import posterior as posterior_figures
from kgon.figures import training as training_figures
from kgon.figures.style import (
    GREY,
    INK,
    POPULATION_LOSS,
    Array,
    linear_step_axis,
    loss_axis,
    name_panel,
    new_panels,
    phase_color,
    phase_handle,
    phase_order,
    phase_style,
    step_axis,
    styled,
)
from kgon.figures.weights import GRAM_KEY, bias_key, gram, k_gon
from kgon.landscape.rates import Escape
from kgon.paper.computation import SERVES
from kgon.paper.rates import FROM
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
        llc_ok=data["llc_ok"],
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
"""A phase with fewer members than this at a step is left out there."""


@styled
def llc_against_time(data: Data) -> Figure:
    """Figure 3, the learning coefficients: median and quartiles of the members in each phase."""
    rows = [row for row in data["rows"] if row["members"] >= _FEWEST and row["phase"] != "other"]
    top = max(row["high"] for row in rows)
    floor = max(min(row["low"] for row in rows), -0.5 * max(top, 1.0))
    medians = {p: [r["median"] for r in rows if r["phase"] == p]
               for p in phase_order(row["phase"] for row in rows)}  # fmt: skip
    order = [phase for phase, values in medians.items() if max(values) >= floor]
    below = [phase for phase in medians if phase not in order]
    title = f"Learning coefficients by phase, c = {data['n_features']}"
    figure, (ax,) = new_panels(title, [2.2], [phase_handle(p, lw=0.8) for p in order])
    linear_step_axis(ax, 1.03 * max(row["step"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    width = 0.6 * (steps[1] - steps[0] if len(steps) > 1 else steps[0])
    for i, label in enumerate(order):
        own = [row for row in rows if row["phase"] == label]
        x = np.array([row["step"] for row in own]) + width * ((i + 0.5) / len(order) - 0.5)
        y, low, high = (np.array([row[k] for row in own]) for k in ("median", "low", "high"))
        ax.errorbar(x, y, yerr=np.stack([y - low, high - y]), elinewidth=0.6, ms=3.5,
                    lw=0.8, **phase_style(label)).lines[0].set_gid(f"llc-{label}")  # fmt: skip
    if below:
        ax.set_title(f"below the frame: {', '.join(below)}", loc="right")
    ax.set_ylim(floor - 0.05 * (top - floor), top + 0.05 * (top - floor))
    ax.set(xlabel="SGD steps", ylabel=r"LLC $\hat\lambda$, median and quartiles")
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


@styled
def first_transition(data: Data) -> Figure:
    """When members leave their first plateau, against batch size and learning rate."""
    members = {r["members"] for r in data["rows"]}
    count = f"{min(members)} to {max(members)}" if len(members) > 1 else f"{max(members)}"
    title = f"First transition: median and quartiles of {count} runs"
    figure, axes = new_panels(title, [1.25, 0.8], columns=2)
    panels = (
        ("batch_size", "batch size (lr 0.005)", [r for r in data["rows"] if r["lr"] == 0.005]),
        ("lr", "learning rate (batch 20)", [r for r in data["rows"] if r["batch_size"] == 20]),
    )
    style: dict[str, Any] = {"color": INK, "marker": "o", "ms": 3.5, "lw": 0.8, "capsize": 2}
    for (key, name, own), upper, lower in zip(panels, axes[:2], axes[2:], strict=True):
        rows = sorted(own, key=itemgetter(key))
        x = np.arange(len(rows))
        y, low, high = (
            np.array([math.nan if r[k] is None else r[k] for r in rows], dtype=float)
            for k in ("median", "low", "high")
        )
        upper.errorbar(x, y, yerr=np.stack([y - low, high - y]), **style).lines[0].set_gid(
            f"median-{key}"
        )
        share, stderr = ([r[k] for r in rows] for k in ("share", "share_stderr"))
        lower.errorbar(x, share, yerr=stderr, **style).lines[0].set_gid(f"share-{key}")
        upper.set_ylim(0, max(r["end"] for r in data["rows"]))
        lower.set_ylim(0, 1)
        lower.set_xlim(-0.4, len(rows) - 0.6)
        lower.set_xticks(x, [f"{r[key]:g}" for r in rows])
        lower.set_xlabel(name)
    axes[0].set_ylabel("step × learning rate")
    axes[2].set_ylabel("share that leaves")
    for ax in axes[1::2]:
        ax.tick_params(labelleft=False)
    return figure


@styled
def survival(data: Data) -> Figure:
    """The share of members that stay in the phase where they began, by sparsity."""
    rows = data["rows"]
    labels = phase_order(row["label"] for row in rows)
    sizes = sorted({row["sparsity"] for row in rows})
    title = "Members still in the phase where they began"
    figure, (ax,) = new_panels(title, [0.4 * len(labels)])
    for row in rows:
        i, j = labels.index(row["label"]), sizes.index(row["sparsity"])
        share = row["survived"] / row["members"]
        ax.add_patch(Rectangle((j, i), 1, 1, fc=phase_color(row["label"]), alpha=share, lw=0,
                               gid=f"survived-{row['label']}-{row['sparsity']:g}"))  # fmt: skip
        ends = max(row["ends"], key=lambda k: row["ends"][k])
        text = f"{row['survived']}/{row['members']}" + f"\nto {ends}" * (ends != row["label"])
        dark = share > 0.6 and row["label"] in ("4", "5")
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", color="white" if dark else INK)
    _grid(ax, [f"{s:g}" for s in sizes], labels)
    ax.set(xlabel="sparsity S", ylabel="start")
    return figure


def _grid(ax: Axes, columns: list[str], rows: list[str]) -> None:
    """Axes whose unit squares have names."""
    ax.set(xlim=(0, len(columns)), ylim=(0, len(rows)))
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)


def _weights_of(picture: Data) -> tuple[Array, Array]:
    return np.array(picture["W"]), np.array(picture["b"])


@styled
def polygons(data: Data) -> Figure:
    """The columns of W in the plane, and W^T W below, by sparsity."""
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
    """Every start's loss against the number of features that it represents."""
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
    """W^T W and b by sparsity, with the dimensionality of each feature below."""
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
    """The loss and the dimensionality of each feature against steps."""
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
    """Length and dimensionality of features against how often they are active."""
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
    _grid(ax, [f"{s:g}" for s in sizes], [f"{w:g}" for w in weights])
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
def approach(data: Data) -> Figure:
    """Runs on their way from one phase to another: loss against the distance from the pass."""
    edges = data["edges"]
    labels = dict.fromkeys(label for edge in edges for label in (edge["from"], edge["to"]))
    legend = [phase_handle(label, ls="") for label in phase_order(labels)]
    legend.append(Line2D([], [], ls="", marker="x", color=INK, label="pass"))
    figure, axes = new_panels("Runs from one phase to another", [2.0], legend,
                              columns=len(edges))  # fmt: skip
    for ax, edge in zip(axes, edges, strict=True):
        for path in edge["paths"]:
            ax.plot(path["distance"], path["loss"], lw=0.5, alpha=0.35, zorder=1,
                    color=phase_color(edge["to"]), gid=f"path-{path['member']}")  # fmt: skip
        ax.plot(0, edge["loss"], marker="x", ms=5, mew=1.2, color=INK, zorder=3, clip_on=False)
        for label, (away, loss) in edge["phases"].items():
            ax.plot(away, loss, ls="", ms=5, zorder=3, **phase_style(label))
        losses = [edge["loss"], *(loss for _, loss in edge["phases"].values())]
        margin = 0.15 * (max(losses) - min(losses))
        ax.set_ylim(min(losses) - margin, max(losses) + margin)
        ax.set_xlim(0, 1.15 * max(away for away, _ in edge["phases"].values()))
        name_panel(ax, f"{len(edge['paths'])} runs by {edge['way']}")
        ax.set_xlabel("distance from the pass")
    axes[0].set_ylabel(POPULATION_LOSS)
    return figure


def escapes(data: Data) -> Figure:
    """Rates of leaving a phase by Langevin dynamics against 1 / T."""
    return atlas_figures.escapes([Escape(**rate) for rate in data["rates"]])


@styled
def sgd_escapes(data: Data) -> Figure:
    """Rates of leaving a phase by SGD against batch size / learning rate."""
    rows = data["rows"]
    markers = dict(zip(sorted({row["lr"] for row in rows}), "osD^v", strict=False))
    legend = [Line2D([], [], ls="", marker=marker, color=INK, mfc="none", label=f"lr {lr:g}")
              for lr, marker in markers.items()]  # fmt: skip
    figure, (ax,) = new_panels("Rates of leaving a phase by SGD", [2.0], legend)
    for row in rows:
        if not row["left"]:
            continue
        error = row["rate"] / math.sqrt(row["left"])
        name = f"rate-{row['lr']:g}-{row['batch_size']}"
        ax.errorbar(row["ratio"], row["rate"], error, marker=markers[row["lr"]], ms=4, lw=0.8,
                    mfc="none", color=INK).lines[0].set_gid(name)  # fmt: skip
    if data["fit"]:
        slope, _, start = data["fit"]
        x = np.array([FROM, max(row["ratio"] for row in rows if row["left"])])
        ax.plot(x, np.exp(start - slope * x), color=GREY, lw=0.8, ls="--", zorder=1, gid="fit")
    ax.set_yscale("log")
    ax.set_xlim(0, None)
    ax.set(xlabel="batch size / learning rate", ylabel="rate per unit of step × learning rate")
    return figure


@styled
def computation(data: Data) -> Figure:
    """Slopes that each neuron contributes to absolute values, by sparsity."""
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
        name_panel(ax, f"S = {picture['sparsity']:g}: {ratio:.2f}")
        ax.set_ylim(0, top)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for place, ax in enumerate(axes):
        ax.tick_params(labelleft=place % columns == 0)
    figure.supylabel("slopes, stacked")
    figure.supxlabel("neurons (above: loss / least loss without superposition)")
    return figure


DRAWINGS: Mapping[str, Callable[[Data], Figure]] = {
    function.__name__: function
    for function in (staircase, losses, llc_against_time, shares, estimates, first_transition,
                     survival, polygons, grams, dimensions, learning_dynamics, feature_sparsity,
                     phase_change, pairs, approach,
                     escapes, sgd_escapes, computation)
}  # fmt: skip
"""By the name that a data file gives as its `drawing`."""
