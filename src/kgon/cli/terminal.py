"""What commands have in common: the options of those without a config, and printed files."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console


class Parser(argparse.ArgumentParser):
    """The options of a command without a config; an error in them is one line."""

    def __init__(self, description: str):
        super().__init__(prog=sys.argv[0], description=description)

    def add_folders(self, what: str = "a run, a sweep, or a folder of runs") -> None:
        """Add the argument `folder`, a list."""
        self.add_argument(
            "folder",
            nargs="*",
            type=Path,
            default=[Path("multirun")],
            help=f"{what}; default: multirun",
        )

    def error(self, message: str) -> NoReturn:
        """End the process with one line and status 2."""
        if message.startswith("unrecognized"):
            options = (action.option_strings[-1:] for action in self._actions)
            message += f"; the options are {', '.join(word for own in options for word in own)}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def decimal(value: float | None, digits: int) -> str:
    """A number with so many decimals; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def print_files(
    console: Console, directory: Path, figures: Sequence[Path], hints: Sequence[str]
) -> None:
    """Print a run's directory, its figures, and what to open or type next."""
    console.print(f"\n  [bold]{directory}[/bold]", highlight=False)
    for path in figures:
        console.print(f"    {path.relative_to(directory)}", highlight=False)
    for hint in hints:
        console.print(f"  {hint}", highlight=False, soft_wrap=True)
