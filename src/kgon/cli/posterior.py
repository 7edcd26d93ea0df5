"""kgon posterior: phases of the posterior against n, evidence, transitions, predictions."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from kgon.cli import posterior_tables
from kgon.cli.terminal import print_files
from kgon.figures import posterior as posterior_figures
from kgon.figures import style
from kgon.launch import command_line
from kgon.launch import config as configs
from kgon.launch.jobs import check_runs, job
from kgon.posterior.cell import Settings
from kgon.posterior.phase_diagram import (
    AgreementRow,
    ChainsRow,
    PhaseLLCRow,
    PosteriorRow,
    ShareRow,
    Tables,
)
from kgon.posterior.sample import check_sizes, sample_phase_diagram
from kgon.posterior.transitions import (
    Findings,
    PredictedTransition,
    SampledTransition,
    predicted_transitions,
    sampled_transitions,
)
from kgon.record import run_directory
from kgon.record.tables import plain, table
from kgon.tracking.logger import log_results, where_to_look

TABLES = {
    "posteriors": PosteriorRow,
    "shares": ShareRow,
    "agreement": AgreementRow,
    "llc": PhaseLLCRow,
    "chains": ChainsRow,
    "transitions": SampledTransition,
    "predictions": PredictedTransition,
}
"""The rows of the tables; there are `chains` with nuts.run=true."""


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    command_line.run("posterior", task, check)


def check(config: DictConfig) -> None:
    """Refuse a wrong config before the job starts, with a ValueError that names the key."""
    check_runs(config)
    if not isinstance(config.nuts.run, bool):
        raise ValueError(f"nuts.run must be true or false, got {config.nuts.run}")
    plain = configs.resolved(config)
    check_sizes(plain["n_samples"], plain["n_datasets"])
    _settings(config)
    if config.nuts.run and importlib.util.find_spec("numpyro") is None:
        raise ValueError("nuts.run=true needs numpyro, an extra: pip install 'kgon[nuts]'")
    workers = config.runs.workers
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"runs.workers must be a whole number >= 1, got {workers}")
    _pair(config)
    for label, value in (config.paper_llc or {}).items():
        if not isinstance(value, int | float):
            raise ValueError(f"paper_llc of {label} must be a number, got {value}")


@job
def task(config: DictConfig, running: run_directory.Job, logger: Any) -> Callable[[], None]:
    """Sample what is missing, write tables and figures, give them to the logger."""
    directory = running.directory

    def report(finished: int, total: int, cell: Tables) -> None:
        (row,) = cell.posteriors
        print(f"{finished}/{total}: n = {row.n_samples}, data set {row.dataset}: {row.verdict}",
              flush=True)  # fmt: skip
        running.report(finished / total, {})

    diagram = sample_phase_diagram(
        directory.path / "points",
        list(config.n_samples),
        config.n_datasets,
        _settings(config),
        workers=config.runs.workers,
        progress=report,
    )
    found = Findings(diagram, sampled_transitions(diagram), _predicted(config), _pair(config))
    records = _records(found)
    for name, rows in records.items():
        directory.save_table(name, table(TABLES[name], rows))
    drawn = _draw(found, directory.path / "figures")
    # A dashboard gets the small tables; all of them are in the run's directory.
    small = {name: records[name] for name in ("posteriors", "llc", "predictions")}
    small["transitions"] = [t for t in found.sampled if t.notable]
    summary = found.summary()
    running.report(1.0, summary)
    tables = {name: [plain(row) for row in rows] for name, rows in small.items()}
    log_results(logger, summary, tables, drawn)
    hints = where_to_look(logger)
    return lambda: _print(config, found, directory.path, [*drawn.values()], hints)


def _settings(config: DictConfig) -> Settings:
    plain = configs.resolved(config)
    nuts = {name: value for name, value in plain["nuts"].items() if name != "run"}
    return Settings(
        **{k: plain["model"][k] for k in ("n_features", "n_hidden", "importance")},
        **{k: plain[k] for k in ("noise_std", "prior_std", "seed", "smc")},
        nuts=nuts if plain["nuts"]["run"] else None,
    )


def _pair(config: DictConfig) -> tuple[str, str] | None:
    """The two families whose crossing is the headline; None where there is only one."""
    pair, c = config.pair, config.model.n_features
    if pair is None:
        # With n_hidden = 2, draws with four or fewer features on are all counted as 4-gons.
        return (str(c - 1), str(c)) if c >= 5 else None
    ok = OmegaConf.is_list(pair) and len(pair) == 2 and pair[0] != pair[1]
    if not ok or not all(isinstance(k, int) and 0 <= k <= c for k in pair):
        raise ValueError(
            f"pair must be two different numbers of vertices <= n_features={c}, such as "
            f"[5,6], got {pair}"
        )
    return str(pair[0]), str(pair[1])


def _predicted(config: DictConfig) -> Any:
    if config.model.importance is not None:
        return []
    llc = {str(k): float(v) for k, v in (config.paper_llc or {}).items()}
    size = config.model.n_features, config.model.n_hidden
    return predicted_transitions(*size, prior_std=config.prior_std, llc=llc)


def _records(found: Findings) -> dict[str, Sequence[Any]]:
    diagram = found.diagram
    return {
        "posteriors": diagram.posteriors,
        "shares": diagram.shares,
        "agreement": diagram.agreement,
        "llc": diagram.llc,
        **({"chains": diagram.chains} if diagram.chains else {}),
        "transitions": found.sampled,
        "predictions": found.predicted,
    }


def _draw(found: Findings, folder: Path) -> dict[str, Path]:
    diagram, crossing = found.diagram, found.crossing
    figures = {
        "posterior_phases": posterior_figures.phases(
            diagram,
            predicted=posterior_tables.predicted_sizes(found.prediction(found.pair)),
            pair=found.pair,
            crossing=crossing.location if crossing else (math.nan, math.nan),
        ),
        "log_evidence": posterior_figures.log_evidence(diagram),
        "llc": posterior_figures.llc(diagram),
        "starts": posterior_figures.starts(diagram),
    }
    return {
        name: style.save(figure, folder / name)[0]
        for name, figure in figures.items()
        if figure is not None
    }


def _print(
    config: DictConfig,
    found: Findings,
    directory: Path,
    drawn: Sequence[Path],
    hints: Sequence[str],
) -> None:
    console = Console()
    posterior_tables.print_shares(console, found.diagram)
    posterior_tables.print_chains(console, found.diagram)
    posterior_tables.print_transitions(console, found, config.noise_std)
    posterior_tables.print_llc(console, found.diagram)
    if config.model.importance is not None:
        console.print(
            "  Critical levels and predictions are known for equal importance only: labels here "
            "are by output, without theory.",
            highlight=False,
        )
    print_files(console, directory, drawn, hints)
