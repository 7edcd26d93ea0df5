"""A W&B workspace of kgon's runs, and a report with the same sections.

`PANELS_OF` names, for each section, the commands that log its metrics; a test checks every key
against runs of those commands. Metrics whose names depend on the run (`phase/5+`) are selected by a
pattern, or shown in a figure.

Building them needs no network. It needs wandb-workspaces (the extra kgon[dashboards]), which takes
seconds to import.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STEP = "trainer/global_step"

PARAMETERS = (
    "model.n_features",
    "model.n_hidden",
    "data._target_",
    "n_samples",
    "batch_size",
    "optimizer.lr",
    "seed",
)
"""Config entries on the axes of a sweep's overview, in order."""

RESULTS = ("final/loss", "final/transitions", "final/diverged")
"""Numbers of a training run's summary on the axes of a sweep's overview."""

PANELS_OF = {
    "Training": ("train",),
    "Plateaus and phases": ("train",),
    "LLC against loss": ("train", "llc"),
    "Bayesian phases": ("posterior",),
    "Pictures": ("train",),
    "Sweep": ("train",),
}
"""The sections in order, each with the commands that log what it shows."""


def sections(parameters: Sequence[str]) -> dict[str, list[Any]]:
    """The panels of each section.

    Args:
        parameters: config entries on the axes of the sweep's overview.
    """
    wr = _reports()

    def lines(title: str, y: Sequence[str], **settings: Any) -> Any:
        return wr.LinePlot(title=title, x=settings.pop("x", STEP), y=list(y), **settings)

    def figure(title: str, key: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=[key], num_columns=2)

    steps = {"title_x": "step", "log_x": True, "log_y": True}
    groups = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    verdicts = ("ok", "unconverged", "escaped", "diverged")
    panels = {
        "Training": [
            lines("Population loss, mean of the members", ["loss/mean"], **steps),
            lines("Population loss: median and lowest", ["loss/median", "loss/min"], **steps),
            lines("Training loss, mean of the members", ["train_loss/mean"], **steps),
            lines("Population loss by sweep: mean and range", ["loss/mean"], **steps, **groups),
            lines("Members that diverged", ["members/diverged"], title_x="step"),
        ],
        "Plateaus and phases": [
            wr.LinePlot(
                title="Members by phase",
                x=STEP,
                metric_regex="^phase/.*",
                log_x=True,
                title_x="step",
            ),
            lines(
                "Plateaus, mean per member",
                ["plateaus/mean_per_member"],
                title_x="step",
                log_x=True,
            ),
            wr.ScalarChart(title="Transitions", metric=wr.SummaryMetric("final/transitions")),
            figure("Phases along training", "figures/phases"),
            figure("Staircase of levels", "figures/staircase"),
        ],
        "LLC against loss": [
            lines("LLC, mean of the ok estimates", ["llc/mean_ok"], title_x="step", log_x=True),
            lines(
                "LLC (ok estimates) against population loss, along training",
                ["llc/mean_ok"],
                x="loss/mean",
                log_x=True,
                title_x="mean population loss",
            ),
            wr.ScatterPlot(
                title="LLC against population loss, at the end of each run",
                x=wr.SummaryMetric("loss/mean"),
                y=wr.SummaryMetric("llc/mean"),
                log_x=True,
            ),
            lines(
                "Verdicts on estimates (shares)",
                [f"llc/share_{verdict}" for verdict in verdicts],
                range_y=(0, 1),
                title_x="step",
            ),
            figure("LLC with theory", "figures/llc"),
        ],
        "Bayesian phases": [
            figure("Posterior phases against n", "figures/phases"),
            figure("Log evidence against Laplace", "figures/log_evidence"),
            wr.BarPlot(
                title="Verdicts on posteriors (shares)",
                metrics=[
                    f"posterior/share_{v}" for v in ("ok", "unconverged", "unchecked", "diverged")
                ],
                range_x=(0, 1),
            ),
            wr.BarPlot(
                title="Agreement of fast labels with quenching",
                metrics=["agreement/output", "agreement/hull"],
                range_x=(0, 1),
            ),
        ],
        "Pictures": [
            wr.MediaBrowser(
                title="k-gons along training",
                media_keys=["media/weights"],
                mode="gallery",
                gallery_axis="step",
            ),
            figure("k-gons at the end", "figures/weights"),
            figure("Loss curves", "figures/loss"),
        ],
        "Sweep": [
            wr.ParallelCoordinatesPlot(
                title="Parameters and results",
                columns=[
                    *(
                        wr.ParallelCoordinatesPlotColumn(
                            metric=wr.Config(name), display_name=name, log=name.endswith(".lr")
                        )
                        for name in parameters
                    ),
                    *(
                        wr.ParallelCoordinatesPlotColumn(
                            metric=wr.SummaryMetric(name), display_name=name
                        )
                        for name in RESULTS
                    ),
                ],
            ),
            *(
                wr.ScatterPlot(
                    title=f"Final loss against {name}",
                    x=wr.Config(name),
                    y=wr.SummaryMetric("final/loss"),
                    log_y=True,
                )
                for name in ("optimizer.lr", "n_samples")
                if name in parameters
            ),
        ],
    }
    assert list(panels) == list(PANELS_OF)
    return panels


def _reports() -> Any:
    """The module of panels and reports, untyped because its stubs export no names."""
    return importlib.import_module("wandb_workspaces.reports.v2")


def columns(parameters: Sequence[str]) -> list[str]:
    """The columns pinned in the table of runs."""
    config = [f"config:{_accessor(name)}" for name in parameters]
    return ["run:displayName", "run:state", *config, *(f"summary:{name}" for name in RESULTS)]


def _accessor(name: str) -> str:
    """A config entry's name in W&B, which puts `value` after the first key."""
    first, *below = name.split(".")
    return ".".join([first, "value", *below])


@dataclass(frozen=True)
class View:
    """What a workspace or a report shows.

    Attributes:
        entity: the owner of the project.
        project: the project of the runs.
        name: the name of the workspace or report.
        sweep: show only this group of runs; None shows all runs, grouped by sweep.
        parameters: config entries on the axes of the sweep's overview.
    """

    entity: str
    project: str
    name: str
    sweep: str | None = None
    parameters: Sequence[str] = PARAMETERS


def workspace(view: View) -> Any:
    """An unsaved `wandb_workspaces.workspaces.Workspace`."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    group = expr.Metric("Group")
    return ws.Workspace(
        entity=view.entity,
        project=view.project,
        name=view.name,
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in sections(view.parameters).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(group == view.sweep) if view.sweep else "",
            groupby=[] if view.sweep else [group],
            pinned_columns=columns(view.parameters),
        ),
    )


def report(view: View) -> Any:
    """An unsaved `wandb_workspaces.reports.v2.Report` with the same sections."""
    import wandb_workspaces.expr as expr

    wr = _reports()

    blocks: list[Any] = [wr.TableOfContents()]
    for title, panels in sections(view.parameters).items():
        # Without entity and project, which are then the report's own: naming them would need an
        # answer from the server.
        runs = wr.Runset(
            name=view.sweep or "runs",
            filters=expr.And(expr.Metric("Group") == view.sweep) if view.sweep else "",
            groupby=[] if view.sweep else ["group"],
            pinned_columns=columns(view.parameters),
        )
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=view.entity, project=view.project, title=view.name, blocks=blocks)


def as_json(unsaved: Any) -> str:
    """The JSON of a workspace or a report, as it is sent to the server."""
    # The package has no public function for this.
    return str(unsaved._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
