"""kgon atlas: the critical points of the population loss, and the passes between phases."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from kgon import files
from kgon.cli.terminal import decimal, print_files
from kgon.figures import atlas as atlas_figures
from kgon.figures import style
from kgon.landscape.catalogue import N_STARTS, PassRow, PointRow, atlas
from kgon.landscape.passes import passes
from kgon.landscape.search import search
from kgon.launch import command_line
from kgon.launch.jobs import check_runs, job
from kgon.record import run_directory
from kgon.theory.atlas import SHIPPED, Atlas, build, file_name
from kgon.tracking.logger import log_results, where_to_look


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    command_line.run("atlas", task, check)


def check(config: DictConfig) -> None:
    """Refuse a wrong config before the job starts, with a ValueError that names the key."""
    check_runs(config)
    least = {"n_features": 1, "n_hidden": 1, "n_starts": 10, "show": 1}
    for name, smallest in least.items():
        value = config[name]
        if name == "n_starts" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ValueError(f"{name} must be a whole number >= {smallest}, got {value}")


@job
def task(config: DictConfig, running: run_directory.Job, logger: Any) -> Callable[[], None]:
    """Load or search the atlas, write its tables and figure, give them to the logger."""
    directory = running.directory
    found = _atlas(config)
    ways = passes(found)
    tables = {
        "points": [asdict(PointRow.of(point, found.n_starts(point.label))) for point in found],
        "passes": [asdict(PassRow.of(way)) for way in ways],
    }
    for name, rows in tables.items():
        directory.save_rows(name, rows)
    if found.found:
        path = directory.path / file_name(config.n_features, config.n_hidden)
        files.write_text(path, found.found.as_json())
    W, b = (np.stack([getattr(point, x).numpy() for point in found]) for x in ("W", "b"))
    directory.save_weights(np.arange(len(found)), W, b)
    figure = atlas_figures.passes(found.points, ways)
    (drawn, *_) = style.save(figure, directory.path / "figures" / "passes")
    summary: dict[str, float | str] = {
        "n_points": len(found),
        "n_phases": len(found.phases),
        "n_passes": len(ways),
    }
    running.report(1.0, summary)
    log_results(logger, summary, tables, {"passes": drawn})
    hints = where_to_look(logger)
    return lambda: _print(config, found, tables, directory.path, [drawn], hints)


def _atlas(config: DictConfig) -> Atlas:
    size = config.n_features, config.n_hidden
    if config.n_starts is None and config.seed == 0:
        return atlas(*size, folder=Path(config.runs.dir) / "atlases")
    found = search(*size, n_starts=config.n_starts or N_STARTS, seed=config.seed, progress=print)
    return build(*size, found, SHIPPED)


def _print(
    config: DictConfig, found: Atlas, tables: dict[str, Any], directory: Path,
    drawn: Sequence[Path], hints: Sequence[str],
) -> None:  # fmt: skip
    console = Console()
    rows = tables["points"]
    table = Table(title=f"n_features = {config.n_features}, n_hidden = {config.n_hidden}: "
                        f"{min(config.show, len(rows))} of {len(rows)} critical points",
                  padding=(0, 0, 0, 1))  # fmt: skip
    table.add_column("label", no_wrap=True)
    for name in ("loss", "kind", "index", "rank", "LLC", "|grad|", "starts"):
        table.add_column(name, justify="right")
    table.add_column("shape")
    for row in rows[: config.show]:
        table.add_row(
            row["label"], f"{row['loss']:.6f}", row["kind"],
            *(decimal(row[name], digits) for name, digits in (("index", 0), ("rank", 0),
                                                              ("llc", 1))),
            f"{row['gradient_norm']:.0e}", str(row["starts"]), row["shape"],
        )  # fmt: skip
    console.print(table)
    ways = Table(title=f"{len(tables['passes'])} passes", padding=(0, 0, 0, 1))
    for name in ("pass", "loss", "from", "to", "barrier", "way back"):
        ways.add_column(name, no_wrap=True)
    for row in tables["passes"][: config.show]:
        barriers = (f"{row[name]:.2g}" for name in ("barrier_first", "barrier_second"))
        ends = (row[name] or "?" for name in ("first", "second"))
        ways.add_row(row["label"], f"{row['loss']:.6f}", *ends, *barriers)
    console.print(ways)
    if found.found:
        chances = (f"{kind} {share:.1%} (of {found.found.starts[kind]:,})"
                   for kind, share in found.missing().items())  # fmt: skip
        console.print("  Chance that one more start finds a new point, by Good and Turing: "
                      + ", ".join(chances), highlight=False)  # fmt: skip
    print_files(console, directory, drawn, hints)
