"""The figures of a run: arrays in, a matplotlib `Figure` out, in the looks of `figure_style`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from kgon.figures.style import (
    CHARACTER,
    FONT,
    GREY,
    INK,
    LINE,
    WIDTH,
    Array,
    Level,
    add_axes,
    label_axes,
    legend_height,
    linear_step_axis,
    loss_axis,
    loss_limits,
    margin_labels,
    margin_width,
    mark_below_frame,
    parse_label,
    phase_color,
    phase_legend,
    phase_linestyle,
    phase_marker,
    phase_order,
    spread_apart,
    step_axis,
    write_title,
)
from kgon.figures.weights import k_gon

# Curves of more points than this are drawn as an image inside the SVG: the axes and all text stay
# vectors, and the file stays below a megabyte.
_VECTOR_POINTS = 50_000


class Stage(NamedTuple):
    """A member's parameters at one step, to be pictured: W (n_hidden, n_features),
    b (n_features)."""

    label: str
    step: float
    W: Array
    b: Array


def loss_curves(
    step: ArrayLike,
    loss: ArrayLike,
    points: Sequence[Level],
    *,
    final_phase: Sequence[str] | None = None,
) -> Figure:
    """The population loss of all members against SGD steps, with the critical levels (Fig. 3).

    Args:
        step: (S,), increasing.
        loss: (S, M), NaN where a member has stopped.
        points: critical points; those whose level lies in the frame are drawn and named.
        final_phase: M labels that colour the curves.
    """
    x = np.asarray(step, dtype=float)
    y = np.asarray(loss, dtype=float)
    if y.ndim != 2 or x.shape != y.shape[:1]:
        raise ValueError(f"loss must be (S, M) for step (S,), got {y.shape} and {x.shape}")
    n_members = y.shape[1]
    if final_phase is not None and len(final_phase) != n_members:
        raise ValueError(f"final_phase must have {n_members} labels, got {len(final_phase)}")
    phases = ["other"] * n_members if final_phase is None else [str(p) for p in final_phase]
    counts = Counter(phases)
    legend = [] if final_phase is None else phase_order(phases)

    low, high = loss_limits(y, [p.loss for p in points])
    n_above = int((np.where(np.isfinite(y), y, -np.inf) > high).any(axis=0).sum())
    above = 0.24 + legend_height(len(legend)) + LINE * (n_above > 0)
    body = 2.35
    entries = [(p.label, p.loss) for p in points if low <= p.loss <= high]
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = add_axes(figure, 0.5, 0.36, WIDTH - margin_width(entries, body), 0.36 + body)
    step_axis(ax, x)
    loss_axis(ax, low, high)
    label_axes(ax, "SGD steps", "population loss $L(w)$")

    alpha = float(np.clip(12 / max(n_members, 1), 0.25, 0.9))
    # Rare phases last, so that they are not buried.
    for m in sorted(range(n_members), key=lambda m: -counts[phases[m]]):
        (line,) = ax.plot(
            x,
            y[:, m],
            color=phase_color(phases[m]),
            ls=phase_linestyle(phases[m]) if final_phase is not None else "-",
            lw=0.7,
            alpha=alpha,
            zorder=2,
            rasterized=y.size > _VECTOR_POINTS,
        )
        line.set_gid(f"member-{m}")
    margin_labels(ax, entries, lines=True)

    if n_above:
        ax.text(
            1.0,
            1.015,
            f"{n_above} begin above the frame",
            transform=ax.transAxes,
            fontsize=FONT,
            color=INK,
            ha="right",
            va="bottom",
        )
    write_title(
        figure, f"Loss of {n_members} member{'s' * (n_members != 1)}, and the critical levels"
    )
    handles = [
        Line2D(
            [], [], color=phase_color(p), ls=phase_linestyle(p), lw=1.6, label=f"{p}: {counts[p]}"
        )
        for p in legend
    ]
    if handles:
        phase_legend(figure, handles, 0.2)
    return figure


def staircase(
    step: ArrayLike,
    loss: ArrayLike,
    *,
    llc_step: ArrayLike | None,
    llc: ArrayLike | None,
    llc_stderr: ArrayLike | None,
    plateaus: Sequence[Mapping[str, Any]],
    stages: Sequence[tuple[str, float, ArrayLike, ArrayLike]],
    points: Sequence[Level],
) -> Figure:
    """One member's opposing staircases (Fig. 1): the loss falls and the LLC rises in steps.

    Args:
        step, loss: (S,), the member's population loss.
        llc_step, llc, llc_stderr: (T,), its estimates, or None when there are none.
        plateaus: mappings with `start`, `end` and `nearest`; shaded.
        stages: (label, step, W (n_hidden, n_features), b (n_features)) in time order; pictured.
        points: critical points, for the stages' losses and theory LLCs.
    """
    x = np.asarray(step, dtype=float)
    y = np.asarray(loss, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"step and loss must both be (S,), got {x.shape} and {y.shape}")
    pictured = [Stage(s[0], s[1], np.asarray(s[2]), np.asarray(s[3])) for s in stages]
    by_label = {p.label: p for p in points}
    met = phase_order(
        [s.label for s in pictured] + [str(p["nearest"]) for p in plateaus if p["nearest"]]
    )
    levels = [(label, by_label[label].loss) for label in met if label in by_label]
    low, high = loss_limits(y, [value for _, value in levels])
    levels = [(label, value) for label, value in levels if low <= value <= high]
    theory = [
        (f"{label}", float(point.llc))
        for label in met
        if (point := by_label.get(label)) is not None and point.llc is not None
    ]
    with_llc = llc is not None and llc_step is not None

    panel = 1.3
    right = WIDTH - max(margin_width(levels, panel), margin_width(theory, panel))
    size = min(0.72, (WIDTH - 0.3) / len(pictured) - 0.04) if pictured else 0.0
    row = size + 0.42 if pictured else 0.1
    bottom = 0.36
    loss_bottom = bottom + (panel + 0.14 if with_llc else 0.0)
    figure = Figure(figsize=(WIDTH, loss_bottom + panel + row + 0.24))
    ax = add_axes(figure, 0.5, loss_bottom, right, loss_bottom + panel)
    span = x if not with_llc else np.concatenate([x, np.asarray(llc_step, dtype=float)])
    linear_step_axis(ax, float(span.max()))
    loss_axis(ax, low, high)
    ax.plot(x, y, color=INK, lw=1.0, zorder=3).pop().set_gid("loss")
    margin_labels(ax, levels, lines=True)
    panels = [ax]
    if with_llc:
        below = add_axes(figure, 0.5, bottom, right, bottom + panel)
        linear_step_axis(below, float(span.max()))
        panels.append(below)
        hidden = _draw_llc(
            below,
            np.asarray(llc_step, dtype=float),
            np.asarray(llc, dtype=float),
            None if llc_stderr is None else np.asarray(llc_stderr, dtype=float),
            theory,
        )
        _draw_theory(below, pictured, plateaus, by_label, float(span.max()), hidden)
        margin_labels(below, theory, lines=False)
        label_axes(below, None, r"LLC $\hat\lambda$ ($\pm$ s.e.)")
        ax.tick_params(labelbottom=False)
    for panel_axes in panels:
        for plateau in plateaus:
            panel_axes.axvspan(
                plateau["start"],
                plateau["end"],
                color=phase_color(plateau["nearest"]),
                alpha=0.13,
                lw=0,
                zorder=0,
            )
    for panel_axes in panels:
        # Room for the markers at the last step.
        panel_axes.set_xlim(right=float(span.max()) * 1.02)
    label_axes(ax, None, "population loss $L(w)$")
    label_axes(panels[-1], "SGD steps", None)
    _place_pictures(figure, ax, x, y, pictured, size, loss_bottom + panel + 0.26)
    path = " \N{RIGHTWARDS ARROW} ".join(s.label for s in pictured)
    write_title(figure, f"Stages of one member: {path}" if 0 < len(path) <= 30 else "One member")
    return figure


def _draw_llc(
    ax: Axes, step: Array, llc: Array, stderr: Array | None, theory: Sequence[tuple[str, float]]
) -> list[Line2D]:
    """Estimates with error bars; the legend's entry for those below the frame, if there are any."""
    finite = llc[np.isfinite(llc)]
    values = [*finite, *(value for _, value in theory)] or [0.0, 1.0]
    top = max(values)
    # Far from critical points estimates can be very negative: not all of that is worth the height.
    floor = max(min(min(values), 0.0), -0.25 * max(top, 1.0))
    ax.set_ylim(floor - 0.05 * (top - floor or 1.0), top + 0.1 * (top - floor or 1.0))
    ax.errorbar(
        step,
        llc,
        yerr=stderr,
        color=INK,
        lw=0.8,
        elinewidth=0.6,
        marker="o",
        ms=2.2,
        zorder=3,
        label="estimate",
    ).lines[0].set_gid("llc")
    return mark_below_frame(ax, step[llc < floor])


