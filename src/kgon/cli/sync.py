"""kgon sync [DIR...]: send recorded runs to W&B, and say what became of each."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from kgon.tracking import account
from kgon.tracking.account import Server
from kgon.tracking.sync import Outcome, find, sync


def main() -> None:
    """Console entry: folders of runs; status 1 if anything failed, 2 for bad input, 130 for
    Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog=sys.argv[0],
        description="Send what W&B has not got yet: runs recorded offline, and the rest of online "
        "ones. It may be interrupted and called again.",
    )
    parser.add_argument(
        "folder",
        nargs="*",
        type=Path,
        default=[Path("multirun")],
        help="a run, or a folder of runs; default: multirun",
    )
    parser.add_argument(
        "--parallel", type=int, default=8, help="runs sent side by side; default: 8"
    )
    arguments = parser.parse_args()
    if arguments.parallel < 1:
        parser.error(f"--parallel must be at least 1, got {arguments.parallel}")
    try:
        folders = find(arguments.folder)
    except ValueError as error:
        parser.error(str(error))
    key = account.api_key()
    if key is None:
        parser.error("no W&B API key is configured; run: wandb login")
    server = Server(account.base_url(), key)
    counts: Counter[str] = Counter()

    def report(outcome: Outcome) -> None:
        counts[outcome.state] += 1
        _print(outcome)

    try:
        sync(folders, server, arguments.parallel, report)
    except KeyboardInterrupt:
        print(f"interrupted: {_in_words(counts)}; call it again to send the rest", flush=True)
        os._exit(130)  # threads may still be waiting for the server
    print(_in_words(counts))
    sys.exit(1 if counts["failed"] else 0)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing to send"


def _print(outcome: Outcome) -> None:
    detail = f": {outcome.detail}" if outcome.detail else ""
    print(f"{outcome.state:<13} {outcome.folder}{detail}", flush=True)
