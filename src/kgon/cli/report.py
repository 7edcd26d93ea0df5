"""kgon report [DIR...]: one self-contained page about runs."""

import sys
from pathlib import Path

from kgon.cli.terminal import Parser
from kgon.record import run_directory


def main() -> None:
    """Console entry: folders of runs, or folders that hold them."""
    parser = Parser("Make one page, readable without network, about runs.")
    parser.add_folders()
    parser.add_argument(
        "--out", type=Path, help="the page; default: report.html in the first folder"
    )
    arguments = parser.parse_args()
    try:
        found = run_directory.find(arguments.folder)
    except ValueError as error:
        parser.error(str(error))
    runs = []
    for path in found:
        try:
            runs.append(run_directory.load(path))
        except (ValueError, OSError) as error:
            print(f"kgon report: {path} is left out: {error}", file=sys.stderr)
    if not runs:
        sys.exit(1)
    from kgon.record.report import write_report  # not before: it imports torch

    page = arguments.out or arguments.folder[0] / "report.html"
    try:
        write_report(runs, page)
    except PermissionError:
        parser.error(f"{page} cannot be written; choose another file: --out FILE")
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {page}")
