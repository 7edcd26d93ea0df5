"""The figures of a training run: functions of arrays that return a matplotlib `Figure`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from kgon.figures import style
from kgon.figures.style import styled
from kgon.figures.weights import k_gon
from kgon.theory.critical import CriticalPoint

# Curves with more points than this are an image inside the SVG, which keeps the file below a
# megabyte. Axes and text remain vectors.
_VECTOR_POINTS = 50_000

MOST_LEVELS = 20
"""The largest number of critical levels in a figure of loss curves. The paper has 18 for c = 6."""


@styled
def loss_curves(
    step: ArrayLike,
    loss: ArrayLike,
    points: Sequence[CriticalPoint],
    *,
    final_phase: Sequence[str] | None = None,
    name: str = style.POPULATION_LOSS,
) -> Figure:
    """The loss of all members against optimizer steps, with the critical levels (Fig. 3).

    Args:
        step: (S,), increasing.
        loss: (S, M), NaN where a member has stopped.
        points: critical points. Levels in the frame are drawn and labelled, or if there are more
            than MOST_LEVELS, those at which a member ends.
        final_phase: M labels that colour the curves.
        name: the label of the loss axis (`style.loss_name`).
    """
    x, y = np.asarray(step, dtype=float), np.asarray(loss, dtype=float)
    n_members = y.shape[1]
    phases = ["other"] * n_members if final_phase is None else [str(p) for p in final_phase]
    counts = Counter(phases)
    legend = [
        Line2D([], [], color=style.phase_color(p), ls=style.phase_linestyle(p), lw=1.6,
               label=f"{p}: {counts[p]}")
        for p in ([] if final_phase is None else style.phase_order(phases))
    ]  # fmt: skip
    body = 2.35
    low, high = style.loss_limits(y, [p.loss for p in points])
    levels = [(p.label, p.loss) for p in points if low <= p.loss <= high]
    ends = [(label, level) for label, level in levels if label in counts]
    levels = ends if ends and len(levels) > MOST_LEVELS else levels
    title = f"Loss of {n_members} member{'s' * (n_members != 1)}"
    title += ", and the critical levels" * bool(levels)
    figure, (ax,) = style.new_panels(title, [body], legend)
    style.step_axis(ax, x)
    style.loss_axis(ax, low, high)
    ax.set(xlabel="optimizer steps", ylabel=name)
    # Rare phases last, so that they are on top.
    for m in sorted(range(n_members), key=lambda m: -counts[phases[m]]):
        line = style.phase_linestyle(phases[m]) if final_phase is not None else "-"
        ax.plot(x, y[:, m], color=style.phase_color(phases[m]), ls=line, lw=0.7, zorder=2,
                alpha=float(np.clip(12 / n_members, 0.25, 0.9)),
                rasterized=y.size > _VECTOR_POINTS, gid=f"member-{m}")  # fmt: skip
    style.draw_levels(ax, levels, body)
    if n_above := int((np.where(np.isfinite(y), y, -np.inf) > high).any(axis=0).sum()):
        ax.set_title(f"{n_above} begin above the frame", loc="right")
    return figure


@dataclass(frozen=True)
class Curves:
    """One member along training.

    Attributes:
        step, loss: (S,), its population loss.
        plateaus: mappings with `start`, `end` and `nearest`.
        stages: its stages in order: label, step, and W (n_hidden, n_features) and b (n_features)
            at this step.
        points: critical points, for losses and learning coefficients by theory.
        llc_step, llc, llc_stderr: (T,), its estimates of the LLC; None without estimates.
        llc_ok: (T,), whether the verdict on an estimate is ok; None if all are.
        name: the label of the loss axis (`style.loss_name`).
    """

    step: ArrayLike
    loss: ArrayLike
    plateaus: Sequence[Mapping[str, Any]]
    stages: Sequence[tuple[str, float, ArrayLike, ArrayLike]]
    points: Sequence[CriticalPoint]
    llc_step: ArrayLike | None = None
    llc: ArrayLike | None = None
    llc_stderr: ArrayLike | None = None
    llc_ok: ArrayLike | None = None
    name: str = style.POPULATION_LOSS


@styled
def staircase(curves: Curves) -> Figure:
    """One member's opposing staircases (Fig. 1): the loss falls and the LLC rises in steps.

    Above the curves is a picture of the weights at each stage.
    """
    path = " \N{RIGHTWARDS ARROW} ".join(label for label, *_ in curves.stages)
    title = f"Stages of one member: {path}" if 0 < len(path) <= 30 else "One member"
    n_panels = 1 if curves.llc is None else 2
    figure, pictures, axes = _staircase_axes(title, len(curves.stages), n_panels)
    draw_curves(axes, curves)
    upper = axes[0]
    x, y = np.asarray(curves.step, dtype=float), np.asarray(curves.loss, dtype=float)
    for i, ((label, step, W, b), picture) in enumerate(zip(curves.stages, pictures, strict=True)):
        k_gon(picture, W, b, label)
        # The stage is marked on the curve, and its picture connected to the mark.
        nearest = y[int(np.argmin(np.abs(x - step)))]
        mark = (step, float(np.clip(nearest, *upper.get_ylim())))
        figure.add_artist(
            ConnectionPatch((0.5, 0.0), mark, picture.transAxes, upper.transData, zorder=5,
                            color=style.phase_color(label), lw=0.8)
        )  # fmt: skip
        upper.plot([step], [nearest], zorder=4, clip_on=False, gid=f"stage-{i}",
                   **style.phase_style(label))  # fmt: skip
    return figure


def draw_curves(axes: Sequence[Axes], curves: Curves, *, log: bool = False) -> None:
    """Draw one member's loss and, if there are two axes, its LLC.

    Plateaus are shaded. With `log` the axis of steps is logarithmic, and the loss is shown from its
    start.
    """
    x, y = np.asarray(curves.step, dtype=float), np.asarray(curves.loss, dtype=float)
    stages, plateaus = curves.stages, curves.plateaus
    by_label = {p.label: p for p in curves.points}
    met = [label for label, *_ in stages] + [str(p["nearest"]) for p in plateaus if p["nearest"]]
    levels = [(k, by_label[k].loss) for k in style.phase_order(met) if k in by_label]
    low, high = style.loss_limits(y, [] if log else [value for _, value in levels])
    upper = axes[0]
    style.loss_axis(upper, low, high)
    upper.plot(x, y, color=style.INK, zorder=3, gid="loss")
    upper.set_ylabel(curves.name)
    if len(axes) > 1:
        x = np.union1d(x, np.asarray(curves.llc_step, dtype=float))
        theory = []
        ends = [*(step for _, step, *_ in stages[1:]), x[-1]]
        for (label, step, *_), end in zip(stages, ends, strict=False):
            known = by_label.get(label)
            if known is not None and known.llc is not None:
                # Over the plateau at the stage's step, else from there to the next stage.
                over = [p for p in plateaus if p["start"] <= step <= p["end"]]
                interval = (over[-1]["start"], over[-1]["end"]) if over else (step, end)
                theory.append((label, interval, known.llc))
        _draw_llc(axes[1], curves, theory)
    for ax in axes:  # with room for the markers at the last step
        if log:
            style.step_axis(ax, x)
            ax.set_xlim(right=1.1 * float(x.max()))
        else:
            style.linear_step_axis(ax, 1.02 * float(x.max()))
        for plateau in plateaus:
            colour = style.phase_color(plateau["nearest"])
            ax.axvspan(plateau["start"], plateau["end"], color=colour, alpha=0.13, lw=0, zorder=0)
    axes[-1].set_xlabel("optimizer steps")
    style.draw_levels(upper, [(k, value) for k, value in levels if low <= value <= high], _PANEL)


_PANEL = 1.3  # height in inches


def _staircase_axes(
    title: str, n_pictures: int, n_panels: int
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with a row of pictures, if there are any, above panels of full width."""
    pictures, panels = [f"picture {i}" for i in range(n_pictures)], ["loss", "llc"][:n_panels]
    rows: list[Any] = [pictures] if pictures else []
    rows += [[panel] * max(n_pictures, 1) for panel in panels]
    size = min(0.75, (style.WIDTH - 0.4) / n_pictures) if pictures else 0.0
    figure = style.new_figure(title, _PANEL * n_panels + size + 0.6)
    heights = [size + 0.1] * bool(pictures) + [_PANEL] * n_panels
    grid = figure.subplot_mosaic(rows, height_ratios=heights)
    axes = [grid[panel] for panel in panels]
    for ax in axes:
        style.style_ticks(ax)
    axes[0].tick_params(labelbottom=n_panels == 1)
    return figure, [grid[name] for name in pictures], axes


