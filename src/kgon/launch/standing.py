"""The table of the states of runs, for the terminal."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, Group
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kgon.record.sweeps import Standing, Swept, tally

_STYLES = {"finished": "green", "failed": "bold red", "interrupted": "yellow", "running": "cyan"}
_MOST_ROWS = 60
_MOST_NAMES = 4  # columns for what was swept; more share one
_MOST_WIDE = 20  # characters of a value that is shown on one line
_HEADINGS = ("run", "state", "time", "loss", "phases")
_BY_URGENCY = ("failed", "interrupted", "running", "missing", "pending", "finished")


def standing_table(runs: Sequence[Standing], title: str, most: int = _MOST_ROWS) -> Group:
    """A table for each command, with a row for each run in order of the swept settings.

    If there are more than `most` runs, the most urgent ones are shown. In a narrow terminal, names
    of runs and phases are cut, but values of swept settings are not.
    """
    by_command: dict[str, list[Standing]] = {}
    for run in runs:
        by_command.setdefault(run.command or "", []).append(run)
    if len(by_command) < 2:
        return Group(_table(runs, title, most))
    titles = {command: f"{title}, kgon {command}" if command else title for command in by_command}
    return Group(*(_table(some, titles[command], most) for command, some in by_command.items()))


def _table(runs: Sequence[Standing], title: str, most: int) -> Table:
    swept = Swept([run.overrides for run in runs])
    shown = sorted(runs, key=lambda run: _BY_URGENCY.index(run.state))[:most]
    shown = sorted(shown, key=lambda run: swept.key(run.overrides))
    left_out = f", {len(runs) - most} more" if len(runs) > most else ""
    table = Table(
        title=f"{title}: {tally(runs) or 'no runs'}{left_out}",
        caption=f"all with {escape(' '.join(swept.shared))}" if swept.shared else None,
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    columns = _columns(shown, swept)
    for heading, cells in columns.items():
        wide = heading not in _HEADINGS and max(map(len, cells)) > _MOST_WIDE
        gives_way = wide or heading in ("run", "phases")
        table.add_column(
            heading,
            no_wrap=not gives_way,
            overflow="ellipsis" if heading == "run" else "fold",
            justify="right" if heading in ("time", "loss") else "left",
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _columns(runs: Sequence[Standing], swept: Swept) -> dict[str, list[Any]]:
    """The cells of each column that has any."""
    columns: dict[str, list[Any]] = {
        "run": [run.run for run in runs],
        "state": [_state(run) for run in runs],
    }
    texts = [swept.texts(run.overrides) for run in runs]
    last = [name.lstrip("+~").rpartition(".")[2] for name in swept.names]
    short = {name: end if last.count(end) == 1 else name
             for name, end in zip(swept.names, last, strict=True)}  # fmt: skip
    if len(short) <= _MOST_NAMES:
        for name, heading in short.items():
            heading += "=" if heading in _HEADINGS else ""
            columns[heading] = [escape(own.get(name, "")) for own in texts]
    else:
        columns["swept"] = [escape(" ".join(f"{short[name]}={text}" for name, text in own.items()))
                            for own in texts]  # fmt: skip
    columns["time"] = [_duration(run.seconds) for run in runs]
    columns["loss"] = ["" if run.loss is None else f"{run.loss:.5f}" for run in runs]
    found = {heading: cells for heading, cells in columns.items() if any(cells)}
    if any(run.phases or run.error for run in runs):
        found["phases"] = [_error(run) or _Phases(run.phases) for run in runs]
    return found


def _state(run: Standing) -> str:
    """The state, and how much is done if the run has not finished."""
    style = _STYLES.get(run.state, "none")
    done = f" {run.progress:.0%}" if run.progress and run.state != "finished" else ""
    return f"[{style}]{run.state}[/{style}]{done}"


def _error(run: Standing) -> Text | None:
    return Text(run.error.splitlines()[0], "red") if run.error else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    # 0:01:02 is shown as 1:02.
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


class _Phases:
    """The number of members in each phase, largest first, on one line; as many as fit."""

    def __init__(self, phases: dict[str, int]):
        most = sorted(phases.items(), key=lambda item: -item[1])
        self.words = [f"{label}:{count}" for label, count in most]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = len("  ".join(self.words))
        return Measurement(min(whole, 1), whole).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[str]:
        for fitting in range(len(self.words), -1, -1):
            cut = ["..."] if fitting < len(self.words) else []
            line = "  ".join(self.words[:fitting] + cut)
            if len(line) <= options.max_width:
                break
        yield line
