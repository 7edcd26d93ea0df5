"""kgon atlas: the critical points of the population loss, and the passes between phases."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from kgon import files
from kgon.cli.terminal import decimal, print_files
from kgon.figures import atlas as atlas_figures
from kgon.figures import style
from kgon.landscape.catalogue import N_STARTS, PassRow, PointRow, atlas
from kgon.landscape.passes import Crossing, Pass, crossings, passes
from kgon.landscape.rates import Escape, check_start, escapes
from kgon.landscape.search import search
from kgon.launch import command_line
from kgon.launch.jobs import check_runs, job
from kgon.record import run_directory
from kgon.record.tables import plain, table
from kgon.theory.atlas import SHIPPED, Atlas, build, file_name, point
from kgon.tracking.logger import log_results, where_to_look

TABLES = {"points": PointRow, "passes": PassRow, "crossings": Crossing, "escapes": Escape}
"""The rows of the tables, of the last two with run=DIR and with escape.start=LABEL."""


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
    if config.run is not None:
        _check_run(config)
    escape = config.escape
    for name, smallest in {"n_chains": 10, "n_intervals": 2}.items():
        if not isinstance(escape[name], int) or escape[name] < smallest:
            raise ValueError(f"escape.{name} must be a whole number >= {smallest}, "
                             f"got {escape[name]}")  # fmt: skip
    numbers = OmegaConf.is_list(escape.barriers) and all(
        isinstance(x, int | float) and x > 0 for x in escape.barriers
    )
    if not numbers or not len(escape.barriers):
        raise ValueError(f"escape.barriers must be a list of numbers > 0, got {escape.barriers}")
    if escape.start is not None:
        try:
            check_start(point(escape.start, config.n_features, config.n_hidden))
        except ValueError as error:
            raise ValueError(f"escape.start: {error}") from None


@job
def task(config: DictConfig, running: run_directory.Job, logger: Any) -> Callable[[], None]:
    """Load or search the atlas, write its tables and figure, give them to the logger."""
    directory = running.directory
    found = _atlas(config)
    ways = passes(found)
    records: dict[str, Sequence[Any]] = {
        "points": [PointRow.of(point, found.n_starts(point.label)) for point in found],
        "passes": [PassRow.of(way) for way in ways],
    }
    if config.run is not None:
        weights = run_directory.load(Path(str(config.run))).weights()
        steps, W, b = (torch.from_numpy(weights[name]) for name in ("step", "W", "b"))
        records["crossings"] = crossings(steps, W, b, ways)
    rates = _escapes(config, found, ways)
    if rates:
        records["escapes"] = rates
    for name, some in records.items():
        directory.save_table(name, table(TABLES[name], some))
    tables = {name: [plain(row) for row in some] for name, some in records.items()}
    if found.found:
        path = directory.path / file_name(config.n_features, config.n_hidden)
        files.write_text(path, found.found.as_json())
    directory.save_weights(
        np.arange(len(found)),
        np.stack([point.W.numpy() for point in found]),
        np.stack([point.b.numpy() for point in found]),
    )
    figures = {"passes": atlas_figures.passes(found.points, ways)}
    if rates:
        figures["escapes"] = atlas_figures.escapes(rates)
    folder = directory.path / "figures"
    drawn = {name: style.save(figure, folder / name)[0] for name, figure in figures.items()}
    summary: dict[str, float | str] = {
        "n_points": len(found),
        "n_phases": len(found.phases),
        "n_passes": len(ways),
    }
    running.report(1.0, summary)
    log_results(logger, summary, tables, drawn)
    hints = where_to_look(logger)
    return lambda: _print(config, found, tables, directory.path, [*drawn.values()], hints)


def _check_run(config: DictConfig) -> None:
    folder = Path(str(config.run))
    if not (folder / "weights.safetensors").exists():
        raise ValueError(
            f"run={folder} has no weights.safetensors: it must be a finished run of kgon train "
            "with the callback snapshots"
        )
    model = run_directory.load(folder).config["model"]
    for name in ("n_features", "n_hidden"):
        if model[name] != config[name]:
            raise ValueError(f"run={folder} has {name}={model[name]}, not {config[name]}")


def _atlas(config: DictConfig) -> Atlas:
    size = config.n_features, config.n_hidden
    if config.n_starts is None and config.seed == 0:
        return atlas(*size, folder=Path(config.runs.dir) / "atlases")
    found = search(*size, n_starts=config.n_starts or N_STARTS, seed=config.seed, progress=print)
    return build(*size, found, SHIPPED)


def _escapes(config: DictConfig, found: Atlas, ways: Sequence[Pass]) -> list[Escape]:
    """Rates of leaving escape.start, at temperatures relative to its lowest barrier."""
    if config.escape.start is None:
        return []
    start = found[str(config.escape.start)]
    heights = [way.point.loss - start.loss for way in ways
               if start.label in way.ends and way.ends[0] != way.ends[1]]  # fmt: skip
    if not heights:
        raise ValueError(f"escape.start={start.label}: the atlas has no pass to another phase")
    temperatures = [min(heights) / barrier for barrier in config.escape.barriers]
    return escapes(
        start, found, ways, temperatures, n_chains=config.escape.n_chains,
        n_intervals=config.escape.n_intervals, seed=config.seed,
    )  # fmt: skip


def _print(
    config: DictConfig, found: Atlas, tables: dict[str, Any], directory: Path,
    drawn: Sequence[Path], hints: Sequence[str],
) -> None:  # fmt: skip
    console = Console()
    rows = tables["points"]
    size = f"n_features = {config.n_features}, n_hidden = {config.n_hidden}"
    points = Table(title=f"{size}: {_shown(config.show, rows, 'critical points')}",
                   padding=(0, 0, 0, 1))  # fmt: skip
    points.add_column("label", no_wrap=True)
    for name in ("loss", "kind", "index", "rank", "LLC", "|grad|", "starts"):
        points.add_column(name, justify="right")
    points.add_column("shape")
    for row in rows[: config.show]:
        points.add_row(
            row["label"], f"{row['loss']:.6f}", row["kind"],
            *(decimal(row[name], digits) for name, digits in (("index", 0), ("rank", 0),
                                                              ("llc", 1))),
            f"{row['gradient_norm']:.0e}", str(row["starts"]), row["shape"],
        )  # fmt: skip
    console.print(points)
    ways = Table(title=_shown(config.show, tables["passes"], "passes"), padding=(0, 0, 0, 1))
    for name in ("pass", "loss", "from", "to", "barrier", "way back"):
        ways.add_column(name, no_wrap=True)
    for row in tables["passes"][: config.show]:
        barriers = (f"{row[name]:.2g}" for name in ("barrier_first", "barrier_second"))
        ends = (row[name] or "?" for name in ("first", "second"))
        ways.add_row(row["label"], f"{row['loss']:.6f}", *ends, *barriers)
    console.print(ways)
    if "crossings" in tables:
        _print_crossings(console, tables["crossings"])
    if "escapes" in tables:
        _print_escapes(console, tables["escapes"])
    if found.found:
        chances = (f"{kind} {share:.1%} (of {found.found.starts[kind]:,})"
                   for kind, share in found.missing().items())  # fmt: skip
        console.print("  Chance that one more start finds a new point, by Good and Turing: "
                      + ", ".join(chances), highlight=False)  # fmt: skip
    print_files(console, directory, drawn, hints)


def _shown(most: int, rows: Sequence[Any], what: str) -> str:
    """A title that says how many of the rows are shown."""
    return f"{most} lowest of {len(rows)} {what}" if most < len(rows) else f"{len(rows)} {what}"


def _print_escapes(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    shown = Table(title="Leaving a phase, by Langevin dynamics at the temperature T")
    for name in ("from", "to", "T", "barrier / T", "Eyring-Kramers", "measured", "error", "ratio"):
        shown.add_column(name, justify="right")
    for row in rows:
        share = row["measured"] / row["predicted"] if row["predicted"] else float("nan")
        shown.add_row(
            row["start"], row["end"], f"{row['temperature']:.2e}",
            decimal(row["barrier"] / row["temperature"], 1),
            *(f"{row[name]:.2e}" for name in ("predicted", "measured", "error")),
            decimal(share, 2),
        )  # fmt: skip
    console.print(shown)


def _print_crossings(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Transitions by kind: how many, how many over a pass, and how close they came to it."""
    shown = Table(title="Transitions of the run")
    for name in ("from", "to", "members", "nearest pass", "median distance", "least", "largest"):
        shown.add_column(name, justify="right")
    kinds: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        distances = kinds.setdefault((row["start"], row["end"], row["way"]), [])
        distances.append(float("nan") if row["distance"] is None else row["distance"])
    for (start, end, way), distances in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        summary = (float(f(distances)) for f in (np.median, np.min, np.max))
        shown.add_row(start, end, str(len(distances)), way or "-",
                      *(decimal(x, 3) for x in summary))  # fmt: skip
    console.print(shown)
