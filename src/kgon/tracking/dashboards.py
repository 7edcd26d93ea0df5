"""A W&B workspace of kgon's runs, and a report with the same sections.

Metrics whose names depend on the run (`phase/5+`) are selected by a pattern, or shown in a figure.
Building one needs no network, but wandb-workspaces (the extra kgon[dashboards]), whose import takes
seconds.
"""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

STEP = "trainer/global_step"

PARAMETERS = (
    "model.n_features", "model.n_hidden", "data._target_", "n_samples", "batch_size",
    "optimizer.lr", "seed",
)  # fmt: skip
"""The settings on the axes of a sweep's overview, in order."""

RESULTS = ("final/loss", "final/transitions", "final/diverged")
"""The results on the axes of a sweep's overview, from the summary of training runs."""


def sections(parameters: Sequence[str]) -> dict[str, list[Any]]:
    """The panels of each section; the axes of the sweep's overview are `parameters` and RESULTS."""
    from kgon.llc.verdict import VERDICTS  # imports torch, which --help must not

    wr = _reports()

    def lines(title: str, *y: str, x: str = STEP, **settings: Any) -> Any:
        return wr.LinePlot(title=title, x=x, y=list(y), **{"title_x": "step", **settings})

    def figure(title: str, key: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=[key], num_columns=2)

    def shares(title: str, metrics: Sequence[str]) -> Any:
        return wr.BarPlot(title=title, metrics=list(metrics), range_x=(0, 1))

    def axis(metric: Any, name: str) -> Any:
        return wr.ParallelCoordinatesPlotColumn(
            metric=metric, display_name=name, log=name.endswith(".lr")
        )

    logs: dict[str, Any] = {"log_x": True, "log_y": True}
    groups: dict[str, Any] = {
        "groupby": "Group",
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    return {
        "Training": [
            lines("Population loss, mean of the members", "loss/mean", **logs),
            lines("Population loss: median and lowest", "loss/median", "loss/min", **logs),
            lines("Training loss, mean of the members", "train_loss/mean", **logs),
            lines("Population loss by sweep: mean and range", "loss/mean", **logs, **groups),
            lines("Members that diverged", "members/diverged"),
        ],
        "Plateaus and phases": [
            wr.LinePlot(title="Members by phase", x=STEP, metric_regex="^phase/.*", log_x=True,
                        title_x="step"),
            lines("Plateaus, mean per member", "plateaus/mean_per_member", log_x=True),
            wr.ScalarChart(title="Transitions", metric=wr.SummaryMetric("final/transitions")),
            figure("Phases along training", "figures/phases"),
            figure("Staircase of levels", "figures/staircase"),
        ],
        "LLC against loss": [
            lines("LLC, mean of the ok estimates", "llc/mean_ok", log_x=True),
            lines("LLC (ok estimates) against population loss, along training", "llc/mean_ok",
                  x="loss/mean", log_x=True, title_x="mean population loss"),
            wr.ScatterPlot(title="LLC against population loss, at the end of each run",
                           x=wr.SummaryMetric("loss/mean"), y=wr.SummaryMetric("llc/mean"),
                           log_x=True),
            lines("Verdicts on estimates (shares)",
                  *(f"llc/share_{verdict}" for verdict in VERDICTS), range_y=(0, 1)),
            lines("Acceptance of the chains, mean", "llc/acceptance", range_y=(0, 1)),
            lines("Variance estimator, nbeta^2 Var L, mean of all", "llc/variance", log_x=True),
            figure("LLC with theory", "figures/llc"),
        ],
        "Bayesian phases": [
            figure("Posterior phases against n", "figures/posterior_phases"),
            figure("Log evidence against Laplace", "figures/log_evidence"),
            shares("Verdicts on posteriors (shares)", [
                f"posterior/share_{v}" for v in ("ok", "unconverged", "unchecked", "diverged")
            ]),
            shares("Agreement of fast labels with quenching", ["agreement/output",
                                                               "agreement/hull"]),
        ],
        "Pictures": [
            wr.MediaBrowser(title="k-gons along training", media_keys=["media/weights"],
                            mode="gallery", gallery_axis="step"),
            figure("k-gons at the end", "figures/weights"),
            figure("Loss curves", "figures/loss"),
        ],
        "Sweep": [
            wr.ParallelCoordinatesPlot(title="Parameters and results", columns=[
                *(axis(wr.Config(name), name) for name in parameters),
                *(axis(wr.SummaryMetric(name), name) for name in RESULTS),
            ]),
            *(
                wr.ScatterPlot(title=f"Final loss against {name}", x=wr.Config(name),
                               y=wr.SummaryMetric("final/loss"), log_y=True)
                for name in ("optimizer.lr", "n_samples") if name in parameters
            ),
        ],
    }  # fmt: skip


def _reports() -> Any:
    """The module of panels and reports; as Any, because its stubs export no names."""
    return importlib.import_module("wandb_workspaces.reports.v2")


def columns(parameters: Sequence[str]) -> list[str]:
    """The columns pinned in the table of runs."""
    # W&B puts `value` after the first key of a config entry.
    entries = (name.partition(".") for name in parameters)
    config = [f"config:{first}.value{dot}{below}" for first, dot, below in entries]
    return ["run:displayName", "run:state", *config, *(f"summary:{name}" for name in RESULTS)]


def view(
    entity: str,
    project: str,
    name: str,
    sweep: str | None,
    parameters: Sequence[str],
    *,
    as_report: bool,
) -> Any:
    """An unsaved workspace, or a report, of the runs of a sweep.

    Args:
        sweep: the sweep, which is a group of W&B; None for all runs of the project, by group.
        as_report: whether to return a `wandb_workspaces.reports.v2.Report` instead of a
            `wandb_workspaces.workspaces.Workspace`.

    Raises:
        ValueError: W&B does not take the name.
    """
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws
    from pydantic import ValidationError

    wr = _reports()
    panels_of = sections(parameters)
    runs: dict[str, Any] = {
        "filters": expr.And(expr.Metric("Group") == sweep) if sweep else "",
        "pinned_columns": columns(parameters),
    }
    if as_report:
        # Entity and project are left out, so they are the report's own; to name them would need an
        # answer from the server.
        runs |= {"name": sweep or "runs", "groupby": [] if sweep else ["group"]}
        blocks: list[Any] = [wr.TableOfContents()]
        for title, panels in panels_of.items():
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[wr.Runset(**runs)], panels=panels)]
        settings: dict[str, Any] = {"title": name, "blocks": blocks}
    else:
        runs["groupby"] = [] if sweep else [expr.Metric("Group")]
        settings = {
            "name": name,
            "sections": [ws.Section(name=t, panels=p, is_open=True) for t, p in panels_of.items()],
            "settings": ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
            "runset_settings": ws.RunsetSettings(**runs),
        }
    kind = wr.Report if as_report else ws.Workspace
    try:
        return kind(entity=entity, project=project, **settings)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"W&B does not take the name {name!r}: {wrong['msg']}") from error


