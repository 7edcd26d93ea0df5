"""kgon posterior: phases of the posterior against n, evidence, transitions, predictions."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from kgon.figures import posterior as posterior_figures
from kgon.figures import style
from kgon.launch import command_line
from kgon.launch import config as configs
from kgon.launch.jobs import check_runs, job
from kgon.posterior.phase_diagram import (
    LEAST_SHARE,
    PhaseDiagram,
    check_settings,
    neighbours,
    phase_diagram,
    prediction_rows,
    transition_rows,
)
from kgon.posterior.smc import VERDICTS
from kgon.record import run_directory
from kgon.theory.critical import parse_label
from kgon.tracking.logger import log_results, where_to_look

Rows = list[dict[str, Any]]

PREDICTIONS = {"full": "exp(-n L)", "halved": "exp(-n L/2)"}
"""The two conventions of the likelihood by the column of `prediction_rows`."""

REMARK = (
    "Leading-order free energies miss several nats at these n; the measured crossing is the result."
)


def main() -> None:
    """Console entry: Hydra overrides from the command line."""
    command_line.run("posterior", task, check)


def check(config: DictConfig) -> None:
    """Everything that can be refused before a job starts; ValueError says what."""
    check_runs(config)
    if not isinstance(config.nuts.run, bool):
        raise ValueError(f"nuts.run must be true or false, got {config.nuts.run}")
    settings = _settings(config)
    check_settings(**settings)
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

    def report(finished: int, total: int, point: dict[str, Any]) -> None:
        _progress(finished, total, point)
        running.report(finished / total, {})

    diagram = phase_diagram(
        directory.path / "points",
        **_settings(config),
        workers=config.runs.workers,
        progress=report,
    )
    tables = _tables(config, diagram)
    for name, rows in tables.items():
        directory.save_rows(name, rows)
    drawn = _draw(config, diagram, tables, directory.path / "figures")
    # A dashboard's tables are small; the rest is in the run's directory.
    small = {name: tables[name] for name in ("posteriors", "llc", "predictions")}
    small["transitions"] = _of_note(tables["transitions"])
    summary = _summary(config, diagram, tables)
    running.report(1.0, summary)
    log_results(logger, summary, small, drawn)
    looks = where_to_look(logger)
    return lambda: _print(config, diagram, tables, directory.path, [*drawn.values()], looks)


def _settings(config: DictConfig) -> dict[str, Any]:
    """The arguments of `phase_diagram` that say what is sampled."""
    plain = configs.resolved(config)
    nuts = {name: value for name, value in plain["nuts"].items() if name != "run"}
    return {
        **{k: plain[k] for k in ("n_samples", "n_datasets", "noise_std", "prior_std", "seed")},
        **{k: plain["model"][k] for k in ("n_features", "n_hidden", "importance")},
        "smc": plain["smc"],
        "nuts": nuts if plain["nuts"]["run"] else None,
    }


def _pair(config: DictConfig) -> tuple[str, str] | None:
    """The two families whose crossing is the headline; None where there is only one."""
    pair, c = config.pair, config.model.n_features
    if pair is None:
        # Draws of four or fewer features on are all counted as 4-gons.
        return (str(c - 1), str(c)) if c >= 5 else None
    ok = OmegaConf.is_list(pair) and len(pair) == 2 and pair[0] != pair[1]
    if not ok or not all(isinstance(k, int) and 0 <= k <= c for k in pair):
        raise ValueError(
            f"pair must be two different numbers of vertices <= n_features={c}, such as "
            f"[5,6], got {pair}"
        )
    return str(pair[0]), str(pair[1])


def _has_theory(config: DictConfig) -> bool:
    return config.model.n_hidden == 2 and config.model.importance is None


def _tables(config: DictConfig, diagram: PhaseDiagram) -> dict[str, Rows]:
    predictions = []
    if _has_theory(config):
        known = {str(k): float(v) for k, v in (config.paper_llc or {}).items()}
        predictions = prediction_rows(
            config.model.n_features, prior_std=config.prior_std, llc=known
        )
    return {
        "posteriors": diagram.posteriors,
        "shares": diagram.shares,
        "agreement": diagram.agreement,
        "llc": diagram.llc,
        "transitions": transition_rows(diagram),
        "predictions": predictions,
        **({"chains": diagram.chains} if diagram.chains else {}),
    }


def _of_note(transitions: Rows) -> Rows:
    """Transitions that some data set makes, between phases that hold a share worth the name."""
    return [
        row
        for row in transitions
        if row["crossed"] > 0
        and min(row["largest_share_from"], row["largest_share_to"]) >= LEAST_SHARE
    ]


def _crossing(diagram: PhaseDiagram, pair: tuple[str, str] | None) -> Any:
    """The `Transition` of the pair; None where the pair is not there."""
    found = (t for t in diagram.transitions() if (t.alpha, t.beta) == pair)
    return next(found, None)


def _predicted(tables: dict[str, Rows], alpha: str, beta: str, llc: str = "") -> dict[str, Any]:
    for row in tables["predictions"]:
        if (row["from"], row["to"], row["llc"]) == (alpha, beta, llc):
            return {name: row[name] for name in PREDICTIONS}
    return {}


def _draw(
    config: DictConfig, diagram: PhaseDiagram, tables: dict[str, Rows], folder: Path
) -> dict[str, Path]:
    pair = _pair(config)
    transition = _crossing(diagram, pair)
    predicted = _predicted(tables, *pair) if pair else {}
    drawn = {
        "phases": posterior_figures.phases(
            diagram,
            predicted={PREDICTIONS[name]: at for name, at in predicted.items()},
            pair=pair,
            crossing=transition.location if transition else (math.nan, math.nan),
        ),
        "log_evidence": posterior_figures.log_evidence(diagram),
        "llc": posterior_figures.llc(diagram),
        "starts": posterior_figures.starts(diagram),
    }
    return {
        name: style.save(figure, folder / name)[0]
        for name, figure in drawn.items()
        if figure is not None
    }


def _summary(
    config: DictConfig, diagram: PhaseDiagram, tables: dict[str, Rows]
) -> dict[str, float | str]:
    """The numbers of a run that a table of runs shows."""
    words = [row["verdict"] for row in diagram.posteriors]
    summary: dict[str, float | str] = {
        f"posterior/share_{verdict}": words.count(verdict) / len(words) for verdict in VERDICTS
    }
    pair = _pair(config)
    transition = _crossing(diagram, pair)
    if pair and transition:
        name = f"crossing/{pair[0]}-{pair[1]}"
        mean, sd = transition.location
        summary[f"{name}/crossed"] = transition.crossed
        summary |= {
            f"{name}/{key}": value
            for key, value in (("mean", mean), ("sd", sd))
            if math.isfinite(value)
        }
        for key, value in _predicted(tables, *pair).items():
            if value is not None:
                summary[f"{name}/predicted_{key}"] = value
    for phase, share in diagram.share().items():
        for n, value in zip(diagram.n_samples, share.mean(1).tolist(), strict=True):
            summary[f"share/{phase}/{n}"] = value
    for rule in diagram.rules[1:]:
        summary[f"agreement/{rule}"] = float(diagram.agreement_with(rule).mean())
    last = diagram.column("log_evidence")[-1]
    if bool(last.isfinite().all()):
        summary[f"log_evidence/{diagram.n_samples[-1]}"] = float(last.mean())
    return summary


def _progress(finished: int, total: int, point: dict[str, Any]) -> None:
    row = point["posteriors"][0]
    print(
        f"{finished}/{total}: n = {row['n_samples']}, data set {row['dataset']}: {row['verdict']}",
        flush=True,
    )


# ------------------------------------------------------------------------------------- printing


def _print(
    config: DictConfig,
    diagram: PhaseDiagram,
    tables: dict[str, Rows],
    directory: Path,
    drawn: Sequence[Path],
    looks: Sequence[str],
) -> None:
    console = Console()
    _print_shares(console, diagram)
    _print_chains(console, diagram)
    _print_transitions(console, config, diagram, tables)
    _print_llc(console, diagram)
    if not _has_theory(config):
        console.print(
            "  Levels and predictions are known for n_hidden = 2 and equal weights only: "
            "labels here are by output, without theory.",
            highlight=False,
        )
    console.print(f"\n  [bold]{directory}[/bold]", highlight=False)
    for path in drawn:
        console.print(f"    {path.relative_to(directory)}", highlight=False)
    for look in looks:
        console.print(f"  {look}", highlight=False, soft_wrap=True)


def _print_shares(console: Console, diagram: PhaseDiagram) -> None:
    count = len(diagram.datasets)
    over = f"mean ± sd over {count} data sets" if count > 1 else "one data set"
    table = Table(title=f"Posterior by {diagram.rules[0]}, {over}")
    shares = diagram.share()
    table.add_column("n", justify="right")
    for phase in shares:
        table.add_column(f"P({phase})", justify="right")
    others = diagram.rules[1:]
    for title in (*(f"={rule}" for rule in others), "loss", "log Z", "s.e.", "ok"):
        table.add_column(title, justify="right")
    for i, n in enumerate(diagram.n_samples):
        verdicts = [r["verdict"] for r in diagram.posteriors if r["n_samples"] == n]
        cells = [_spread(share[i], 2) for share in shares.values()]
        cells += [f"{float(diagram.agreement_with(rule)[i].mean()):.2f}" for rule in others]
        cells += [
            _number(float(diagram.column("mean_loss")[i].nanmean()), 4),
            _spread(diagram.column("log_evidence")[i], 1),
            _number(float(diagram.column("log_evidence_stderr")[i].nanmean()), 2),
            f"{verdicts.count('ok')}/{len(verdicts)}",
        ]
        table.add_row(str(n), *cells)
    console.print(table)
    if others:
        console.print(
            f"  ={', ='.join(others)}: share of draws with the same k as by {diagram.rules[0]}; "
            "where that is low, a share is a definition rather than a measurement.",
            highlight=False,
        )


def _print_chains(console: Console, diagram: PhaseDiagram) -> None:
    if not diagram.starts:
        return
    table = Table(title=f"SMC, and NUTS from each start, by {diagram.rules[0]}")
    found = {start: diagram.share(start=start) for start in (None, *diagram.starts)}
    phases = style.phase_order(phase for shares in found.values() for phase in shares)
    table.add_column("n", justify="right")
    table.add_column("sampler", no_wrap=True)
    for title in (*(f"P({phase})" for phase in phases), "R-hat", "ESS", "passages", "diverged"):
        table.add_column(title, justify="right")
    for i, n in enumerate(diagram.n_samples):
        for start, shares in found.items():
            cells = [_spread(shares[p][i], 3) if p in shares else _number(0.0, 3) for p in phases]
            here = [r for r in diagram.chains if (r["n_samples"], r["start"]) == (n, start)]
            for name, digits in (("rhat", 2), ("ess", 0), ("passages", 0), ("divergences", 0)):
                values = [math.nan if r[name] is None else float(r[name]) for r in here]
                cells.append(_spread(torch.tensor(values), digits) if start else "")
            table.add_row(str(n) if start is None else "", f"NUTS, {start}" if start else "SMC",
                          *cells, end_section=start == diagram.starts[-1])  # fmt: skip
    console.print(table)
    console.print(
        "  passages: how often a chain's k changes from one draw to the next, all chains together; "
        "without them\n  occupancy is that of the start, whatever R-hat and ESS of the loss say.",
        highlight=False,
    )


def _print_transitions(
    console: Console, config: DictConfig, diagram: PhaseDiagram, tables: dict[str, Rows]
) -> None:
    table = Table(title="Bayesian transitions, and where free energies (eq. (9)) cross")
    table.add_column("from -> to")
    for title in ("by", "crossed", "n", "log odds", *PREDICTIONS.values()):
        table.add_column(title, justify="left" if title == "by" else "right")
    families = neighbours([*diagram.share()])
    noted = _of_note(tables["transitions"])
    shown = [
        r for r in tables["transitions"] if r["by"] == "k" and (r["from"], r["to"]) in families
    ]
    shown += [r for r in noted if r["by"] == "label"]
    for row in shown:
        predicted = _predicted(tables, row["from"], row["to"])
        crossing = _number(row["crossing"], 0)
        if row["crossing_sd"] is not None:
            crossing += f" ± {row['crossing_sd']:.0f}"
        table.add_row(
            f"{row['from']} -> {row['to']}",
            row["by"],
            f"{row['crossed'] * len(diagram.datasets):.0f}/{len(diagram.datasets)}",
            crossing,
            f"{_number(row['log_odds_first'], 1)} .. {_number(row['log_odds_last'], 1)}",
            *(_number(predicted.get(name), 0) for name in PREDICTIONS),
        )
    for row in tables["predictions"]:
        if row["llc"] and parse_label(row["to"])[0] == parse_label(row["from"])[0] + 1:
            name = f"{row['from']} -> {row['to']}, llc {row['llc']}"
            table.add_row(name, "theory", "", "", "", *(_number(row[p], 0) for p in PREDICTIONS))
    console.print(table)
    if tables["predictions"]:
        console.print(
            f"  {REMARK}\n  noise_std = {config.noise_std:g} samples "
            f"exp(-{1 / (2 * config.noise_std**2):.3g} n L).",
            highlight=False,
        )


def _print_llc(console: Console, diagram: PhaseDiagram) -> None:
    if not diagram.llc:
        return
    table = Table(title="LLC within a phase at its largest share")
    for title in ("phase", "n", "share", "LLC", "theory"):
        table.add_column(title, justify="left" if title == "phase" else "right")
    labels = diagram.share("label")
    for phase, share in sorted(labels.items(), key=lambda item: -float(item[1].mean(1).max())):
        top = int(share.mean(1).argmax())
        n = diagram.n_samples[top]
        rows = [
            r
            for r in diagram.llc
            if r["phase"] == phase
            and r["n_samples"] == n
            and r["llc"] is not None
            and r["share"] >= LEAST_SHARE
        ]
        if rows:
            values = torch.tensor([r["llc"] for r in rows], dtype=torch.float64)
            theory = _number(rows[0]["theory"], 1)
            table.add_row(phase, str(n), f"{share[top].mean():.2f}", _spread(values, 2), theory)
    console.print(table)


def _spread(values: torch.Tensor, digits: int) -> str:
    values = values[values.isfinite()]
    if not len(values):
        return "-"
    mean = f"{float(values.mean()):.{digits}f}"
    return f"{mean} ± {float(values.std()):.{digits}f}" if len(values) > 1 else mean


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