def _draw_llc(
    ax: Axes, curves: Curves, theory: Sequence[tuple[str, tuple[float, float], float]]
) -> None:
    """Draw estimates with error bars, hollow if not ok, and theory as (label, interval, LLC)."""
    step, llc = np.asarray(curves.llc_step, dtype=float), np.asarray(curves.llc, dtype=float)
    ok = np.ones(step.shape, bool) if curves.llc_ok is None else np.asarray(curves.llc_ok, bool)
    values = [*llc[np.isfinite(llc)], *(value for *_, value in theory)] or [0.0, 1.0]
    top = max(values)
    # Far from critical points estimates can be very negative; those are below the frame.
    floor = max(min(min(values), 0.0), -0.25 * max(top, 1.0))
    margin = 0.1 * (top - floor or 1.0)
    ax.set_ylim(floor - 0.5 * margin, top + margin)
    ax.set_ylabel(r"LLC $\hat\lambda$ ($\pm$ error)")
    bars = ax.errorbar(step, llc, curves.llc_stderr, color=style.INK, lw=0.8, elinewidth=0.6,
                       zorder=3)  # fmt: skip
    bars.lines[0].set_gid("llc")
    for chosen, fill, label in ((ok, style.INK, "estimate"), (~ok, "white", "not ok")):
        if chosen.any():
            ax.plot(step[chosen], llc[chosen], ls="", marker="o", ms=2.6, color=style.INK, mfc=fill,
                    mew=0.6, zorder=4, label=label)  # fmt: skip
    for label, interval, value in theory:
        ax.plot(interval, [value] * 2, color=style.phase_color(label), ls="--", lw=1.2, zorder=2,
                gid=f"theory-{label}")  # fmt: skip
    if theory:
        ax.plot([], [], color=style.GREY, ls="--", lw=1.2, label="theory")
    style.mark_below_frame(ax, step[llc < floor])
    # Above the frame the legend covers no estimate.
    ax.legend(loc="upper right", bbox_to_anchor=(1.0, 1.12), ncols=4)