def _draw_theory(
    ax: Axes,
    stages: Sequence[Stage],
    plateaus: Sequence[Mapping[str, Any]],
    by_label: Mapping[str, Level],
    end: float,
    hidden: list[Line2D],
) -> None:
    """The theory LLC over each stage: over its plateau, or else up to the next stage; the legend,
    with the entry for what is hidden."""
    drawn = False
    for i, stage in enumerate(stages):
        point = by_label.get(stage.label)
        if point is None or point.llc is None:
            continue
        following = stages[i + 1].step if i + 1 < len(stages) else end
        left, right = stage.step, following
        for plateau in plateaus:
            if plateau["start"] <= stage.step <= plateau["end"]:
                left, right = plateau["start"], plateau["end"]
        ax.plot(
            [left, right],
            [point.llc] * 2,
            color=phase_color(stage.label),
            ls="--",
            lw=1.2,
            zorder=2,
        ).pop().set_gid(f"theory-{stage.label}")
        drawn = True
    dots = Line2D([], [], color=INK, marker="o", ms=2.2, lw=0.8, label="estimate")
    dashes = Line2D([], [], color=GREY, ls="--", lw=1.2, label="theory")
    ax.legend(
        handles=[dots, *([dashes] if drawn else []), *hidden],
        loc="lower right",
        fontsize=FONT,
        frameon=False,
        handlelength=1.8,
        borderpad=0.1,
        labelspacing=0.2,
    )


