"""Figures of learning coefficients: against theory, along training, over a grid of settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from kgon.figures.style import (
    FONT,
    GREY,
    INK,
    WIDTH,
    Level,
    add_axes,
    label_axes,
    legend_height,
    phase_color,
    phase_legend,
    phase_marker,
    phase_order,
    step_axis,
    write_title,
)

Rows = Sequence[dict[str, Any]]


def against_theory(rows: Rows) -> Figure:
    """Estimates with their standard errors against n, theory as lines, published values as crosses.

    Args:
        rows: label, n_samples, llc, stderr, theory, published, published_spread, verdict. Estimates
            whose verdict is not ok are pale.
    """
    labels = phase_order(row["label"] for row in rows)
    sizes = sorted({row["n_samples"] for row in rows})
    legend = legend_height(len(labels))
    figure = Figure(figsize=(WIDTH, 2.3 + legend))
    ax = add_axes(figure, 0.5, 0.4, WIDTH - 0.1, 2.05)
    for place, label in enumerate(labels):
        # A point's estimates stand a little beside each other's.
        shift = (place - (len(labels) - 1) / 2) * 0.5 / len(labels)
        colour = phase_color(label)
        own = [row for row in rows if row["label"] == label]
        for row in own:
            x = sizes.index(row["n_samples"]) + shift
            ax.errorbar(
                x,
                row["llc"],
                row["stderr"],
                marker=phase_marker(label),
                color=colour,
                ms=5,
                lw=1,
                alpha=1.0 if row["verdict"] == "ok" else 0.35,
            )
            if row["published"] is not None:
                ax.errorbar(
                    x + 0.12 / len(labels),
                    row["published"],
                    row["published_spread"],
                    marker="x",
                    ms=4,
                    color=GREY,
                    lw=0.7,
                    zorder=1,
                )
    theory = {row["label"]: row["theory"] for row in rows if row["theory"] is not None}
    _theory_lines(ax, {label: theory[label] for label in labels if label in theory})
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.xaxis.set_major_locator(FixedLocator(range(len(sizes))))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda i, _: f"{sizes[round(i)]:,}" if 0 <= round(i) < len(sizes) else "")
    )
    label_axes(ax, "samples n", "LLC")
    write_title(figure, f"LLC ± s.e.; dashed: theory, x: published{_pale(rows)}")
    handles = [
        Line2D([], [], color=phase_color(p), marker=phase_marker(p), ls="--", ms=5, lw=0.8, label=p)
        for p in labels
    ]
    phase_legend(figure, handles, 0.2)
    return figure


def _pale(rows: Rows) -> str:
    return ", pale: not ok" if any(row["verdict"] != "ok" for row in rows) else ""


def _theory_lines(ax: Axes, theory: Mapping[str, float]) -> None:
    """A dashed line for each phase; phases of one value take turns along theirs."""
    dash = 4.0
    for label, value in theory.items():
        same = [other for other, its in theory.items() if its == value]
        style = (dash * same.index(label), (dash, dash * max(1, len(same) - 1)))
        ax.axhline(value, color=phase_color(label), lw=0.8, ls=style, gid=f"theory-{label}")


def along_training(rows: Rows, points: Sequence[Level]) -> Figure:
    """Estimates of members against SGD steps, coloured by phase, with the theory of the phases met.

    Args:
        rows: step, member, phase, llc, stderr, verdict; estimates whose verdict is not ok are pale.
        points: critical points.
    """
    labels = phase_order(row["phase"] for row in rows)
    legend = legend_height(len(labels))
    figure = Figure(figsize=(WIDTH, 2.3 + legend))
    ax = add_axes(figure, 0.5, 0.4, WIDTH - 0.1, 2.05)
    for member in sorted({row["member"] for row in rows}):
        own = sorted((r for r in rows if r["member"] == member), key=lambda row: row["step"])
        ax.plot([r["step"] for r in own], [r["llc"] for r in own], color=GREY, lw=0.4, alpha=0.6)
    for row in rows:
        ax.errorbar(
            row["step"],
            row["llc"],
            row["stderr"],
            marker=phase_marker(row["phase"]),
            color=phase_color(row["phase"]),
            ms=4,
            lw=0.8,
            alpha=1.0 if row["verdict"] == "ok" else 0.35,
        )
    met = [point for point in points if point.label in labels]
    _theory_lines(ax, {point.label: point.llc for point in met if point.llc is not None})
    step = np.array([row["step"] for row in rows])
    step_axis(ax, step)
    if step.max(initial=0) > 0:
        ax.set_xlim(right=1.2 * step.max())  # room for the last marker
    label_axes(ax, "SGD steps", "LLC")
    write_title(figure, f"LLC of members; dashed: theory{_pale(rows)}")
    handles = [
        Line2D([], [], color=phase_color(p), marker=phase_marker(p), ls="", ms=5, label=p)
        for p in labels
    ]
    phase_legend(figure, handles, 0.2)
    return figure


_PULLS = ("o", "s", "D", "^", "v", "P")


def calibration(
    label: str,
    lr: ArrayLike,
    localization: ArrayLike,
    nbeta: ArrayLike,
    mean: ArrayLike,
    stderr: ArrayLike,
    admissible: ArrayLike,
    chosen: tuple[int, int, int] | None,
    theory: float | None,
) -> Figure:
    """One point's estimates against lr, a line for each localization, a panel for each nbeta.

    Args:
        lr, localization, nbeta: the grid (A,), (B,), (C,).
        mean, stderr, admissible: (A, B, C). Admissible settings are full markers, others hollow.
        chosen: the chosen setting, ringed.
        theory: the learning coefficient, dashed.
    """
    x, pulls, temperatures = (np.asarray(v, dtype=float) for v in (lr, localization, nbeta))
    y, error, good = np.asarray(mean), np.asarray(stderr), np.asarray(admissible, dtype=bool)
    legend = legend_height(len(pulls))
    figure = Figure(figsize=(WIDTH, 0.3 + legend + 1.5 * len(temperatures)))
    height = figure.get_size_inches()[1]
    shades = [phase_color(label), *(phase_color(k) for k in ("4", "6", "7", "8", "3"))]
    colours = [shades[i % len(shades)] for i in range(len(pulls))]
    # One frame for all panels, by the admissible estimates and theory; escaped ones leave it.
    inside = [*y[good], *([] if theory is None else [theory])] or y[np.isfinite(y)].tolist() or [0]
    low, high = min(inside), max(inside)
    margin = 0.4 * max(high - low, 2.0)
    for k, temperature in enumerate(temperatures):
        top = height - 0.25 - legend - 1.5 * k
        ax = add_axes(figure, 0.5, top - 1.15, WIDTH - 0.1, top - 0.1)
        for j, colour in enumerate(colours):
            marker = _PULLS[j % len(_PULLS)]
            ax.errorbar(x, y[:, j, k], error[:, j, k], color=colour, lw=0.7, zorder=2)
            for full in (True, False):
                at = good[:, j, k] == full
                ax.plot(
                    x[at],
                    y[at, j, k],
                    ls="",
                    marker=marker,
                    ms=5,
                    color=colour,
                    mfc=colour if full else "white",
                    zorder=3,
                    gid=f"{'admissible' if full else 'rejected'}-{j}-{k}",
                )
        if chosen is not None and chosen[2] == k:
            ring = ax.plot(x[chosen[0]], y[chosen], "o", ms=11, mfc="none", mec=INK, zorder=4)
            ring.pop().set_gid("chosen")
        if theory is not None:
            ax.axhline(theory, color=INK, lw=0.8, ls="--", zorder=1)
        ax.set_xscale("log")
        ax.set_ylim(low - margin, high + margin)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.text(0.02, 0.98, f"nbeta = {temperature:.3g}", transform=ax.transAxes,
                fontsize=FONT, va="top", color=INK)  # fmt: skip
        label_axes(ax, "lr" if k == len(temperatures) - 1 else None, "LLC")
    write_title(figure, f"LLC of {label}: full admissible, ring chosen, dashed theory")
    handles = [
        Line2D(
            [], [], color=c, marker=_PULLS[j % len(_PULLS)], ms=5, lw=0.7, label=f"pull {pull:g}"
        )
        for j, (c, pull) in enumerate(zip(colours, pulls, strict=True))
    ]
    phase_legend(figure, handles, 0.2)
    return figure
