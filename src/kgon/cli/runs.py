"""kgon runs [DIR...]: how runs and sweeps stand."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from kgon.launch.standing import standing_table
from kgon.record import run_directory, sweeps

_AT_WORK = ("pending", "running")
_LOOK_SECONDS = 1.0


def main() -> None:
    """Console entry: folders of runs; exit status 1 if one of those shown failed."""
    parser = argparse.ArgumentParser(
        prog=sys.argv[0],
        description="How runs stand: state, overrides, progress, time, loss, phases, error. "
        "The exit status is 1 if a run that is shown failed, else 0.",
    )
    parser.add_argument(
        "folder", nargs="*", type=Path, default=[Path("multirun")],
        help="a run, or a folder of runs (default: multirun)",
    )  # fmt: skip
    parser.add_argument(
        "--state",
        action="append",
        choices=run_directory.STATES,
        help="only runs in this state; repeatable",
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="WORD",
        help="only runs with this override, seed=3 for instance; repeatable",
    )  # fmt: skip
    parser.add_argument("--sweep", help="only the points of this sweep; `last` for the newest one")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    parser.add_argument("--follow", action="store_true", help="show it until all has ended")
    arguments = parser.parse_args()
    if arguments.json and arguments.follow:
        parser.error("--json and --follow do not go together")
    try:
        rows = _rows(arguments)
        if arguments.follow:
            rows = _follow(arguments)
    except ValueError as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps(rows, indent=1))
    elif not arguments.follow:
        Console().print(standing_table(rows, _title(arguments), most=len(rows)))
    sys.exit(any(row["state"] == "failed" for row in rows))


def _title(arguments: argparse.Namespace) -> str:
    return " ".join(map(str, arguments.folder))


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found: Sequence[Path]
    if arguments.sweep:
        known = [sweep for folder in arguments.folder for sweep in sweeps.known(folder)]
        if arguments.sweep == "last":
            known = sorted(known, key=lambda sweep: sweep.changed)[-1:]
        else:
            known = [sweep for sweep in known if sweep.name == arguments.sweep]
        if not known:
            raise ValueError(f"no sweep {arguments.sweep!r} in {_title(arguments)}")
        found = [path for sweep in known for path in sweep.points()]
    else:
        found = run_directory.find(arguments.folder)
    return [
        row
        for row in sweeps.standing(found)
        if (not arguments.state or row["state"] in arguments.state)
        and all(word in row["overrides"] for word in arguments.where)
    ]


def _follow(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Show the table anew every second until no run goes on."""
    with Live(refresh_per_second=4) as live:
        while True:
            rows = _rows(arguments)
            live.update(standing_table(rows, _title(arguments)))
            if not any(row["state"] in _AT_WORK for row in rows):
                return rows
            time.sleep(_LOOK_SECONDS)
