"""docs/coverage.md and its figure, from the rows of `measure`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
NOMINAL = {1: 0.683, 2: 0.954, 3: 0.997}
"""Shares of a normal distribution; two errors of few values are widened by Student's factor."""

TEXT = """# How often is `ok` right?

*`make coverage` made this page from {n_estimates:,} estimates: {n_models} models, each estimated
{repetitions} times by each setting.*

The verdict `ok` of a learning coefficient says that nbeta (E[L] - L(w*)), at this nbeta and
localization, lies within two stated errors 19 times out of 20. Here it is held against the truth,
by closed forms ({n_closed} models), or by chains of Hamiltonian Monte Carlo with some twenty times
the draws. Where there is a closed form these chains are off by at most {worst:.1f} of their own
errors. An estimate counts as within k errors if it lies within
k sqrt(error^2 + error of the truth^2).

![Share of ok estimates within one, two and three errors](coverage.png)

{tables}

`refused`: any other verdict. The share of 30 estimates has a standard error of 0.04, that of 500
one of 0.01. Models kept aside ({held_out}) had no part in the choice of the rules and limits,
except that the default localization was tried at 8 of 8, too.

## The variance estimator

nbeta^2 Var L estimates the same coefficient for large n and does not need L(w*). Share of its own
estimates within k of its own errors, of those whose verdict is ok:

{variances}

Errors of posteriors are held against long runs in [coverage_posterior.md](coverage_posterior.md).

## Worst cases at the defaults

{worst_models}
"""


def write(rows: Rows, settings: Sequence[str], folder: Path) -> None:
    """Write coverage.md and coverage.png; a setting without rows is said not to be measured."""
    groups = {"k-gons": lambda r: r["group"] == "k-gons" and not r["held_out"],
              "other models": lambda r: r["group"] != "k-gons" and not r["held_out"],
              "kept aside": lambda r: r["held_out"]}  # fmt: skip
    body = []
    for setting in settings:
        for name, chosen in groups.items():
            own = [r for r in rows if r["setting"] == setting and chosen(r)]
            shares = _shares(own) if own else ["not measured", *[""] * 6]
            body.append([setting, name, *shares])
    heads = ["setting", "models", "estimates", "refused", "ok", "1 error", "2 errors", "3 errors",
             "median error"]  # fmt: skip
    defaults = [r for r in rows if r["default"]]
    variances = [
        [setting, *_within([r for r in rows if r["setting"] == setting and r["verdict"] == "ok"],
                           "variance", "true_variance")]
        for setting in dict.fromkeys(r["setting"] for r in defaults)
    ]  # fmt: skip
    closed = {(r["model"], r["n"]): r for r in rows if r["closed"]}.values()
    text = TEXT.format(
        n_estimates=len(rows),
        n_models=len({r["model"] for r in rows}),
        repetitions=max(_count(rows).values()),
        n_closed=len({r["model"] for r in closed}),
        worst=max(
            (abs(r["long_mean"] - r["truth"]) / r["long_error"] for r in closed), default=0.0
        ),
        tables=_table(heads, body),
        held_out=len({r["model"] for r in rows if r["held_out"]}),
        variances=_table(["setting", "ok", "1 error", "2 errors", "3 errors"], variances),
        worst_models=_table(["setting", "model", "n", "truth", "ok", "2 errors"], _worst(defaults)),
    )
    (folder / "coverage.md").write_text(text)
    _figure(rows, settings).savefig(folder / "coverage.png", dpi=150)


def _count(rows: Rows) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for r in rows:
        key = r["setting"], r["model"], r["n"]
        counts[key] = counts.get(key, 0) + 1
    return counts


def within(row: dict[str, Any], k: float, name: str = "mean", truth: str = "truth") -> bool:
    """Whether an estimate lies within k errors of the truth."""
    error = math.hypot(row["stderr" if name == "mean" else f"{name}_error"], row[f"{truth}_error"])
    return abs(row[name] - row[truth]) <= k * error


def _within(ok: Rows, name: str = "mean", truth: str = "truth") -> list[str]:
    if not ok:
        return ["0", "-", "-", "-"]
    shares = [sum(within(r, k, name, truth) for r in ok) / len(ok) for k in NOMINAL]
    return [f"{len(ok):,}", *(f"{share:.3f}" for share in shares)]


def _shares(rows: Rows) -> list[str]:
    ok = [r for r in rows if r["verdict"] == "ok"]
    off = sorted((r["mean"] - r["truth"]) / max(abs(r["truth"]), 1.0) for r in rows)
    refused = f"{1 - len(ok) / len(rows):.1%}"
    return [f"{len(rows):,}", refused, *_within(ok), f"{off[len(off) // 2]:+.1%}"]


def _worst(rows: Rows) -> list[list[str]]:
    """The eight cases with the smallest share within two errors, of those with 20 ok."""
    found = []
    for setting, model, n in _count(rows):
        own = [r for r in rows if (r["setting"], r["model"], r["n"]) == (setting, model, n)]
        ok = [r for r in own if r["verdict"] == "ok"]
        if len(ok) >= 20:
            share = sum(within(r, 2) for r in ok) / len(ok)
            found.append((share, [setting, model, f"{n:,}", f"{own[0]['truth']:.3f}",
                                  f"{len(ok)} of {len(own)}", f"{share:.2f}"]))  # fmt: skip
    return [row for _, row in sorted(found)[:8]]


def _table(heads: list[str], body: list[list[str]]) -> str:
    left = [h in ("setting", "models", "model") for h in heads]
    rule = "|".join("---" if here else "--:" for here in left)
    lines = ["| " + " | ".join(heads) + " |", f"|{rule}|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def _figure(rows: Rows, settings: Sequence[str]) -> Figure:
    """A row a setting: shares within k errors with their standard errors; the share refused."""
    figure = Figure((8.5, 0.42 * len(settings) + 1.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    colors = {1: "#56B4E9", 2: "#0072B2", 3: "#000000"}
    places = range(len(settings))
    for k, share in NOMINAL.items():
        left.axvline(share, color=colors[k], lw=0.8, ls="--")
        for place, setting in zip(places, settings, strict=True):
            ok = [r for r in rows if r["setting"] == setting and r["verdict"] == "ok"]
            if ok:
                held = sum(within(r, k) for r in ok) / len(ok)
                spread = math.sqrt(max(held * (1 - held), 1 / len(ok)) / len(ok))
                label = f"{k} error{'s' * (k > 1)}" if place == 0 else None
                left.errorbar(held, place, spread, 0, "o", ms=4, color=colors[k], label=label)
    for place, setting in zip(places, settings, strict=True):
        own = [r for r in rows if r["setting"] == setting]
        refused = sum(r["verdict"] != "ok" for r in own)
        right.barh(place, refused / max(len(own), 1), color="#999999")
    left.set_yticks(list(places), settings)
    left.invert_yaxis()
    left.set(xlim=(0, 1.02), xlabel="share of ok estimates within k errors (dashed: nominal)")
    right.set(xlim=(0, 1), xlabel="share refused")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=3,
                  frameon=False)  # fmt: skip
    return figure