def _place_pictures(
    figure: Figure,
    ax: Axes,
    x: Array,
    y: Array,
    stages: Sequence[Stage],
    size: float,
    bottom: float,
) -> None:
    """A row of k-gon pictures above `ax`, each tied to its place on the curve."""
    box = ax.get_position()
    left, right = box.x0 * WIDTH, box.x1 * WIDTH
    low, high = ax.get_ylim()
    for i, stage in enumerate(stages):
        centre = left + (right - left) * (i + 0.5) / len(stages)
        picture = add_axes(figure, centre - size / 2, bottom, centre + size / 2, bottom + size)
        k_gon(picture, stage.W, stage.b, stage.label)
        nearest = int(np.argmin(np.abs(x - stage.step)))
        figure.add_artist(
            ConnectionPatch(
                xyA=(0.5, 0.0),
                coordsA=picture.transAxes,
                xyB=(stage.step, float(np.clip(y[nearest], low, high))),
                coordsB=ax.transData,
                color=phase_color(stage.label),
                lw=0.8,
                zorder=5,
            )
        )
        ax.plot(
            [stage.step],
            [y[nearest]],
            marker=phase_marker(stage.label),
            ms=4,
            color=phase_color(stage.label),
            zorder=4,
            clip_on=False,
        ).pop().set_gid(f"stage-{i}")


_HATCHES = {"-": None, "--": "////", "-.": "xxxx", ":": "...."}


