"""kgon llc: learning coefficients at critical points or at a training run's snapshots."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from kgon import streams
from kgon.cli.artifacts import downloaded
from kgon.cli.llc_table import (
    FOUR_GONS,
    PAPER,
    PUBLISHED,
    REPRODUCTION,
    Rows,
    calibrated_table,
    estimates_table,
)
from kgon.data import SingleFeature, draw
from kgon.figures import llc as llc_figures
from kgon.figures import style
from kgon.launch import command_line
from kgon.launch import config as configs
from kgon.launch.jobs import build, check_runs, dtype_of, job
from kgon.llc.calibration import ACCEPTANCE, calibrate
from kgon.llc.estimate import LLC, VERDICTS, check_memory, check_settings, estimate_llc
from kgon.record import run_directory
from kgon.theory.critical import CriticalPoint, critical_point
from kgon.theory.loss import EmpiricalLoss, Loss, PopulationLoss, importance_weights
from kgon.theory.phases import classify
from kgon.tracking.artifacts import FORM
from kgon.tracking.logger import log_artifacts, log_results, where_to_look
from kgon.training.datamodule import EnsembleData


@dataclass(frozen=True)
class Found:
    """What a job found: rows by name (the first is what it is about), figures by name."""

    tables: dict[str, Rows]
    figures: dict[str, Any]
    notes: list[str]


def main() -> None:
    """Console entry: Hydra overrides from the command line; run= may name a W&B artifact."""
    sys.argv[1:] = downloaded("llc", sys.argv[1:])
    command_line.run("llc", task, check)


def check(config: DictConfig) -> None:
    """Everything that can be refused before a job starts; ValueError says what."""
    configs.plain(config)
    check_runs(config)
    build(config.sampler)
    dtype_of(config)
    if config.loss not in ("population", "sample"):
        raise ValueError(f"loss must be population or sample, got {config.loss}")
    for n in _sizes(config):
        _settings(config, n)
    if config.discard is not None and not 0 <= config.discard <= 1:
        raise ValueError(f"discard must lie in [0, 1] or be null, got {config.discard}")
    if config.run is None:
        n_points = len(_points(config))
    else:
        if config.calibrate:
            raise ValueError("calibrate=true works at critical points; leave out run=")
        for name in ("snapshots", "members"):
            if not (isinstance(config[name], int) and config[name] >= 1):
                raise ValueError(f"{name} must be a number >= 1, got {config[name]}")
        _check_run(config)
        n_points = config.snapshots * config.members
    if not config.calibrate:
        check_memory(config.n_draws, config.n_chains, n_points)
    else:
        for name in ("lr_factors", "localization", "nbeta_factors"):
            values = config.calibration[name]
            numbers = OmegaConf.is_list(values) and all(isinstance(v, int | float) for v in values)
            if not numbers or not values or min(values) < 0:
                raise ValueError(
                    f"calibration.{name} must be a list of one or more numbers, got {values}"
                )
        if len(config.calibration.lr_factors) < 2:
            raise ValueError(
                "calibration.lr_factors must be two or more increasing numbers, got "
                f"{config.calibration.lr_factors}"
            )
        grid = config.calibration
        n_settings = len(grid.lr_factors) * len(grid.localization) * len(grid.nbeta_factors)
        check_memory(grid.n_draws, grid.n_chains, n_settings * n_points)


@job
def task(config: DictConfig, running: run_directory.Job, logger: Any) -> Callable[[], None]:
    """Estimate, write tables and figures, give them to the logger."""
    work = at_snapshots if config.run else calibrated if config.calibrate else at_critical_points
    found: Found = work(config)
    directory = running.directory
    for name, rows in found.tables.items():
        directory.save_rows(name, rows)
    drawn = {
        name: style.save(figure, directory.path / "figures" / name)[0]
        for name, figure in found.figures.items()
    }
    summary = _summary(found)
    running.report(1.0, summary)
    log_results(logger, summary, found.tables, drawn)
    artifacts = {"llc": "config.yaml " + " ".join(f"{name}.parquet" for name in found.tables)}
    log_artifacts(logger, directory.path, artifacts, summary, {})
    looks = where_to_look(logger)
    return lambda: _print(found, directory.path, [*drawn.values()], looks)


# ------------------------------------------------------------------------------- what to estimate


def at_critical_points(config: DictConfig) -> Found:
    """Estimates at the critical points, for each n."""
    points = _points(config)
    W, b = _stacked(config, points)
    rows: Rows = []
    for i, n in enumerate(_sizes(config)):
        settings = _settings(config, n, i)
        estimate = _estimate(config, _loss(config, n), W, b, settings, _keys(config, points))
        for point, row in zip(points, _rows(estimate), strict=True):
            known = PUBLISHED.get((point.label, n)) if point.n_features == 6 else None
            published, spread, source = known or (None, None, None)
            rows.append(
                {
                    "label": point.label,
                    "n_samples": n,
                    "theory": point.llc,
                    "published": published,
                    "published_spread": spread,
                    "source": source,
                    **row,
                    "n_chains": config.n_chains,
                    "nbeta": settings["nbeta"],
                    "lr": settings["lr"],
                    "localization": settings["localization"],
                    "loss": config.loss,
                    "kind": point.kind,
                }
            )
    sources = dict.fromkeys(row["source"] for row in rows)
    marks = {PAPER: "published", REPRODUCTION: "*"}
    notes = [f"{mark}: {source}" for source, mark in marks.items() if source in sources]
    notes += _on_four_gons(point.label for point in points)
    return Found({"estimates": rows}, {"llc": llc_figures.against_theory(rows)}, notes)


def _on_four_gons(labels: Iterable[str]) -> list[str]:
    if not any(label.startswith("4") for label in labels):
        return []
    return [f"theory at 4-gons is the volume exponent; the paper lists {FOUR_GONS}"]


def calibrated(config: DictConfig) -> Found:
    """A grid of settings at the critical points, for each n, and the settings to use."""
    points = _points(config)
    W, b = _stacked(config, points)
    grid, chosen, drawn = [], [], {}
    for i, n in enumerate(_sizes(config)):
        base, asked = _settings(config, n, i), config.calibration
        result = calibrate(
            _loss(config, n),
            W,
            b,
            lr=[base["lr"] * factor for factor in asked.lr_factors],
            localization=list(asked.localization),
            nbeta=[base["nbeta"] * factor for factor in asked.nbeta_factors],
            n_chains=asked.n_chains,
            n_draws=asked.n_draws,
            n_burnin=asked.n_burnin,
            seed=_keys(config, points),
            sampler=build(config.sampler),
        )
        shape = result.admissible.shape
        for at, row in zip(np.ndindex(*shape), _rows(result.estimate), strict=True):
            setting = {
                "lr": result.lr[at[0]],
                "localization": result.localization[at[1]],
                "nbeta": result.nbeta[at[2]],
            }
            point = points[at[3]]
            place = tuple(result.chosen[at[3]].tolist())
            row = {"label": point.label, "n_samples": n, "theory": point.llc, **setting, **row}
            row["admissible"] = bool(result.admissible[at])
            row["chosen"] = at[:3] == place
            grid.append(row)
        for j, point in enumerate(points):
            mine = [r for r in grid if r["label"] == point.label and r["n_samples"] == n]
            best: dict[str, Any] | None = next((r for r in mine if r["chosen"]), None)
            blank = {"label": point.label, "n_samples": n, "theory": point.llc}
            names = [name for name in grid[0] if name not in (*blank, "admissible", "chosen")]
            chosen.append(blank | {name: best and best[name] for name in names})
            drawn[f"calibration-{point.label}-{n}"] = llc_figures.calibration(
                point.label,
                result.lr,
                result.localization,
                result.nbeta,
                result.estimate.mean[..., j],
                result.estimate.stderr[..., j],
                result.admissible[..., j],
                tuple(result.chosen[j].tolist()) if best else None,
                point.llc,
            )
    notes = [
        f"chosen: verdict ok, acceptance >= {ACCEPTANCE:g}, stable in lr, no escape later;",
        "of these the first nbeta, the smallest localization, the largest ESS; -: none",
    ]
    return Found({"chosen": chosen, "calibration": grid}, drawn, notes)


def at_snapshots(config: DictConfig) -> Found:
    """Estimates at snapshots of a training run, under each member's own data set or the expected
    loss."""
    run, data, importance = _training_run(config)
    weights = run.weights()
    kept = np.unique(np.linspace(0, len(weights["step"]) - 1, config.snapshots).round().astype(int))
    count = min(config.members, len(data.members))
    W, b = (
        torch.from_numpy(np.ascontiguousarray(weights[k][kept][:, :count])).to(dtype_of(config))
        for k in ("W", "b")
    )
    alive = W.isfinite().all(-1).all(-1) & b.isfinite().all(-1)
    data = _first_members(run, count)
    n = data.n_samples if config.loss == "sample" else _sizes(config)[0]
    assert n is not None
    train_loss = data.train_loss(importance) if config.loss == "sample" else None
    loss = train_loss or data.expected_loss(importance)
    settings = _settings(config, n)
    keys = np.stack(
        [
            streams.member_keys(config.seed, data.members, f"llc {step}")
            for step in weights["step"][kept]
        ]
    )
    # A diverged member stays in the stack, at parameters that cost nothing and mean nothing.
    W = W.where(alive[..., None, None], 0.0)
    b = b.where(alive[..., None], 0.0)
    estimate = _estimate(config, loss, W, b, settings, keys)
    points = data.critical_points(W.shape[-2], importance)
    theory = {point.label: point.llc for point in points}
    labels = (
        np.array(classify(W, b)).reshape(alive.shape)
        if W.shape[-2] == 2
        else np.full(alive.shape, "other")
    )
    rows = []
    for (i, j), row in zip(np.ndindex(*alive.shape), _rows(estimate), strict=True):
        if alive[i, j]:
            label = str(labels[i, j])
            rows.append(
                {
                    "step": int(weights["step"][kept[i]]),
                    "member": data.members[j],
                    "phase": label,
                    "theory": theory.get(label),
                    **row,
                    "n_chains": config.n_chains,
                    "nbeta": settings["nbeta"],
                    "lr": settings["lr"],
                    "localization": settings["localization"],
                    "loss": config.loss,
                }
            )
    if not rows:
        raise ValueError(f"run={config.run}: all members had diverged at the snapshots asked for")
    drawn = {"llc": llc_figures.along_training(rows, points)}
    notes = ["theory is that of the phase's critical point"]
    return Found({"estimates": rows}, drawn, [*notes, *_on_four_gons(row["phase"] for row in rows)])


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


def _settings(config: DictConfig, n: int, i: int = 0) -> dict[str, Any]:
    """nbeta, lr, localization and the lengths of the chains at the i-th n."""

    def at(name: str) -> float | None:
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

    nbeta = at("nbeta")
    nbeta = n / math.log(n) if nbeta is None else nbeta
    lr = at("lr")
    if lr is None:
        if not config.lr_times_nbeta > 0:
            raise ValueError(f"lr_times_nbeta must be positive, got {config.lr_times_nbeta}")
        lr = config.lr_times_nbeta / nbeta if nbeta > 0 else 1.0
    settings = {
        "nbeta": nbeta,
        "lr": lr,
        "localization": config.localization,
        "n_chains": config.n_chains,
        "n_draws": config.n_draws,
        "n_burnin": config.n_burnin,
    }
    check_settings(**settings)
    return settings


def _points(config: DictConfig) -> list[CriticalPoint]:
    labels = [str(label) for label in _list(config.point)]
    if not labels:
        raise ValueError("point must be one or more labels such as 5, 5+ or 6, got []")
    if len(set(labels)) < len(labels):
        raise ValueError(f"point has a label twice: {config.point}")
    try:
        return [critical_point(label, config.model.n_features) for label in labels]
    except ValueError as error:
        raise ValueError(f"point: {error}") from None


def _stacked(config: DictConfig, points: Sequence[CriticalPoint]) -> tuple[Tensor, Tensor]:
    dtype = dtype_of(config)
    return torch.stack([p.W for p in points]).to(dtype), torch.stack([p.b for p in points]).to(
        dtype
    )


def _keys(config: DictConfig, points: Sequence[CriticalPoint]) -> streams.Keys:
    """Noise that is a point's own, whichever others are asked for."""
    keys = [streams.member_keys(config.seed, [0], f"llc {point.label}") for point in points]
    return np.concatenate(keys)


