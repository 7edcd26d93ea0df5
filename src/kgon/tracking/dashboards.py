"""A W&B workspace, and a report of the same sections, about the runs of kgon.

A panel names what the commands log, and nothing else: `PANELS_OF` says of each section which
command logs what it shows, and a test holds every key against runs of these. Keys that depend on
what a run finds (`phase/5+`, `share/6/1000`) are asked for by a pattern, or shown in the figure
that has them all.

Building needs no network; wandb-workspaces (the extra kgon[dashboards]) is imported then, which
takes seconds.
"""

from collections.abc import Sequence
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
"""Of the model, the data and the training: the axes of a sweep's overview, in order."""

RESULTS = ("final/loss", "final/transitions", "final/diverged")
"""Of a training run's summary."""

PANELS_OF = {
    "Training": ("train",),
    "Plateaus and phases": ("train",),
    "LLC against loss": ("train", "llc"),
    "Bayesian phases": ("posterior",),
    "Pictures": ("train",),
    "Sweep": ("train",),
}
"""The sections, in order, and the commands that log what they show."""


def sections(parameters: Sequence[str]) -> dict[str, list[Any]]:
    """The panels by section.

    Args:
        parameters: names in the config, the axes of the sweep's overview.
    """
    import wandb_workspaces.reports.v2 as wr

    def lines(title: str, y: Sequence[str], **settings: Any) -> Any:
        return wr.LinePlot(title=title, x=settings.pop("x", STEP), y=list(y), **settings)

    def share(title: str, pattern: str) -> Any:
        return wr.LinePlot(
            title=title, x=STEP, metric_regex=pattern, log_x=True, range_y=(0, 1), title_x="step"
        )

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
            share("Share of members by phase", "^phase/.*"),
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
            lines("LLC, mean of the trusted estimates", ["llc/mean"], title_x="step", log_x=True),
            lines(
                "LLC against population loss, along training",
                ["llc/mean"],
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


def columns(parameters: Sequence[str]) -> list[str]:
    """The pinned columns of the table of runs."""
    config = [f"config:{_accessor(name)}" for name in parameters]
    return ["run:displayName", "run:state", *config, *(f"summary:{name}" for name in RESULTS)]


def _accessor(name: str) -> str:
    """W&B keeps a config's entry under `value`, below its first key."""
    first, *below = name.split(".")
    return ".".join([first, "value", *below])


def workspace(
    entity: str,
    project: str,
    name: str,
    sweep: str | None = None,
    parameters: Sequence[str] = PARAMETERS,
) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`, not saved yet.

    Args:
        entity: whose project it is.
        project: where the runs are.
        name: of the view.
        sweep: the group of runs that is shown; None: all, grouped by sweep.
        parameters: names in the config.
    """
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    group = expr.Metric("Group")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in sections(parameters).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(group == sweep) if sweep else "",
            groupby=[] if sweep else [group],
            pinned_columns=columns(parameters),
        ),
    )


def report(
    entity: str,
    project: str,
    name: str,
    sweep: str | None = None,
    parameters: Sequence[str] = PARAMETERS,
) -> Any:
    """A `wandb_workspaces.reports.v2.Report` of the same sections, not saved yet.

    Its arguments are those of `workspace`.
    """
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for title, panels in sections(parameters).items():
        # Without entity and project, the report's own: to name them would ask the server.
        runs = wr.Runset(
            name=sweep or "runs",
            filters=expr.And(expr.Metric("Group") == sweep) if sweep else "",
            groupby=[] if sweep else ["group"],
            pinned_columns=columns(parameters),
        )
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=name, blocks=blocks)


def as_json(view: Any) -> str:
    """What a workspace or a report sends to the server, exactly."""
    # The package has no public way to ask for it.
    return str(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
