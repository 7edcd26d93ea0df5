"""kgon llc: learning coefficients at critical points or at a training run's snapshots."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from kgon.cli.artifacts import downloaded
from kgon.cli.llc_table import Rows, calibrated_table, estimates_table
from kgon.cli.terminal import print_files
from kgon.figures import llc as llc_figures
from kgon.figures import style
from kgon.launch import command_line
from kgon.launch.jobs import build, check_runs, dtype_of, job
from kgon.llc import studies
from kgon.llc.estimate import check_sampler
from kgon.llc.inputs import check_memory, default_localization
from kgon.llc.published import FOUR_GONS, PAPER, REPRODUCTION
from kgon.llc.studies import CalibratedPoint
from kgon.llc.study_rows import (
    ChainSettings,
    ChosenEstimate,
    CriticalPointEstimate,
    GridEstimate,
    SnapshotEstimate,
)
from kgon.llc.verdict import VERDICTS
from kgon.posterior.cell import check_whole
from kgon.record import run_directory
from kgon.record.tables import plain, table
from kgon.theory.atlas import point
from kgon.theory.critical import CriticalPoint, cross_polytope
from kgon.theory.loss import importance_weights
from kgon.tracking.artifacts import FORM
from kgon.tracking.logger import log_artifacts, log_results, log_use, where_to_look
from kgon.training.datamodule import EnsembleData

TABLES = {
    "estimates": CriticalPointEstimate, "chosen": ChosenEstimate, "calibration": GridEstimate
}  # fmt: skip
"""The rows of the tables at critical points: `estimates`, or the other two with calibrate=true."""
TABLES_OF_A_RUN = {"estimates": SnapshotEstimate}
"""The rows of the table with run=DIR."""


@dataclass(frozen=True)
class Found:
    """What a job found.

    Attributes:
        records: the rows of each table by name; the first one is the result, printed and
            summarised.
        figures: by name.
        notes: lines printed below the table.
    """

    records: dict[str, Sequence[Any]]
    figures: dict[str, Any]
    notes: list[str]

    @property
    def tables(self) -> dict[str, Rows]:
        """The tables as rows by column."""
        return {name: [plain(row) for row in records] for name, records in self.records.items()}


def main() -> None:
    """Console entry: Hydra overrides from the command line; run= may name a W&B artifact."""
    sys.argv[1:] = downloaded("llc", sys.argv[1:])
    command_line.run("llc", task, check)


def check(config: DictConfig) -> None:
    """Refuse a wrong config before the job starts, with a ValueError that names the key."""
    check_runs(config)
    dtype_of(config)
    if config.loss not in ("population", "sample"):
        raise ValueError(f"loss must be population or sample, got {config.loss}")
    for name in ("n_features", "n_hidden"):
        check_whole(f"model.{name}", config.model[name], 1)
    settings = _settings(config, _sizes(config))
    for chains in settings.values():
        check_sampler(build(config.sampler), chains.lr)
    if config.discard is not None and not 0 <= config.discard <= 1:
        raise ValueError(f"discard must lie in [0, 1] or be null, got {config.discard}")
    if config.run is None:
        n_estimates = len(_points(config))
        if config.calibrate:
            _check_grid(config.calibration)
            n_estimates *= math.prod(len(values) for values in _grid(config).values())
    else:
        if config.calibrate:
            raise ValueError("calibrate=true needs critical points: remove run=")
        for name in ("snapshots", "members"):
            if not (isinstance(config[name], int) and config[name] >= 1):
                raise ValueError(f"{name} must be a number >= 1, got {config[name]}")
        _check_run(config)
        if len(settings) > 1:
            raise ValueError(f"n_samples must be one number with run=DIR, got {config.n_samples}")
        n_estimates = config.snapshots * config.members
    chains = next(iter(settings.values()))
    check_memory(chains.n_draws, chains.budget, chains.n_chains, n_estimates)


@job
def task(config: DictConfig, running: run_directory.Job, logger: Any) -> Callable[[], None]:
    """Estimate, write tables and figures, give them to the logger."""
    study = _along_training if config.run else _calibrated if config.calibrate else _at_points
    found: Found = study(config)
    directory = running.directory
    kinds = TABLES_OF_A_RUN if config.run else TABLES
    for name, records in found.records.items():
        directory.save_table(name, table(kinds[name], records))
    drawn = {
        name: style.save(figure, directory.path / "figures" / name)[0]
        for name, figure in found.figures.items()
    }
    summary = _summary(found)
    running.report(1.0, summary)
    log_results(logger, summary, found.tables, drawn)
    artifacts = {"llc": "config.yaml " + " ".join(f"{name}.parquet" for name in found.tables)}
    log_artifacts(logger, directory.path, artifacts, summary, {})
    if config.run:
        log_use(logger, Path(str(config.run)))
    hints = where_to_look(logger)
    return lambda: _print(found, directory.path, [*drawn.values()], hints)


# ------------------------------------------------------------------------------------- studies


def _at_points(config: DictConfig) -> Found:
    points = _points(config)
    records = studies.at_critical_points(
        points, _settings(config, _sizes(config)), loss=config.loss, seed=config.seed,
        discard=config.discard, dtype=dtype_of(config), sampler=build(config.sampler),
    )  # fmt: skip
    rows = [plain(record) for record in records]
    sources = {record.source for record in records}
    marks = {PAPER: "published, with SGLD at localization 0.1", REPRODUCTION: "*, likewise"}
    notes = [f"{mark}: {source}" for source, mark in marks.items() if source in sources]
    notes += _reasons(rows)
    notes += _on_cross_polytopes(((p.label, p.llc) for p in points), config.model.n_hidden)
    return Found({"estimates": records}, {"llc": llc_figures.against_theory(rows)}, notes)


def _calibrated(config: DictConfig) -> Found:
    calibrated = studies.calibrated(
        _points(config), _settings(config, _sizes(config)), **_grid(config), loss=config.loss,
        seed=config.seed, dtype=dtype_of(config), sampler=build(config.sampler),
    )  # fmt: skip
    drawn = {f"calibration-{each.point.label}-{each.n_samples}": _drawn(each)
             for each in calibrated}  # fmt: skip
    notes = ["chosen: of the ok estimates the first nbeta, then the smallest localization"]
    notes += _on_cross_polytopes(
        ((each.point.label, each.point.llc) for each in calibrated), config.model.n_hidden
    )
    records: dict[str, Sequence[Any]] = {
        "chosen": [each.chosen for each in calibrated],
        "calibration": [estimate for each in calibrated for estimate in each.grid],
    }
    return Found(records, drawn, notes)


def _drawn(calibrated: CalibratedPoint) -> Any:
    calibration, place = calibrated.calibration, calibrated.place
    return llc_figures.calibration(
        calibrated.point.label,
        calibration.localization,
        calibration.nbeta,
        calibration.estimate.mean[..., place],
        calibration.estimate.stderr[..., place],
        calibration.estimate.verdict[..., place] == VERDICTS.index("ok"),
        tuple(calibration.chosen[place].tolist()) if calibrated.chosen.estimate else None,
        calibrated.point.llc,
    )


def _along_training(config: DictConfig) -> Found:
    run = run_directory.load(Path(str(config.run)))
    weights = run.weights()
    every = len(weights["step"]) - 1
    kept = np.unique(np.linspace(0, every, config.snapshots).round().astype(int))
    data = _data(run, config.members)
    W, b = (
        torch.from_numpy(np.ascontiguousarray(weights[k][kept][:, : len(data.members)])).to(
            dtype_of(config)
        )
        for k in ("W", "b")
    )
    model = run.config["model"]
    importance = importance_weights(model["importance"], model["n_features"])
    train_loss = data.train_loss(importance) if config.loss == "sample" else None
    n = data.n_samples if config.loss == "sample" else _sizes(config)[0]
    assert n is not None  # `check` refuses loss=sample for a run without a data set
    points = data.critical_points(W.shape[-2], importance)
    records = studies.along_training(
        train_loss or data.expected_loss(importance), W, b,
        steps=weights["step"][kept].tolist(), members=data.members, points=points,
        settings=_settings(config, [n])[n], loss=config.loss, seed=config.seed,
        discard=config.discard, sampler=build(config.sampler),
    )  # fmt: skip
    if not records:
        raise ValueError(f"run={config.run}: all members had diverged before these snapshots")
    rows = [plain(record) for record in records]
    drawn = {"llc": llc_figures.along_training(rows, points)}
    notes = ["theory is that of the phase's critical point", *_reasons(rows)]
    notes += _on_cross_polytopes(((r.phase, r.theory) for r in records), W.shape[-2])
    return Found({"estimates": records}, drawn, notes)


def _reasons(rows: Rows) -> list[str]:
    """A line for each verdict other than ok and its reason, with the number of estimates."""
    counts = Counter((row["verdict"], row["reason"]) for row in rows if row["verdict"] != "ok")
    return [f"{verdict}: {reason} ({count} of {len(rows)})"
            for (verdict, reason), count in counts.items()]  # fmt: skip


def _on_cross_polytopes(found: Iterable[tuple[str, float | None]], n_hidden: int) -> list[str]:
    """What theory is at a cross-polytope, if one of the labels, given with its theory, has it."""
    shape = cross_polytope(n_hidden)
    if shape not in {label.rstrip("+") for label, theory in found if theory is not None}:
        return []
    listed = f"; the paper lists {FOUR_GONS}" if n_hidden == 2 else ""
    return [f"theory at {shape}, with any number of +, is the volume exponent{listed}"]


# ------------------------------------------------------------------------------- from the config


def _list(value: Any) -> list[Any]:
    return list(value) if OmegaConf.is_list(value) else [value]


def _sizes(config: DictConfig) -> list[int]:
    sizes = _list(config.n_samples)
    if not sizes or not all(isinstance(n, int) and n >= 2 for n in sizes):
        raise ValueError(f"n_samples must be one or more numbers >= 2, got {config.n_samples}")
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"n_samples has a number twice: {config.n_samples}")
    return sizes


def _settings(config: DictConfig, sizes: Sequence[int]) -> dict[int, ChainSettings]:
    """The chains' settings by sample size."""
    settings = {}
    for i, n in enumerate(sizes):
        nbeta = _at_size(config, "nbeta", i)
        nbeta = n / math.log(n) if nbeta is None else nbeta
        localization = config.localization
        if localization is None:
            localization = default_localization(max(nbeta, 0.0))
        settings[n] = ChainSettings(
            nbeta, localization, config.n_chains, config.target, config.budget,
            _at_size(config, "lr", i), config.n_draws, config.n_burnin,
        )  # fmt: skip
    return settings