def phase_counts(step: ArrayLike, labels: ArrayLike) -> Figure:
    """How many members are in each phase over time, stacked: step (T,), labels (T, M)."""
    x = np.asarray(step, dtype=float)
    phase = np.asarray(labels).astype(str)
    if phase.ndim != 2 or x.shape != phase.shape[:1]:
        raise ValueError(f"labels must be (T, M) for step (T,), got {phase.shape} and {x.shape}")
    order = phase_order(phase.ravel())
    counts = np.stack([(phase == label).sum(axis=1) for label in order])
    n_members = phase.shape[1]
    body = 1.9
    above = 0.24 + legend_height(len(order))
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = add_axes(figure, 0.5, 0.36, WIDTH - 0.12, 0.36 + body)
    step_axis(ax, x)
    ax.set_ylim(0, n_members)
    label_axes(ax, "SGD steps", "members")
    handles = []
    floor = np.zeros(len(x))
    for label, count in zip(order, counts, strict=True):
        style: dict[str, Any] = {
            "facecolor": phase_color(label),
            "edgecolor": "white",
            # Colour is not the only difference: hatched where biases switch columns off.
            "hatch": _HATCHES[phase_linestyle(label)] if parse_label(label) else None,
            "linewidth": 0.3,
        }
        ax.fill_between(x, floor, floor + count, **style).set_gid(f"phase-{label}")
        handles.append(Patch(label=label, **style))
        floor = floor + count
    write_title(figure, f"Phases of {n_members} member{'s' * (n_members != 1)}")
    phase_legend(figure, handles, 0.2)
    return figure


def llc_by_phase(
    loss: ArrayLike, llc: ArrayLike, labels: Sequence[str], points: Sequence[Level]
) -> Figure:
    """LLC estimates against the loss, snapshot by snapshot, coloured by phase: all (N,).

    Crosses are the theory values of the phases that occur, where one is known.
    """
    x, y = np.asarray(loss, dtype=float), np.asarray(llc, dtype=float)
    phase = np.asarray([str(label) for label in labels])
    if x.ndim != 1 or not x.shape == y.shape == phase.shape:
        raise ValueError(
            f"loss, llc and labels must all be (N,), got {x.shape}, {y.shape} and {phase.shape}"
        )
    order = phase_order(phase)
    crosses = [p for p in points if p.llc is not None and p.label in order]
    known = [float(p.llc) for p in crosses if p.llc is not None]
    values = [*y[np.isfinite(y)], *known, 1.0]
    top = max(values)
    floor = max(min(values), -0.25 * top)
    hidden = x[y < floor]
    body, above = 2.0, 0.24 + legend_height(len(order) + bool(hidden.size))
    figure = Figure(figsize=(WIDTH, body + above + 0.4))
    ax = add_axes(figure, 0.5, 0.36, WIDTH - 0.16, 0.36 + body)
    label_axes(ax, "population loss $L(w)$", r"LLC $\hat\lambda$")
    ax.set_ylim(floor - 0.05 * (top - floor or 1.0), top * 1.15)
    handles = []
    for label in order:
        here = phase == label
        colour = phase_color(label)
        style: dict[str, Any] = {
            "ls": "",
            "marker": phase_marker(label),
            "color": colour,
            "mew": 0.7,
        }
        ax.plot(x[here], y[here], ms=3.5, alpha=0.6, zorder=2, **style).pop().set_gid(
            f"phase-{label}"
        )
        handles.append(Line2D([], [], ms=4, label=label, **style))
    for point, value in zip(crosses, known, strict=True):
        colour = phase_color(point.label)
        ax.plot(point.loss, value, marker="x", ms=9, mew=3.0, color="white", zorder=3)
        cross = ax.plot(point.loss, value, marker="x", ms=8, mew=1.8, color=colour, zorder=4)
        cross.pop().set_gid(f"theory-{point.label}")
    positive = x[np.isfinite(x)]
    if positive.size and positive.min() > 0 and all(p.loss > 0 for p in crosses):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    handles += mark_below_frame(ax, hidden)
    # Names above the crosses, moved sideways where they would touch.
    named = sorted(zip(crosses, known, strict=True), key=lambda pair: pair[0].loss)
    to_axes = ax.transAxes.inverted().transform
    at = [to_axes(ax.transData.transform((point.loss, value))) for point, value in named]
    width = WIDTH - 0.66
    gap = (max((len(p.label) for p in crosses), default=0) * CHARACTER + 0.05) / width
    places = spread_apart([float(xy[0]) for xy in at], gap, 0.0, 1.0)
    for (point, _), xy, place in zip(named, at, places, strict=True):
        ax.annotate(
            point.label,
            (place, xy[1]),
            xycoords="axes fraction",
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=FONT,
            color=INK,
            zorder=5,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        ).set_gid("theory-label")
    write_title(figure, f"LLC against loss, {len(x)} snapshots; crosses: theory")
    phase_legend(figure, handles, 0.2)
    return figure
