"""The page's figures: functions of the data files that are written beside them."""

import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from kgon.figures import atlas as atlas_figures
from kgon.figures import llc as llc_figures
from kgon.figures import posterior as posterior_figures
from kgon.figures import training as training_figures
from kgon.figures.style import (
    GREY,
    INK,
    POPULATION_LOSS,
    linear_step_axis,
    new_panels,
    phase_color,
    phase_handle,
    phase_order,
    phase_style,
    styled,
)
from kgon.landscape.rates import Escape
from kgon.paper.elhage_drawings import (
    Data,
    computation,
    dimensions,
    feature_sparsity,
    grams,
    grid,
    learning_dynamics,
    pairs,
    phase_change,
    polygons,
)
from kgon.paper.rates import FROM
from kgon.posterior.phase_diagram import PhaseDiagram
from kgon.theory.critical import critical_points


def staircase(data: Data) -> Figure:
    """Figure 1."""
    names = ("step", "loss", "llc_step", "llc", "llc_stderr", "llc_ok", "plateaus", "stages")
    curves = {name: data[name] for name in names}
    points = critical_points(data["n_features"])
    return training_figures.staircase(training_figures.Curves(**curves, points=points))


def losses(data: Data) -> Figure:
    """Figure 3, the losses."""
    return training_figures.loss_curves(
        data["step"],
        data["loss"],
        critical_points(data["n_features"]),
        final_phase=data["final_phase"],
    )


_FEWEST = 5
"""A phase with fewer members than this at a step is not drawn at this step."""


@styled
def llc_against_time(data: Data) -> Figure:
    """Figure 3, the learning coefficients: median and quartiles over the members in each phase."""
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
    grid(ax, [f"{s:g}" for s in sizes], labels)
    ax.set(xlabel="sparsity S", ylabel="start")
    return figure


@styled
def approach(data: Data) -> Figure:
    """Runs on their way from one phase to another: loss against the distance from the pass."""
    edges = data["edges"]
    labels = dict.fromkeys(label for edge in edges for label in (edge["from"], edge["to"]))
    legend = [phase_handle(label, ls="") for label in phase_order(labels)]
    legend.append(Line2D([], [], ls="", marker="x", color=INK, label="pass"))
    title = "Runs from one phase to another"
    figure, axes = new_panels(title, [2.0], legend, columns=len(edges))
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
        ax.set_title(f"{len(edge['paths'])} runs by {edge['way']}", loc="left")
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


DRAWINGS: Mapping[str, Callable[[Data], Figure]] = {
    function.__name__: function
    for function in (staircase, losses, llc_against_time, shares, estimates, first_transition,
                     survival, polygons, grams, dimensions, learning_dynamics, feature_sparsity,
                     phase_change, pairs, approach,
                     escapes, sgd_escapes, computation)
}  # fmt: skip
"""By the name that a data file gives as its `drawing`."""