def _at_size(config: DictConfig, name: str, i: int) -> float | None:
    """The value of nbeta or lr at the i-th sample size."""
    values = _list(config[name])
    if OmegaConf.is_list(config[name]) and len(values) != len(_sizes(config)):
        raise ValueError(
            f"{name} must be a number or a list as long as n_samples={config.n_samples}, "
            f"got {config[name]}"
        )
    value = values[i if len(values) > 1 else 0]
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value}")
    return value


def _grid(config: DictConfig) -> dict[str, list[float]]:
    names = ("localization", "nbeta_factors")
    return {name: list(config.calibration[name]) for name in names}


def _check_grid(asked: DictConfig) -> None:
    for name in ("localization", "nbeta_factors"):
        values = asked[name]
        numbers = OmegaConf.is_list(values) and all(isinstance(v, int | float) for v in values)
        if not numbers or not values or min(values) < 0:
            raise ValueError(
                f"calibration.{name} must be a list of one or more numbers, got {values}"
            )


def _points(config: DictConfig) -> list[CriticalPoint]:
    labels = [str(label) for label in _list(config.point)]
    if not labels:
        raise ValueError("point must be one or more labels such as 5, 5+ or 6, got []")
    if len(set(labels)) < len(labels):
        raise ValueError(f"point has a label twice: {config.point}")
    try:
        size = config.model.n_features, config.model.n_hidden
        return [point(label, *size) for label in labels]
    except ValueError as error:
        raise ValueError(f"point: {error}") from None