def _loss(config: DictConfig, n: int) -> Loss:
    """The population loss, or that of a data set of n inputs, the same for all points."""
    if config.loss == "population":
        return PopulationLoss()
    keys = streams.member_keys(config.seed, [0], f"data {n}")
    return EmpiricalLoss(draw(SingleFeature(config.model.n_features), keys, 0, n)[0])


def _estimate(
    config: DictConfig,
    loss: Callable[..., Tensor],
    W: Tensor,
    b: Tensor,
    settings: dict[str, Any],
    seed: Any,
) -> LLC:
    sampler = build(config.sampler)
    return estimate_llc(loss, W, b, **settings, seed=seed, discard=config.discard, sampler=sampler)


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
    if config.loss == "sample" and settings["n_samples"] is None:
        raise ValueError(
            f"loss=sample: run={folder} has no data set (it was trained on fresh inputs, "
            "n_samples=null); use loss=population"
        )
    if len(_sizes(config)) > 1:
        raise ValueError(f"n_samples must be one number with run=DIR, got {config.n_samples}")


def _training_run(config: DictConfig) -> tuple[run_directory.Run, EnsembleData, Tensor | None]:
    run = run_directory.load(Path(str(config.run)))
    data: EnsembleData = build(OmegaConf.create(run.config["datamodule"]))
    importance = importance_weights(
        run.config["model"]["importance"], run.config["model"]["n_features"]
    )
    return run, data, importance


