"""What the commands print alike."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


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
