"""How runs stand, as a table on the screen."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kgon.record.sweeps import tally

_STYLES = {"finished": "green", "failed": "bold red", "interrupted": "yellow", "running": "cyan"}
_MOST_ROWS = 60


def standing_table(rows: Sequence[dict[str, Any]], title: str, most: int = _MOST_ROWS) -> Table:
    """The rows of `sweeps.standing`; of more than `most` the ones that matter more."""
    order = ("failed", "interrupted", "running", "missing", "pending", "finished")
    shown = sorted(rows, key=lambda row: order.index(row["state"]))[:most]
    left_out = f", {len(rows) - most} more" if len(rows) > most else ""
    shared = _shared(rows)
    table = Table(
        title=f"{title}: {tally(rows) or 'no runs'}{left_out}",
        caption=f"all with {escape(' '.join(shared))}" if shared else None,
        box=SIMPLE,
    )
    for heading, justify in {
        "run": "left", "state": "left", "overrides": "left", "done": "right", "time": "right",
        "loss": "right", "phases": "left",
    }.items():  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=heading in ("run", "state"))  # type: ignore[arg-type]
    for row in shown:
        words = escape(" ".join(word for word in row["overrides"] if word not in shared))
        if row["error"]:
            first = row["error"].splitlines()[0]
            words = f"{words}\n[red]{escape(first)}[/red]" if words else escape(first)
        style = _STYLES.get(row["state"], "")
        table.add_row(
            row["run"],
            f"[{style}]{row['state']}[/{style}]" if style else row["state"],
            words,
            "-" if row["progress"] is None else f"{row['progress']:.0%}",
            _duration(row["seconds"]),
            "-" if row["loss"] is None else f"{row['loss']:.5f}",
            _phases(row["phases"]),
        )
    return table


def _shared(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Overrides that all of several rows have: they tell none from another."""
    if len(rows) < 2:
        return []
    everywhere = set.intersection(*(set(row["overrides"]) for row in rows))
    return [word for word in rows[0]["overrides"] if word in everywhere]


def print_standing(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print the table."""
    Console().print(standing_table(rows, title))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else f"{minutes}:{rest:02d}"
    )


def _phases(phases: dict[str, int]) -> str:
    most = sorted(phases.items(), key=lambda item: -item[1])
    # A line breaks between phases, not within one.
    words = [f"{label}:\N{NO-BREAK SPACE}{count}" for label, count in most[:5]]
    return "  ".join(words) + (" ..." if len(most) > 5 else "")
