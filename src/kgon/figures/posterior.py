"""The figures of a posterior job: functions of a `PhaseDiagram` that return a `Figure`.

Bands and error bars are over data sets.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from kgon.figures.style import (
    GREY,
    INK,
    Array,
    new_panels,
    phase_color,
    phase_handle,
    phase_marker,
    phase_order,
    phase_style,
    plain_decimals,
    styled,
    theory_handle,
)
from kgon.posterior.phase_diagram import LEAST_SHARE, PRIOR, PhaseDiagram

_DASHES = ("--", ":")
_MOST_PHASES = 4
_MOST_TICKS = 5


@styled
def phases(
    diagram: PhaseDiagram,
    *,
    predicted: Mapping[str, float | None],
    pair: tuple[str, str] | None = None,
    crossing: tuple[float, float] = (math.nan, math.nan),
) -> Figure:
    """Shares of the posterior by number of vertices against n, one panel per labelling rule.

    Lines are means, and bands the range over data sets. The lowest panel shows the agreement of the
    rules.

    Args:
        predicted: predicted crossings by name, drawn as vertical lines. A crossing outside the
            sizes, or None, is only listed in the legend.
        pair: the two families of k-gons to which `predicted` and `crossing` refer.
        crossing: mean and standard deviation of the measured crossing, drawn at a share of 1/2.
    """
    n = np.array(diagram.n_samples, dtype=float)
    rules = diagram.rules
    found = {rule: diagram.share("k", rule) for rule in rules}
    shown = _large(found.values())
    legend = [Line2D([], [], color=phase_color(k), lw=1.4, label=k) for k in shown]
    heights = [1.3] + [0.8] * (len(rules) - 1) + [0.7] * (len(rules) > 1)
    # The first panel has the notes above it, as a legend of its own.
    n_notes = len(predicted) + math.isfinite(crossing[0])
    heights[0] += 0.12 * n_notes
    figure, axes = new_panels(f"Posterior: {_over(diagram)}", heights, legend)
    for ax, rule in zip(axes, rules, strict=False):
        first = rule == rules[0]
        for phase in shown:
            if phase in found[rule]:
                _band(ax, n, found[rule][phase], phase_color(phase), f"{rule}-{phase}")
        ax.set_ylim(0, 1)
        ax.set_yticks([0, 0.5, 1] if first else [0, 1])
        ax.set_title(f"labels by {rule}" + " (reference)" * (first and len(rules) > 1), loc="left")
        ax.set_ylabel("share of the posterior" if first else "share")
    notes = _predictions(axes[: len(rules)], predicted, pair, n)
    mean, sd = crossing
    if math.isfinite(mean):
        dots: dict[str, Any] = {"color": INK, "marker": "D", "ms": 3.5}
        error = sd if math.isfinite(sd) else None
        axes[0].errorbar(mean, 0.5, xerr=error, capsize=2, zorder=6, **dots).lines[0].set_gid(
            "measured"
        )
        spread = f" ± {sd:.0f} (sd over data sets)" if error is not None else ""
        notes.append(Line2D([], [], label=f"{_of(pair)}measured: n = {mean:.0f}{spread}", **dots))
    if notes:
        axes[0].legend(handles=notes, loc="lower left", bbox_to_anchor=(0.0, 1.1), borderaxespad=0)
    if len(rules) > 1:
        ax = axes[-1]
        for rule, marker, colour in zip(rules[1:], "os", (INK, GREY), strict=False):
            _band(ax, n, diagram.agreement_with(rule), colour, f"agree-{rule}", marker)
        ax.set_ylim(min(0.5, float(diagram.agreement_with(rules[-1]).min())), 1)
        ax.set_ylabel("agreement")
        words = ", ".join(f"{m} {r}" for m, r in zip("●■", rules[1:], strict=False))
        ax.set_title(f"same $k$ as by {rules[0]}: {words}", loc="left")
    _size_axis(axes[-1], n)
    return figure


def _of(pair: tuple[str, str] | None) -> str:
    return f"{pair[0]} to {pair[1]} " if pair else ""


def _predictions(
    axes: list[Axes],
    predicted: Mapping[str, float | None],
    pair: tuple[str, str] | None,
    n: Array,
) -> list[Line2D]:
    """Draw predicted crossings and return their legend entries."""
    notes = []
    for (name, at), dashes in zip(predicted.items(), _DASHES, strict=False):
        inside = at is not None and n[0] <= at <= n[-1]
        where = "none" if at is None else f"n = {at:.0f}" + ", not in the frame" * (not inside)
        label = f"{_of(pair)}predicted, {name}: {where}"
        notes.append(Line2D([], [], color=INK, lw=0.9, ls=dashes, label=label))
        if at is not None and inside:
            for ax in axes:
                ax.axvline(at, color=INK, lw=0.9, ls=dashes, zorder=1).set_gid("predicted")
    return notes


@styled
def starts(diagram: PhaseDiagram) -> Figure | None:
    """Shares by number of vertices against n (reference rule), by SMC and by NUTS from each start.

    Lines are means, and bands the range over data sets. Dashed lines in the panels of NUTS repeat
    the means of SMC. None without NUTS.
    """
    if not diagram.starts:
        return None
    n = np.array(diagram.n_samples, dtype=float)
    panels = [None, *diagram.starts]
    found = {start: diagram.share(start=start) for start in panels}
    shown = _large(found.values())
    legend = [phase_handle(k) for k in shown]
    legend.append(Line2D([], [], color=INK, lw=0.9, ls="--", label="SMC again"))
    title = f"Occupancy by where chains start: {_over(diagram)}"
    rows = math.ceil(len(panels) / 2)
    figure, axes = new_panels(title, [1.0] * rows, legend, columns=2)
    for i, ax in enumerate(axes):
        if i >= len(panels):
            # Nothing is in this place, so the panel above is the lowest of its column.
            axes[i - 2].tick_params(labelbottom=True)
            axes[i - 2].set_xlabel("sample size $n$")
            ax.remove()
            break
        start = panels[i]
        for phase in shown:
            if phase in found[start]:
                gid = f"{start or 'smc'}-{phase}"
                _band(ax, n, found[start][phase], phase_color(phase), gid, phase_marker(phase))
            if start and phase in found[None]:
                mean = found[None][phase].mean(1)
                ax.plot(n, mean, color=phase_color(phase), lw=0.9, ls="--")
        ax.set_ylim(0, 1)
        ax.set_yticks([0, 0.5, 1])
        ax.set_title(
            f"NUTS from {_in_words(start)}" if start else "SMC, which has no start", loc="left"
        )
        if len(n) > 1:
            ax.set_xscale("log")
            ax.set_xlim(n[0] / 1.1, n[-1] * 1.1)
        ax.xaxis.set_major_locator(FixedLocator([*n] if len(n) <= _MOST_TICKS else [n[0], n[-1]]))
        ax.xaxis.set_major_formatter(FuncFormatter(plain_decimals))
        ax.xaxis.set_minor_locator(NullLocator())
        if i % 2:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("share")
        if i // 2 == rows - 1:
            ax.set_xlabel("sample size $n$")
    return figure


def _in_words(start: str) -> str:
    return "draws of the prior" if start == PRIOR else f"critical point {start}"


@styled
def log_evidence(diagram: PhaseDiagram) -> Figure:
    """-log Z against n; below, the error of log Z of each data set, from its replicates."""
    n = np.array(diagram.n_samples, dtype=float)
    figure, (upper, lower) = new_panels(f"Free energy, {_over(diagram)}", [1.5, 0.8])
    _band(upper, n, -diagram.column("log_evidence"), INK, "evidence", "o")
    stderr = diagram.column("log_evidence_stderr").numpy()
    lower.plot(n, stderr, ls="", marker="o", ms=2.2, color=GREY, alpha=0.7)
    lower.set_ylim(0, None)
    upper.set_ylabel(r"$-\log Z_n$")
    lower.set_ylabel("its error")
    _size_axis(lower, n)
    lower.set_title("error of each data set, from replicates", loc="left")
    return figure


@styled
def llc(diagram: PhaseDiagram) -> Figure | None:
    """The learning coefficient of the posterior within each phase against n, with theory.

    Dots are means over the data sets in which the phase has a share of at least LEAST_SHARE, bars
    standard deviations, and dashed lines theory. The phases are those with the largest shares. None
    if there is no estimate.
    """
    rows = [r for r in diagram.llc if r.llc is not None and (r.share or 0.0) >= LEAST_SHARE]
    if not rows:
        return None
    share = {row.phase: 0.0 for row in rows}
    for row in rows:
        share[row.phase] += row.share or 0.0
    chosen = phase_order(sorted(share, key=lambda phase: -share[phase])[:_MOST_PHASES])
    legend = [*(phase_handle(p, lw=0.9) for p in chosen), theory_handle()]
    figure, (ax,) = new_panels("LLC of the posterior in each phase", [1.9], legend)
    n = np.array(diagram.n_samples, dtype=float)
    for i, phase in enumerate(chosen):
        own = [row for row in rows if row.phase == phase]
        sizes = np.array(sorted({row.n_samples for row in own}))
        values = [np.array([r.llc for r in own if r.n_samples == size]) for size in sizes]
        shift = 0.012 * (n[-1] - n[0]) * (i - (len(chosen) - 1) / 2)
        sd = [some.std(ddof=1) if len(some) > 1 else 0.0 for some in values]
        ax.errorbar(sizes + shift, [some.mean() for some in values], sd, elinewidth=0.7, zorder=3,
                    lw=0.9, **phase_style(phase)).lines[0].set_gid(f"llc-{phase}")  # fmt: skip
        if own[0].theory is not None:
            ax.axhline(own[0].theory, color=phase_color(phase), ls="--", zorder=1,
                       gid=f"theory-{phase}")  # fmt: skip
    _size_axis(ax, n)
    ax.set_ylabel(r"$n\beta\,(E[L_n] - L_n(w^*))$ in the phase")
    return figure


def _large(found: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """The phases whose mean share reaches LEAST_SHARE at some n."""
    return phase_order(
        phase
        for shares in found
        for phase, share in shares.items()
        if float(share.mean(1).max()) >= LEAST_SHARE
    )


def _over(diagram: PhaseDiagram) -> str:
    count = len(diagram.datasets)
    return f"mean and range over {count} data sets" if count > 1 else "one data set"


def _band(ax: Axes, n: Array, share: Tensor, colour: str, gid: str, marker: Any = None) -> None:
    """Draw the mean and the range of shares (n_sizes, n_datasets) over data sets."""
    values = share.numpy()
    low, high = np.nanmin(values, 1), np.nanmax(values, 1)
    ax.fill_between(n, low, high, color=colour, alpha=0.2, lw=0).set_gid(f"band-{gid}")
    one = marker or ("o" if len(n) == 1 else None)
    ax.plot(n, np.nanmean(values, 1), color=colour, lw=1.3, marker=one, ms=2.5, zorder=3,
            clip_on=False, gid=f"mean-{gid}")  # fmt: skip


def _size_axis(ax: Axes, n: Array) -> None:
    if len(n) > 1:
        margin = 0.03 * (n[-1] - n[0])
        ax.set_xlim(n[0] - margin, n[-1] + margin)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("sample size $n$")