def save(unsaved: Any, api: Any) -> str:
    """Save a workspace or a report in place of the last one of this user; return its address.

    A report to which somebody has added blocks of other kinds stays, and a new one is saved.
    """
    if isinstance(unsaved, _reports().Report):
        unsaved.id = _last_report(unsaved, api) or ""
    else:
        _take_place(unsaved, api.viewer.username)
    unsaved.save()
    return str(unsaved.url)


def _take_place(workspace: Any, user: str) -> None:
    """Give a workspace an internal name that follows from the user and its public name, and the id
    of the saved workspace with this internal name."""
    # The package has no public function for this.
    from wandb_workspaces.workspaces import internal

    mine = f"{user}/{workspace.entity}/{workspace.project}/{workspace.name}"
    key = hashlib.sha256(mine.encode()).hexdigest()[:11]
    workspace._internal_name = internal._url_query_str_to_internal_name(key)
    try:
        saved = internal.get_view_dict(workspace.entity, workspace.project, key)
    except ValueError:  # there is no such project or view yet
        return
    workspace._internal_id = saved["id"]


def _last_report(unsaved: Any, api: Any) -> str | None:
    """The id of the user's saved report with the same title and only kgon's blocks, or None."""
    wr = _reports()
    own = (wr.TableOfContents, wr.H2, wr.PanelGrid)
    for saved in api.reports(f"{unsaved.entity}/{unsaved.project}"):
        same = (saved.display_name, saved.user["username"]) == (unsaved.title, api.viewer.username)
        if same and all(
            isinstance(block, own) or block == wr.P()
            for block in wr.Report.from_url(saved.url).blocks
        ):
            return str(saved.id)
    return None


def as_json(unsaved: Any) -> str:
    """A workspace or a report as the JSON that is sent to the server."""
    # The package has no public function for this.
    return str(unsaved._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