def _first_members(run: run_directory.Run, count: int) -> EnsembleData:
    """The run's data, of its first members only: a member's data set is the same in any company."""
    node = OmegaConf.create(run.config["datamodule"])
    node.members = list(node.members)[:count]
    data: EnsembleData = build(node)
    return data


# ------------------------------------------------------------------------------------- results


def _rows(estimate: LLC) -> Rows:
    """The estimates as rows, in the order of the flattened batch."""
    columns = {
        "llc": estimate.mean,
        "stderr": estimate.stderr,
        "rhat": estimate.rhat,
        "ess": estimate.ess,
        "below": estimate.below,
        "drift": estimate.drift,
        "acceptance": estimate.acceptance,
        "kept": estimate.kept,
    }
    values = zip(*(column.flatten().tolist() for column in columns.values()), strict=True)
    words = [VERDICTS[code] for code in estimate.verdict.flatten().tolist()]
    return [
        dict(zip(columns, row, strict=True)) | {"verdict": word}
        for row, word in zip(values, words, strict=True)
    ]


def _summary(found: Found) -> dict[str, float | str]:
    rows = next(iter(found.tables.values()))
    shares = {v: sum(row["verdict"] == v for row in rows) / len(rows) for v in VERDICTS}
    summary: dict[str, float | str] = {f"llc/share_{v}": share for v, share in shares.items()}
    for row in rows:
        if "label" in row and row["llc"] is not None:
            summary[f"llc/{row['label']}/{row['n_samples']}"] = row["llc"]
            summary[f"llc_stderr/{row['label']}/{row['n_samples']}"] = row["stderr"]
    return summary


def _print(found: Found, directory: Path, drawn: Sequence[Path], looks: Sequence[str]) -> None:
    """Print the first table, its notes, and what to open or type next."""
    console = Console()
    name, rows = next(iter(found.tables.items()))
    console.print(calibrated_table(rows) if name == "chosen" else estimates_table(rows))
    for note in found.notes:
        console.print(f"  {note}", highlight=False)
    console.print(f"\n  [bold]{directory}[/bold]", highlight=False)
    for path in drawn:
        console.print(f"    {path.relative_to(directory)}", highlight=False)
    for look in looks:
        console.print(f"  {look}", highlight=False, soft_wrap=True)
