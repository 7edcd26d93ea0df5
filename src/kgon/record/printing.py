"""What `kgon train` prints at the end."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kgon.record.results import Results


def print_results(results: Results, directory: Path, looks: Sequence[str]) -> None:
    """Print the table of final phases, and what to open or type next."""
    console = Console()
    table = Table(title=f"Final phases of {int(results.summary['final/members'])} members")
    for name in ("phase", "members", "loss", "theory", "LLC", "theory", "LLC ok"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for row in results.by_phase:
        table.add_row(
            row.phase,
            str(row.members),
            _fixed(row.loss, 5),
            _fixed(row.theory_loss, 5),
            _fixed(row.llc, 2),
            _fixed(row.theory_llc, 2),
            f"{row.llc_ok} of {row.members}",
        )
    console.print(table)
    console.print(
        f"{results.summary['final/transitions']:.0f} transitions between critical levels. "
        "LLC: mean over estimates with the verdict ok."
    )
    console.print(f"\n  [bold]{directory}[/bold]", highlight=False)
    for path in results.figures.values():
        console.print(f"    {path.relative_to(directory)}", highlight=False)
    for look in (f"kgon report {directory}", *looks):
        console.print(f"  {look}", highlight=False, soft_wrap=True)


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
