"""kgon sync [DIR...]: send recorded runs to W&B, and say what became of each."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

from kgon.cli.terminal import Parser


def main() -> None:
    """Console entry: folders of runs; status 1 if anything failed, 2 for bad input, 130 for
    Ctrl-C."""
    parser = Parser(
        "Send to W&B what it lacks of recorded runs. It asks the server what it has, "
        "so it may be interrupted and called again."
    )
    parser.add_folders("a run, or a folder of runs")
    parser.add_argument(
        "--parallel", type=int, default=8, help="runs sent side by side; default: 8"
    )
    arguments = parser.parse_args()
    if arguments.parallel < 1:
        parser.error(f"--parallel must be at least 1, got {arguments.parallel}")
    # Heavy imports, which --help need not wait for.
    from kgon.tracking import account
    from kgon.tracking.sync import find, sync

    try:
        records = find(arguments.folder)
        api = account.connect(account.ANSWER_SECONDS)
    except ValueError as error:
        parser.error(str(error))
    except account.NoAnswer as error:
        print(f"kgon sync: error: {error}", file=sys.stderr)
        sys.exit(1)
    counts: Counter[str] = Counter()

    def report(folder: Path, state: str, detail: str) -> None:
        counts[state] += 1
        print(f"{state:<13} {folder}{f': {detail}' if detail else ''}", flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sync(records, api, arguments.parallel, report)
    except KeyboardInterrupt:
        print(f"interrupted: {_in_words(counts)}; call it again to send the rest", flush=True)
        os._exit(130)  # without waiting for the server; the client's process ends with this one
    print(_in_words(counts))
    sys.exit(1 if counts["failed"] else 0)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())
