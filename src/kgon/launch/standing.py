"""The table of the states of runs, for the terminal."""

from collections.abc import Sequence
from datetime import timedelta

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from kgon.record.sweeps import Standing, shared_by, tally

_STYLES = {"finished": "green", "failed": "bold red", "interrupted": "yellow", "running": "cyan"}
_MOST_ROWS = 60
_BY_URGENCY = ("failed", "interrupted", "running", "missing", "pending", "finished")


def standing_table(runs: Sequence[Standing], title: str, most: int = _MOST_ROWS) -> Table:
    """A table with a row for each run, or for the `most` most urgent ones if there are more."""
    shown = sorted(runs, key=lambda run: _BY_URGENCY.index(run.state))[:most]
    left_out = f", {len(runs) - most} more" if len(runs) > most else ""
    shared = shared_by([run.overrides for run in runs]) if len(runs) > 1 else []
    table = Table(
        title=f"{title}: {tally(runs) or 'no runs'}{left_out}",
        caption=f"all with {escape(' '.join(shared))}" if shared else None,
        box=SIMPLE,
    )
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("overrides")
    for heading in ("done", "time", "loss"):
        table.add_column(heading, justify="right")
    table.add_column("phases")
    for run in shown:
        words = escape(" ".join(word for word in run.overrides if word not in shared))
        if run.error:
            error = escape(run.error.splitlines()[0])
            words = f"{words}\n[red]{error}[/red]" if words else error
        style = _STYLES.get(run.state, "")
        table.add_row(
            run.run,
            f"[{style}]{run.state}[/{style}]" if style else run.state,
            words,
            "-" if run.progress is None else f"{run.progress:.0%}",
            _duration(run.seconds),
            "-" if run.loss is None else f"{run.loss:.5f}",
            _phases(run.phases),
        )
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    # 0:01:02 is shown as 1:02.
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def _phases(phases: dict[str, int]) -> str:
    most = sorted(phases.items(), key=lambda item: -item[1])
    # A line breaks between phases, not within one.
    words = [f"{label}:\N{NO-BREAK SPACE}{count}" for label, count in most[:5]]
    return "  ".join(words) + (" ..." if len(most) > 5 else "")
