"""Figures of learning coefficients: against theory, along training, over a grid of settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from kgon.figures.style import (
    GREY,
    INK,
    PALE,
    new_panels,
    pale_handle,
    phase_color,
    phase_handle,
    phase_order,
    phase_style,
    step_axis,
    styled,
    theory_handle,
)
from kgon.theory.critical import CriticalPoint

Rows = Sequence[dict[str, Any]]


@styled
def against_theory(rows: Rows) -> Figure:
    """Estimates with their errors against n, theory as lines, published values as crosses.

    Args:
        rows: mappings with label, n_samples, llc, stderr, theory, published, published_spread and
            verdict. Estimates whose verdict is not ok are pale.
    """
    labels = phase_order(row["label"] for row in rows)
    sizes = sorted({row["n_samples"] for row in rows})
    legend = _handles(rows, labels)
    legend.append(theory_handle())
    if any(row["published"] is not None for row in rows):
        legend.append(Line2D([], [], ls="", marker="x", color=GREY, label="published"))
    figure, (ax,) = new_panels("LLC ± error at critical points", [1.75], legend)
    for row in rows:
        # The estimates of one n are side by side.
        place = labels.index(row["label"]) - (len(labels) - 1) / 2
        x = sizes.index(row["n_samples"]) + 0.5 * place / len(labels)
        _estimate(ax, x, row, row["label"])
        if row["published"] is not None:
            ax.errorbar(x + 0.12 / len(labels), row["published"], row["published_spread"],
                        marker="x", color=GREY, lw=0.7, zorder=1)  # fmt: skip
    theory = {row["label"]: row["theory"] for row in rows if row["theory"] is not None}
    _theory_lines(ax, {label: theory[label] for label in labels if label in theory})
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
    ax.set(xlabel="samples n", ylabel="LLC")
    return figure


def _handles(rows: Rows, labels: Sequence[str]) -> list[Line2D]:
    pale = any(row["verdict"] != "ok" for row in rows)
    return [phase_handle(p, ls="") for p in labels] + [pale_handle()] * pale


def _estimate(ax: Axes, x: float, row: Mapping[str, Any], label: str) -> None:
    alpha = 1.0 if row["verdict"] == "ok" else PALE
    ax.errorbar(x, row["llc"], row["stderr"], alpha=alpha, **phase_style(label))


def _theory_lines(ax: Axes, theory: Mapping[str, float]) -> None:
    """A dashed line for each value; the dashes of phases with the same value alternate."""
    dash = 4.0
    for label, value in theory.items():
        same = [other for other, its in theory.items() if its == value]
        style = (dash * same.index(label), (dash, dash * max(1, len(same) - 1)))
        ax.axhline(value, color=phase_color(label), lw=0.8, ls=style, gid=f"theory-{label}")


@styled
def along_training(rows: Rows, points: Sequence[CriticalPoint]) -> Figure:
    """Estimates of members against optimizer steps, coloured by phase, with theory as lines.

    Args:
        rows: mappings with step, member, phase, llc, stderr and verdict. Estimates whose verdict is
            not ok are pale.
        points: critical points.
    """
    labels = phase_order(row["phase"] for row in rows)
    known = {p.label: p.llc for p in points if p.llc is not None and p.label in labels}
    legend = _handles(rows, labels)
    if known:
        legend.append(theory_handle())
    figure, (ax,) = new_panels("LLC of members", [1.75], legend)
    for member in sorted({row["member"] for row in rows}):
        own = sorted((r for r in rows if r["member"] == member), key=lambda row: row["step"])
        ax.plot([r["step"] for r in own], [r["llc"] for r in own], color=GREY, lw=0.4, alpha=0.6)
    for row in rows:
        _estimate(ax, row["step"], row, row["phase"])
    _theory_lines(ax, known)
    step = np.array([row["step"] for row in rows])
    step_axis(ax, step)
    if step.max(initial=0) > 0:
        ax.set_xlim(right=1.2 * step.max())  # room for the last marker
    ax.set(xlabel="optimizer steps", ylabel=r"LLC, $n\beta\,(E[L] - L(w^*))$")
    return figure


_MARKERS = ("o", "s", "D", "^", "v", "P")


@styled
def calibration(
    label: str,
    localization: ArrayLike,
    nbeta: ArrayLike,
    mean: ArrayLike,
    stderr: ArrayLike,
    ok: ArrayLike,
    chosen: tuple[int, int] | None,
    theory: float | None,
) -> Figure:
    """Estimates at a critical point against the localization: a line for each nbeta.

    Args:
        localization, nbeta: the grid (A,), (B,).
        mean, stderr, ok: (A, B). Estimates that are not ok have hollow markers.
        chosen: the place in the grid of the chosen setting, which has a ring.
        theory: the learning coefficient, a dashed line.
    """
    x, temperatures = (np.asarray(v, dtype=float) for v in (localization, nbeta))
    y, error, good = np.asarray(mean), np.asarray(stderr), np.asarray(ok, dtype=bool)
    shades = [phase_color(label), *(phase_color(k) for k in ("4", "6", "7", "8", "3"))]
    styles: list[dict[str, Any]] = [
        {"color": shades[j % len(shades)], "marker": _MARKERS[j % len(_MARKERS)]}
        for j in range(len(temperatures))
    ]
    legend = [
        Line2D([], [], lw=0.7, label=rf"$n\beta$ = {temperature:.3g}", **style)
        for temperature, style in zip(temperatures, styles, strict=True)
    ]
    legend.append(Line2D([], [], ls="", marker="o", color=INK, mfc="white", label="not ok"))
    if chosen is not None:
        legend.append(Line2D([], [], ls="", marker="o", ms=8, mec=INK, mfc="none", label="chosen"))
    if theory is not None:
        legend.append(theory_handle())
    figure, (ax,) = new_panels(f"LLC of {label} by settings of the sampler", [1.75], legend)
    for j, style in enumerate(styles):
        ax.errorbar(x, y[:, j], error[:, j], color=style["color"], lw=0.7, zorder=2)
        for at, name, fill in (
            (good[:, j], "ok", style["color"]),
            (~good[:, j], "not-ok", "white"),
        ):
            ax.plot(x[at], y[at, j], ls="", **style, mfc=fill, zorder=3, gid=f"{name}-{j}")
    if chosen is not None:
        ax.plot(x[chosen[0]], y[chosen], "o", ms=11, mfc="none", mec=INK, zorder=4, gid="chosen")
    if theory is not None:
        ax.axhline(theory, color=INK, lw=0.8, ls="--", zorder=1)
    # The frame has theory and the estimates, but not those far below, of chains that escaped.
    inside = [*y[good], *([] if theory is None else [theory])] or y[np.isfinite(y)].tolist() or [0]
    top = max(inside)
    low = min(inside + [v for v in y[np.isfinite(y)] if 0 <= v <= top])
    margin = 0.1 * max(top - low, 2.0)
    ax.set_xscale("log")
    ax.set_ylim(low - margin, top + 2 * margin)
    ax.set(xlabel="localization", ylabel="LLC")
    return figure
