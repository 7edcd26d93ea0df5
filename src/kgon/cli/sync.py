"""kgon sync [DIR...]: send recorded runs to W&B, and say what became of each."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from kgon import wandb_account
from kgon.sync import Outcome, find, sync
from kgon.wandb_account import Server


def main() -> None:
    """Console entry: folders of runs; status 1 if anything failed, 2 for bad input."""
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
    key = wandb_account.api_key()
    if key is None:
        parser.error("no W&B API key is configured; run: wandb login")
    server = Server(wandb_account.base_url(), key)
    try:
        outcomes = sync(folders, server, arguments.parallel, _print)
    except KeyboardInterrupt:
        print("interrupted; call it again to go on", file=sys.stderr)
        sys.exit(130)
    counts = Counter(outcome.state for outcome in outcomes)
    print(", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing to send")
    sys.exit(1 if counts["failed"] else 0)


def _print(outcome: Outcome) -> None:
    detail = f": {outcome.detail}" if outcome.detail else ""
    print(f"{outcome.state:<13} {outcome.folder}{detail}", flush=True)
