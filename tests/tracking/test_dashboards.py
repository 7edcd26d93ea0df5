"""W&B workspaces and reports: they name what real runs log, and a server takes and gives them."""

import json
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from wandb_server import ENTITY, Server

if not os.environ.get("KGON_REQUIRE_ALL"):
    pytest.importorskip("wandb_workspaces", reason="needs kgon[dashboards]")

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from kgon.cli import main
from kgon.record import run_directory
from kgon.tracking import account, dashboards

RUNS = {
    "train": ["members=3", "trainer.max_steps=2000", "schedule.n_llc=2", "schedule.n_losses=20",
              "schedule.n_snapshots=10"],
    "llc": ["point=[5]", "n_chains=4", "n_draws=40", "n_burnin=20"],
    "posterior": ["n_samples=[20,40,80]", "n_datasets=2", "smc.n_particles=32",
                  "smc.n_replicates=2", "smc.n_moves=1", "smc.n_leapfrog=3", "smc.ess=0.3"],
}  # fmt: skip

COMMANDS = {
    "Training": ["train"],
    "Plateaus and phases": ["train"],
    "LLC against loss": ["train", "llc"],
    "Bayesian phases": ["posterior"],
    "Pictures": ["train"],
    "Sweep": ["train"],
}
"""The commands that log what a section shows."""


def named(spec):
    """The (kind, name) of all that a piece of a view's JSON names."""
    if isinstance(spec, list):
        for item in spec:
            yield from named(item)
    elif isinstance(spec, dict) and spec.get("viewType") == "Bar Chart":
        yield from (("summary", key) for key in spec["config"]["metrics"])  # W&B's bars are of it
    elif isinstance(spec, dict):
        for name, value in spec.items():
            if name == "mediaKeys":
                yield from (("media", key) for key in value)
            elif name == "metricRegex":
                yield "pattern", value
            elif name in ("metrics", "pinnedColumns", "columnPinned", "columnOrder"):
                yield from (key_of(key) for key in value)
            elif name in ("xAxis", "yAxis", "zAxis", "accessor") and isinstance(value, str):
                yield key_of(value)
            else:
                yield from named(value)


def key_of(name):
    name = name.replace("summary_metrics.", "summary:", 1)
    kind, colon, rest = name.partition(":")
    return (kind, rest) if colon else ("metric", name)


