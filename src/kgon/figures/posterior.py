"""The figures of a posterior job: rows of a phase diagram in, a matplotlib `Figure` out.

Width, fonts, colours and markers are those of `figures`. Bands and bars are over data sets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kgon.figures.style import (
    FONT,
    GREY,
    INK,
    WIDTH,
    add_axes,
    label_axes,
    legend_height,
    phase_color,
    phase_legend,
    phase_marker,
    phase_order,
    write_title,
)
from kgon.posterior.phase_diagram import LEAST_SHARE, PRIOR, PhaseDiagram

_LEFT, _RIGHT, _FOOT = 0.46, 0.12, 0.36
_STYLES = ("--", ":")
_MOST_PHASES = 4
_MOST_TICKS = 5


def phases(
    diagram: PhaseDiagram,
    *,
    predicted: Mapping[str, float | None],
    pair: tuple[str, str] | None = None,
    crossing: tuple[float, float] = (math.nan, math.nan),
) -> Figure:
    """Shares of the posterior by number of vertices against n, by every labelling rule, with the
    rules' agreement below.

    Lines are means and bands the range over data sets.

    Args:
        predicted: crossings by name, as vertical lines; one beyond the sizes, or None, is only
            named.
        pair: the families that `predicted` and `crossing` are about.
        crossing: mean and standard deviation of the measured one, drawn at a share of one half.
    """
    n = np.array(diagram.n_samples, dtype=float)
    rules = diagram.rules
    heights = [1.35] + [0.85] * (len(rules) - 1) + ([0.7] if len(rules) > 1 else [])
    gap = 0.22
    shown = phase_order(
        phase
        for rule in rules
        for phase, share in diagram.share("k", rule).items()
        if float(share.mean(1).max()) >= LEAST_SHARE
    )
    handles: list[Any] = [Line2D([], [], color=phase_color(k), lw=1.4, label=k) for k in shown]
    n_notes = len(predicted) + bool(math.isfinite(crossing[0]))
    above = 0.24 + legend_height(len(handles)) + 0.13 * n_notes + 0.12
    height = sum(heights) + gap * (len(heights) - 1) + above + _FOOT
    figure = Figure(figsize=(WIDTH, height))
    top = height - above
    axes = []
    for h in heights:
        axes.append(add_axes(figure, _LEFT, top - h, WIDTH - _RIGHT, top))
        top -= h + gap
    for ax, rule in zip(axes, rules, strict=False):
        for phase, share in diagram.share("k", rule).items():
            if phase in shown:
                _band(ax, n, share.numpy(), phase_color(phase), f"{rule}-{phase}")
        ax.set_ylim(0, 1)
        ax.set_yticks([0, 0.5, 1] if rule == rules[0] else [0, 1])
        _name(ax, f"labels by {rule}" + (" (reference)" if rule == rules[0] and rules[1:] else ""))
        label_axes(ax, None, "share" if rule != rules[0] else "share of the posterior")
    notes: list[Any] = []
    of = f"{pair[0]} to {pair[1]} " if pair else ""
    for (name, at), style in zip(predicted.items(), _STYLES, strict=False):
        inside = at is not None and n[0] <= at <= n[-1]
        where = "none" if at is None else f"n = {at:.0f}" + ("" if inside else ", not in the frame")
        notes.append(
            Line2D([], [], color=INK, lw=0.9, ls=style, label=f"{of}predicted, {name}: {where}")
        )
        if at is not None and inside:
            for ax in axes[: len(rules)]:
                ax.axvline(at, color=INK, lw=0.9, ls=style, zorder=1).set_gid("predicted")
    mean, sd = crossing
    if math.isfinite(mean):
        dots: dict[str, Any] = {"color": INK, "marker": "D", "ms": 3.5, "lw": 1.0}
        axes[0].errorbar(
            mean, 0.5, xerr=sd if math.isfinite(sd) else None, capsize=2, zorder=6, **dots
        ).lines[0].set_gid("measured")
        spread = f" ± {sd:.0f} (sd over data sets)" if math.isfinite(sd) else ""
        notes.append(Line2D([], [], label=f"{of}measured: n = {mean:.0f}{spread}", **dots))
    if len(rules) > 1:
        ax = axes[-1]
        for rule, marker in zip(rules[1:], ("o", "s"), strict=False):
            values = diagram.agreement_with(rule).numpy()
            _band(ax, n, values, INK if marker == "o" else GREY, f"agree-{rule}", marker)
        ax.set_ylim(min(0.5, float(diagram.agreement_with(rules[-1]).min())), 1)
        label_axes(ax, None, "agreement")
        words = ", ".join(f"{m} {r}" for m, r in zip("●■", rules[1:], strict=False))
        _name(ax, f"same $k$ as by {rules[0]}: {words}", low=True)
    for ax in axes:
        _size_axis(ax, n)
        ax.tick_params(labelbottom=ax is axes[-1])
    label_axes(axes[-1], "sample size $n$", None)
    count = len(diagram.datasets)
    over = f"mean and range over {count} data sets" if count > 1 else "one data set"
    write_title(figure, f"Posterior: {over}")
    phase_legend(figure, handles, 0.2)
    if notes:
        figure.legend(
            handles=notes,
            loc="upper left",
            bbox_to_anchor=(0.02, 1 - (0.2 + legend_height(len(handles))) / height),
            fontsize=FONT,
            frameon=False,
            handlelength=1.8,
            labelspacing=0.15,
            borderpad=0.1,
            borderaxespad=0.1,
        )
    return figure


def starts(diagram: PhaseDiagram) -> Figure | None:
    """Shares by number of vertices against n (reference rule): by SMC, and by NUTS from each start.

    Lines are means and bands the range over data sets; SMC's means are repeated as dashes beside
    NUTS'. None without NUTS.
    """
    if not diagram.starts:
        return None
    n = np.array(diagram.n_samples, dtype=float)
    panels = [None, *diagram.starts]
    found = {start: diagram.share(start=start) for start in panels}
    shown = phase_order(
        phase
        for shares in found.values()
        for phase, share in shares.items()
        if float(share.mean(1).max()) >= LEAST_SHARE
    )
    handles: list[Any] = [
        Line2D([], [], color=phase_color(k), lw=1.3, marker=phase_marker(k), ms=2.5, label=k)
        for k in shown
    ]
    handles.append(Line2D([], [], color=INK, lw=0.9, ls=_STYLES[0], label="SMC again"))
    n_rows, body, gap = math.ceil(len(panels) / 2), 0.95, 0.26
    above = 0.24 + legend_height(len(handles)) + 0.2
    height = n_rows * body + (n_rows - 1) * gap + above + _FOOT
    figure = Figure(figsize=(WIDTH, height))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    for i, start in enumerate(panels):
        row, column = divmod(i, 2)
        left, right = ((_LEFT, middle - 0.08), (middle + 0.08, WIDTH - _RIGHT))[column]
        top = height - above - row * (body + gap)
        ax = add_axes(figure, left, top - body, right, top)
        for phase, share in found[start].items():
            if phase in shown:
                gid = f"{start or 'smc'}-{phase}"
                _band(ax, n, share.numpy(), phase_color(phase), gid, phase_marker(phase))
        for phase, share in found[None].items() if start else ():
            if phase in shown:
                ax.plot(n, share.mean(1), color=phase_color(phase), lw=0.9, ls=_STYLES[0])
        ax.set_ylim(0, 1)
        ax.set_yticks([0, 0.5, 1])
        _name(ax, f"NUTS from {_a_start(start)}" if start else "SMC, which has no start")
        ax.tick_params(labelleft=column == 0, labelbottom=i + 2 >= len(panels))
        if len(n) > 1:
            ax.set_xscale("log")
            ax.set_xlim(n[0] / 1.1, n[-1] * 1.1)
        ax.xaxis.set_major_locator(FixedLocator([*n] if len(n) <= _MOST_TICKS else [n[0], n[-1]]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
        label_axes(
            ax,
            "sample size $n$" if i + 2 >= len(panels) else None,
            "share" if column == 0 else None,
        )
    count = len(diagram.datasets)
    over = f"mean and range over {count} data sets" if count > 1 else "one data set"
    write_title(figure, f"Occupancy by where chains start: {over}")
    phase_legend(figure, handles, 0.2)
    return figure


def _a_start(start: str) -> str:
    return "draws of the prior" if start == PRIOR else f"the critical point {start}"


def log_evidence(diagram: PhaseDiagram) -> Figure:
    """-log Z against n, and below it the standard error of log Z from the replicates."""
    n = np.array(diagram.n_samples, dtype=float)
    value, stderr = (
        diagram.column(name).numpy() for name in ("log_evidence", "log_evidence_stderr")
    )
    height = 0.3 + 1.5 + 0.2 + 0.8 + _FOOT
    figure = Figure(figsize=(WIDTH, height))
    upper = add_axes(figure, _LEFT, height - 1.8, WIDTH - _RIGHT, height - 0.3)
    lower = add_axes(figure, _LEFT, _FOOT, WIDTH - _RIGHT, _FOOT + 0.8)
    _band(upper, n, -value, INK, "evidence", "o")
    for j in range(stderr.shape[1]):
        lower.plot(n, stderr[:, j], ls="", marker="o", ms=2.2, color=GREY, alpha=0.7)
    lower.set_ylim(0, None)
    for ax in (upper, lower):
        _size_axis(ax, n)
    upper.tick_params(labelbottom=False)
    label_axes(upper, None, r"$-\log Z_n$")
    label_axes(lower, "sample size $n$", "its s.e.")
    count = len(diagram.datasets)
    over = f"mean and range over {count} data sets" if count > 1 else "one data set"
    write_title(figure, f"Free energy, {over}")
    _name(lower, "standard error of each, from replicates")
    return figure


def llc(diagram: PhaseDiagram) -> Figure | None:
    """The learning coefficient of the posterior within each phase against n, beside theory.

    Dots are means over the data sets in which the phase has at least LEAST_SHARE, bars their
    standard deviations; dashes are theory. The phases with the largest shares; None if none has
    an estimate.
    """
    rows = [
        asdict(row)
        for row in diagram.llc
        if row.llc is not None and (row.share or 0.0) >= LEAST_SHARE
    ]
    weight: dict[str, float] = {}
    for row in rows:
        weight[row["phase"]] = weight.get(row["phase"], 0.0) + row["share"]
    chosen = phase_order(sorted(weight, key=lambda p: -weight[p])[:_MOST_PHASES])
    if not chosen:
        return None
    body, above = 1.9, 0.24 + legend_height(len(chosen)) + 0.16
    height = body + above + _FOOT
    figure = Figure(figsize=(WIDTH, height))
    ax = add_axes(figure, _LEFT, _FOOT, WIDTH - _RIGHT, _FOOT + body)
    n = np.array(diagram.n_samples, dtype=float)
    step = 0.012 * (n[-1] - n[0])
    handles = []
    for i, phase in enumerate(chosen):
        colour = phase_color(phase)
        sizes, means, sds, theory = [], [], [], None
        for size in diagram.n_samples:
            here = [r for r in rows if r["phase"] == phase and r["n_samples"] == size]
            if here:
                values = [r["llc"] for r in here]
                sizes.append(size + step * (i - (len(chosen) - 1) / 2))
                means.append(np.mean(values))
                sds.append(np.std(values, ddof=1) if len(values) > 1 else 0.0)
                theory = here[0]["theory"]
        style: dict[str, Any] = {"color": colour, "marker": phase_marker(phase), "ms": 4}
        ax.errorbar(sizes, means, yerr=sds, lw=0.9, elinewidth=0.7, zorder=3, **style).lines[
            0
        ].set_gid(f"llc-{phase}")
        if theory is not None:
            ax.axhline(theory, color=colour, lw=1.0, ls="--", zorder=1).set_gid(f"theory-{phase}")
        handles.append(Line2D([], [], lw=0.9, label=phase, **style))
    _size_axis(ax, n)
    label_axes(ax, "sample size $n$", r"$n\beta\,(E[L_n] - L_n(w^*))$ in the phase")
    write_title(figure, "LLC of the posterior in each phase; dashes: theory")
    phase_legend(figure, handles, 0.2)
    return figure


def _band(ax: Axes, n: Any, values: Any, colour: str, gid: str, marker: Any = None) -> None:
    """Mean and range over the second axis."""
    ax.fill_between(
        n, np.nanmin(values, 1), np.nanmax(values, 1), color=colour, alpha=0.2, lw=0
    ).set_gid(f"band-{gid}")
    one = marker or ("o" if len(n) == 1 else None)
    ax.plot(
        n, np.nanmean(values, 1), color=colour, lw=1.3, marker=one, ms=2.5, zorder=3,
        clip_on=False,
    ).pop().set_gid(f"mean-{gid}")  # fmt: skip


def _size_axis(ax: Axes, n: Sequence[float] | Any) -> None:
    if len(n) > 1:
        margin = 0.03 * (n[-1] - n[0])
        ax.set_xlim(n[0] - margin, n[-1] + margin)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _name(ax: Axes, text: str, low: bool = False) -> None:
    """A panel's name, above its frame."""
    ax.text(
        0.0, 1.02, text, transform=ax.transAxes, fontsize=FONT, color=INK, ha="left", va="bottom"
    )
