"""kgon report DIR...: one self-contained page about runs."""

import argparse
import sys
from pathlib import Path

from kgon.record import run_directory


def main() -> None:
    """Console entry: folders of runs, or folders that hold them."""
    parser = argparse.ArgumentParser(
        prog=sys.argv[0], description="Make one page, readable without network, about runs."
    )
    parser.add_argument("folder", nargs="+", type=Path, help="a run, or a folder of runs")
    parser.add_argument(
        "--out", type=Path, help="the page; default: report.html in the first folder"
    )
    arguments = parser.parse_args()
    try:
        found = run_directory.find(arguments.folder)
    except ValueError as error:
        parser.error(str(error))
    from kgon.record.report import write_report  # not before: it imports torch

    page = write_report(
        [run_directory.load(path) for path in found],
        arguments.out or arguments.folder[0] / "report.html",
    )
    print(f"{len(found)} run{'s' if len(found) > 1 else ''}: {page}")