def config_names(entries):
    """W&B's names of config entries: first key, `value`, the keys below."""

    def walk(name, value):
        yield name
        if isinstance(value, dict):
            for key, below in value.items():
                yield from walk(f"{name}.{key}", below)

    return {name for key in entries for name in walk(key, entries[key])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What a server has of each command when it really runs, and the run's folder."""
    found = {}
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        patch.delenv("WANDB_MODE", raising=False)
        patch.chdir(tmp_path_factory.mktemp("runs"))
        account.end_client()
        for command, words in RUNS.items():
            patch.setattr(sys, "argv", ["kgon", command, *words])
            main()
            (run,) = [r for r in server.runs.values() if r.fields["jobType"] == command]
            found[command] = run, Path("multirun", run.fields["displayName"]).absolute()
        account.end_client()
        server.assert_clean()
    return found


@pytest.fixture(scope="module")
def logged(runs):
    """The names that each command logs, by kind."""
    found = {}
    for command, (run, _) in runs.items():
        items = [item for row in run.rows() for item in row.items()]
        media = {k for k, v in items if isinstance(v, dict) and v["_type"].startswith("image")}
        found[command] = {
            "metric": {key for key, value in items if not isinstance(value, dict)},
            "media": media,
            "summary": set(run.summary),
            "config": config_names(run.config),
        }
    return found


def wrong_names(panels, commands, logged):
    """What is named and not logged by these commands."""
    spec = json.loads(
        json.dumps([p._to_model().model_dump(by_alias=True, exclude_none=True) for p in panels])
    )
    names = set(named(spec))
    assert names, "no key found: the form of the JSON has changed"
    some = {k: set().union(*(logged[c][k] for c in commands)) for k in logged[commands[0]]}
    for kind, name in sorted(names):
        if kind == "pattern":
            ok = any(re.search(name, metric) for metric in some["metric"])
        else:
            ok = name in some[kind]
        if not ok:
            yield kind, name


@pytest.mark.parametrize("section", COMMANDS)
def test_every_key_that_a_panel_names_is_logged(section, logged):
    panels = dashboards.sections(dashboards.PARAMETERS)[section]
    wrong = wrong_names(panels, COMMANDS[section], logged)
    assert not list(wrong)


def test_a_key_that_nobody_logs_is_found(logged):
    panels = [
        wr.LinePlot(x="trainer/global_step", y=["loss/mode"]),
        wr.MediaBrowser(media_keys=["media/wheat"]),
        wr.ScatterPlot(x=wr.Config("model.n_gons"), y=wr.SummaryMetric("final/gain")),
        wr.LinePlot(x="loss/mean", metric_regex="^fase/"),
    ]
    assert set(wrong_names(panels, ["train"], logged)) == {
        ("metric", "loss/mode"),
        ("media", "media/wheat"),
        ("config", "model.value.n_gons"),
        ("summary", "final/gain"),
        ("pattern", "^fase/"),
    }


def test_every_pinned_column_is_logged(logged):
    for kind, name in map(key_of, dashboards.columns(dashboards.PARAMETERS)):
        assert kind == "run" or name in logged["train"][kind], name


def test_values_are_what_titles_and_ranges_say(runs):
    run, folder = runs["train"]
    for panels in dashboards.sections(dashboards.PARAMETERS).values():
        for panel in panels:
            if getattr(panel, "range_y", None) == (0, 1):
                shown = [v for row in run.rows() for k, v in row.items() if k in (panel.y or [])]
                assert shown and all(0 <= value <= 1 for value in shown), panel.title
    trusted = defaultdict(list)
    for row in run_directory.load(folder).llc.to_pylist():
        if row["verdict"] == "ok":
            trusted[row["step"]].append(row["mean"])
    means = {row["_step"]: row["llc/mean_ok"] for row in run.rows() if "llc/mean_ok" in row}
    assert trusted and means == pytest.approx({k: np.mean(v) for k, v in trusted.items()})


def dashboard(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["kgon", "dashboard", *words])
    main()


def test_a_workspace_is_saved_and_loaded(server, monkeypatch, capsys):
    dashboard(monkeypatch, "--sweep", "lr-2026", "--parameter", "data.sparsity")
    url = capsys.readouterr().out.split()[-1]
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"]) == (ENTITY, "kgon")
    loaded = ws.Workspace.from_url(url)
    assert [section.name for section in loaded.sections] == list(COMMANDS)
    assert "lr-2026" in json.dumps(json.loads(view["spec"])) and loaded.name == "lr-2026"
    assert "config:data.value.sparsity" in loaded.runset_settings.pinned_columns
    loaded.save()
    assert len(server.views) == 1


def test_a_report_is_saved_and_loaded(server, monkeypatch, capsys):
    server.run("kgon", "a-run-of-the-project")
    dashboard(monkeypatch, "--report", "--name", "Levels")
    report = wr.Report.from_url(capsys.readouterr().out.split()[-1])
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    panels = dashboards.sections(dashboards.PARAMETERS)
    assert [len(grid.panels) for grid in grids] == [len(some) for some in panels.values()]


def test_called_again_a_workspace_is_updated(server, monkeypatch, capsys):
    for words in ((), ("--parameter", "data.sparsity"), ("--sweep", "a"), ("--sweep", "a")):
        dashboard(monkeypatch, *words)
    urls = [line for line in capsys.readouterr().out.splitlines() if line.startswith("http")]
    assert len(server.views) == 2 and urls[0] == urls[1] != urls[2] == urls[3]
    names = {view["displayName"]: view["spec"] for view in server.views.values()}
    assert names.keys() == {"kgon", "a"} and "sparsity" in names["kgon"]


def test_called_again_a_report_is_updated_unless_somebody_wrote_in_it(server, monkeypatch, capsys):
    server.run("kgon", "a-run-of-the-project")
    for _ in range(2):
        dashboard(monkeypatch, "--report")
    assert len(server.views) == 1
    url = capsys.readouterr().out.split()[-1]
    report = wr.Report.from_url(url)
    report.blocks = [wr.P("What we found"), *report.blocks]
    report.save()
    for _ in range(2):
        dashboard(monkeypatch, "--report")
    assert len(server.views) == 2
    assert wr.Report.from_url(url).blocks[0] == wr.P("What we found")


def test_a_name_or_a_file_that_does_not_do_is_one_line(server, monkeypatch, capsys, tmp_path):
    server.run("kgon", "a-run-of-the-project")

    def refused(status, *words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            dashboard(monkeypatch, *words)
        (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
        assert end.value.code == status
        return line

    for way in ([], ["--offline"]):
        assert "does not take the name '\U0001f4a5'" in refused(2, "--name", "\U0001f4a5", *way)
    missing = tmp_path / "missing" / "x.json"
    assert f"--offline {missing}: No such file" in refused(2, "--offline", str(missing))
    assert f"--offline {tmp_path}: Is a directory" in refused(2, "--offline", str(tmp_path))
    for operation, way in (("UpsertView2", []), ("upsertView", ["--report"])):
        server.faults = [(operation, 403)]
        assert "not saved: " in refused(1, *way)
    assert not server.views


def test_offline_writes_the_json_and_needs_no_key(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    file = tmp_path / "workspace.json"
    dashboard(monkeypatch, "--offline", str(file), "--entity", "me")
    assert capsys.readouterr().out.strip() == str(file)
    dashboard(monkeypatch, "--offline", "--entity", "me", "--report")
    for text in (file.read_text(), capsys.readouterr().out):
        assert {("media", "media/weights"), ("metric", "loss/mean")} <= set(named(json.loads(text)))


def test_a_server_that_does_not_answer_is_an_error(server, monkeypatch, capsys):
    server.always = 503
    monkeypatch.setattr("kgon.tracking.account.ANSWER_SECONDS", 1)
    with pytest.raises(SystemExit) as end:
        dashboard(monkeypatch)
    server.release()
    assert end.value.code == 1 and "Failed to verify credentials" in capsys.readouterr().err
    assert not server.views