_HATCHES = {"-": None, "--": "////", "-.": "xxxx", ":": "...."}


@styled
def phase_counts(step: ArrayLike, labels: ArrayLike) -> Figure:
    """The number of members in each phase against steps, stacked: step (T,), labels (T, M)."""
    x, phase = np.asarray(step, dtype=float), np.asarray(labels).astype(str)
    n_members = phase.shape[1]
    # Phases with phi > 0 are hatched, so that they differ in more than colour.
    styles: dict[str, dict[str, Any]] = {
        label: {
            "facecolor": style.phase_color(label),
            "edgecolor": "white",
            "hatch": _HATCHES[style.phase_linestyle(label)] if style.k_sigma_phi(label) else None,
            "linewidth": 0.3,
        }
        for label in style.phase_order(phase.ravel())
    }
    legend = [Patch(label=label, **own) for label, own in styles.items()]
    title = f"Phases of {n_members} member{'s' * (n_members != 1)}"
    figure, (ax,) = style.new_panels(title, [1.9], legend)
    floor = np.zeros(len(x))
    for label, own in styles.items():
        top = floor + (phase == label).sum(axis=1)
        ax.fill_between(x, floor, top, **own).set_gid(f"phase-{label}")
        floor = top
    style.step_axis(ax, x)
    ax.set_ylim(0, n_members)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set(xlabel="optimizer steps", ylabel="members")
    return figure