def _check_run(config: DictConfig) -> None:
    folder = Path(str(config.run))
    if not (folder / "status.json").exists():
        raise ValueError(
            f"run={folder} is not a run directory: it has no status.json; "
            f"a W&B artifact is named {FORM}"
        )
    if not (folder / "weights.safetensors").exists():
        raise ValueError(
            f"run={folder} has no weights.safetensors: it must be a finished run of kgon train "
            "with the callback snapshots"
        )
    settings = run_directory.load(folder).config
    try:
        build(OmegaConf.create(settings).datamodule.distribution)
    except ValueError as error:  # a distribution of the user's that is not found from here
        raise ValueError(f"run={folder}: {error}") from error
    if config.loss == "sample" and settings["n_samples"] is None:
        raise ValueError(
            f"loss=sample: run={folder} has no data set (it was trained on fresh inputs, "
            "n_samples=null); use loss=population"
        )


def _data(run: run_directory.Run, count: int) -> EnsembleData:
    """The run's data for its first members; a member's data set does not depend on the others."""
    node = OmegaConf.create(run.config).datamodule
    data: EnsembleData = build(node)
    if count < len(data.members):
        node.members = list(data.members)[:count]
        data = build(node)
    return data


# ------------------------------------------------------------------------------------- results


def _summary(found: Found) -> dict[str, float | str]:
    rows = next(iter(found.tables.values()))
    shares = {v: sum(row["verdict"] == v for row in rows) / len(rows) for v in VERDICTS}
    summary: dict[str, float | str] = {f"llc/share_{v}": share for v, share in shares.items()}
    for row in rows:
        if "label" in row and row["llc"] is not None:
            summary[f"llc/{row['label']}/{row['n_samples']}"] = row["llc"]
            summary[f"llc_stderr/{row['label']}/{row['n_samples']}"] = row["stderr"]
    return summary


def _print(found: Found, directory: Path, drawn: Sequence[Path], hints: Sequence[str]) -> None:
    """Print the first table, its notes, and what to open or type next."""
    console = Console()
    name, rows = next(iter(found.tables.items()))
    console.print(calibrated_table(rows) if name == "chosen" else estimates_table(rows))
    for note in found.notes:
        console.print(f"  {note}", highlight=False)
    print_files(console, directory, drawn, hints)
