"""W&B workspaces and reports: they name what real runs log, and a server takes and gives them."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import wandb

if not os.environ.get("KGON_REQUIRE_ALL"):
    pytest.importorskip("wandb_workspaces", reason="needs kgon[dashboards]")

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from kgon.cli import main
from kgon.tracking import dashboards, files

sys.path.insert(0, str(Path(__file__).parents[1]))
from wandb_server import ENTITY, Server

RUNS = {
    "train": ["members=3", "trainer.max_steps=200", "schedule.n_llc=2", "schedule.n_losses=20",
              "schedule.n_snapshots=10"],
    "llc": ["point=[5]", "n_chains=4", "n_draws=40", "n_burnin=20", "discard=null"],
    "posterior": ["n_samples=[20,40,80]", "n_datasets=2", "smc.n_particles=32",
                  "smc.n_replicates=2", "smc.n_moves=1", "smc.n_leapfrog=3", "smc.ess=0.3"],
}  # fmt: skip


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


def logged_by(folder):
    """What a run's file holds: numbers and media of the history, summary, config."""
    found = {kind: set() for kind in ("metric", "media", "summary", "config")}
    (path,) = folder.glob("multirun/*/wandb")
    (fragment,) = files.fragments(path)

    def add(kind, items, values):
        for item in items:
            parts = [*item.nested_key] or [item.key]
            if parts[-1] == "_type" and json.loads(item.value_json).startswith("image"):
                values["media"].add("/".join(parts[:-1]))
            elif len(parts) == 1:
                values[kind].add(parts[0])

    for record in files.read(fragment.file):
        add("metric", record.history.item, found)
        add("summary", record.summary.update, found)
        for update in (*record.config.update, *record.run.config.update):
            flatten(found["config"], update.key or update.nested_key[0], update.value_json)
    found["summary"] |= found["metric"]  # the last value, where it is a number
    return found


def flatten(into, first, text):
    """W&B's names of config entries: first key, `value`, the keys below."""

    def walk(name, value):
        into.add(name)
        if isinstance(value, dict):
            for key, below in value.items():
                walk(f"{name}.{key}", below)

    walk(f"{first}.value", json.loads(text))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What each command logs when it really runs."""
    found = {}
    for command, words in RUNS.items():
        with pytest.MonkeyPatch.context() as patch:
            folder = tmp_path_factory.mktemp(command)
            patch.chdir(folder)
            patch.setenv("WANDB_MODE", "offline")
            patch.setattr(sys, "argv", ["kgon", command, "logger.mode=offline", *words])
            main()
            wandb.teardown()  # its file is whole
            found[command] = logged_by(folder)
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


@pytest.mark.parametrize("section", dashboards.PANELS_OF)
def test_every_key_that_a_panel_names_is_logged(section, logged):
    panels = dashboards.sections(dashboards.PARAMETERS)[section]
    wrong = wrong_names(panels, dashboards.PANELS_OF[section], logged)
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


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    with Server() as started:
        for name, value in started.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        yield started
        wandb.teardown()
        started.assert_clean()


def dashboard(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["kgon", "dashboard", *words])
    main()


def test_a_workspace_is_saved_and_loaded(server, monkeypatch, capsys):
    dashboard(monkeypatch, "--sweep", "lr-2026", "--parameter", "data.sparsity")
    url = capsys.readouterr().out.split()[-1]
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"]) == (ENTITY, "kgon")
    loaded = ws.Workspace.from_url(url)
    assert [section.name for section in loaded.sections] == list(dashboards.PANELS_OF)
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
    with pytest.raises(SystemExit) as end:
        dashboard(monkeypatch)
    server.always = None
    assert end.value.code == 1 and "answers 503" in capsys.readouterr().err
    assert not server.views