@styled
def llc_by_phase(
    loss: ArrayLike,
    llc: ArrayLike,
    labels: Sequence[str],
    points: Sequence[CriticalPoint],
    verdicts: Sequence[str] | None = None,
    *,
    name: str = style.POPULATION_LOSS,
) -> Figure:
    """LLC estimates against the loss at snapshots, coloured by phase; arguments are (N,).

    Crosses are the theory values of the phases that occur, as far as known. Estimates whose verdict
    is not ok are pale.
    """
    x, y = np.asarray(loss, dtype=float), np.asarray(llc, dtype=float)
    phase = np.asarray([str(label) for label in labels])
    ok = np.ones(x.shape, bool) if verdicts is None else np.asarray(verdicts) == "ok"
    order = style.phase_order(phase)
    crosses = sorted((p for p in points if p.label in order and p.llc is not None),
                     key=lambda p: p.loss)  # fmt: skip
    known = np.array([p.llc for p in crosses], dtype=float)
    top = max([*y[np.isfinite(y)], *known, 1.0])
    floor = max(min([*y[np.isfinite(y)], *known, 1.0]), -0.25 * top)
    legend = [style.phase_handle(label, ls="", mew=0.7) for label in order]
    if not ok.all():
        legend.append(style.pale_handle())
    if (y < floor).any():
        legend.append(Line2D([], [], ls="", marker="v", ms=3, color=style.INK,
                             label=style.BELOW_FRAME))  # fmt: skip
    title = f"LLC against loss, {len(x)} snapshots" + "; crosses: theory" * bool(crosses)
    figure, (ax,) = style.new_panels(title, [2.0], legend)
    ax.set(xlabel=name.replace("\n", " "), ylabel=r"LLC $\hat\lambda$")
    ax.set_ylim(floor - 0.05 * (top - floor or 1.0), top * 1.15)
    for label in order:
        for good, alpha in ((True, 0.7), (False, style.PALE / 2)):
            here = (phase == label) & (ok == good)
            if here.any():
                gid = f"phase-{label}" if good else f"phase-{label}-not-ok"
                ax.plot(x[here], y[here], ls="", ms=3.5, mew=0.7, alpha=alpha, zorder=2, gid=gid,
                        **style.phase_style(label))  # fmt: skip
    for point, value in zip(crosses, known, strict=True):
        colour = style.phase_color(point.label)
        ax.plot(point.loss, value, marker="x", ms=9, mew=3.0, color="white", zorder=3)
        ax.plot(point.loss, value, marker="x", ms=8, mew=1.8, color=colour, zorder=4,
                gid=f"theory-{point.label}")  # fmt: skip
    positive = x[np.isfinite(x)]
    if positive.size and positive.min() > 0 and all(p.loss > 0 for p in crosses):
        ax.set_xscale("log")
        style.decimal_ticks(ax.xaxis, (1, 2, 5), most=8)
    style.mark_below_frame(ax, x[y < floor])
    # Names above the frame, each tied to its cross.
    to_axes = ax.transData + ax.transAxes.inverted()
    across = np.array([to_axes.transform((p.loss, 0.0))[0] for p in crosses])
    longest = max((len(p.label) + 1 for p in crosses), default=0)
    gap = 0.62 * style.LINE * longest / (style.WIDTH - 0.5)
    for point, value, place in zip(crosses, known, style.spread_apart(across, gap), strict=True):
        ax.annotate(
            point.label,
            xy=(point.loss, value),
            xytext=(place, 1.0),
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            arrowprops=style.leader(point.label) | {"shrinkB": 4},
            zorder=5,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            gid="theory-label",
        )
    return figure
