"""kgon runs [DIR...]: the states of runs and sweeps."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.live import Live

from kgon.cli.terminal import Parser
from kgon.launch.standing import standing_table
from kgon.record import run_directory, sweeps
from kgon.record.sweeps import Standing

_POLL_SECONDS = 1.0


def main() -> None:
    """Console entry: folders of runs; exit status 1 if one of the runs shown failed."""
    parser = Parser(
        "Show the state of runs: what was swept, progress, time, loss, phases, error. "
        "The exit status is 1 if one of the runs shown failed, else 0."
    )
    parser.add_folders()
    parser.add_argument(
        "--state",
        action="append",
        choices=run_directory.STATES,
        help="only runs in this state; repeatable",
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="WORD",
        help="only runs with this override, such as seed=3; repeatable",
    )  # fmt: skip
    parser.add_argument("--sweep", help="only the points of this sweep; `last` for the newest one")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    parser.add_argument(
        "--follow", action="store_true", help="update the table until all have ended"
    )
    arguments = parser.parse_args()
    if arguments.json and arguments.follow:
        parser.error("--json and --follow cannot be combined")
    try:
        runs = _follow(arguments) if arguments.follow else _runs(arguments)
    except ValueError as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps([asdict(run) for run in runs], indent=1))
    elif not arguments.follow:
        Console().print(standing_table(runs, _title(arguments), most=len(runs)))
    sys.exit(any(run.state == "failed" for run in runs))


def _title(arguments: Namespace) -> str:
    return " ".join(map(str, arguments.folder))


def _runs(arguments: Namespace) -> list[Standing]:
    found: Sequence[Path]
    if arguments.sweep:
        known = [sweep for folder in arguments.folder for sweep in sweeps.known(folder)]
        if arguments.sweep == "last":
            known = sorted(known, key=lambda sweep: sweep.folder.stat().st_mtime)[-1:]
        else:
            known = [sweep for sweep in known if sweep.name == arguments.sweep]
        if not known:
            raise ValueError(f"no sweep {arguments.sweep!r} in {_title(arguments)}")
        found = [path for sweep in known for path in sweep.points()]
    else:
        found = run_directory.find(arguments.folder)
    return [
        run
        for run in map(sweeps.standing, found)
        if (not arguments.state or run.state in arguments.state)
        and all(word in run.overrides for word in arguments.where)
    ]


def _follow(arguments: Namespace) -> list[Standing]:
    """Update the table every second until no run is pending or running."""
    with Live(refresh_per_second=4) as live:
        while True:
            runs = _runs(arguments)
            live.update(standing_table(runs, _title(arguments)))
            if not any(run.state in ("pending", "running") for run in runs):
                return runs
            time.sleep(_POLL_SECONDS)
