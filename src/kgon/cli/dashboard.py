"""kgon dashboard: a W&B workspace, or a report, about kgon's runs."""

import argparse
import importlib.util
import sys
from pathlib import Path

from kgon.tracking import account, dashboards


def main() -> None:
    """Console entry; status 1 if the server did not take it, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog=sys.argv[0],
        description="Make a W&B workspace: training, phases, learning coefficients, posteriors, "
        "pictures and the overview of a sweep.",
    )
    parser.add_argument("--entity", help="a user or a team; default: the key's own")
    parser.add_argument("--project", default="kgon", help="default: kgon")
    parser.add_argument("--name", help="of the workspace; default: kgon, or the sweep's name")
    parser.add_argument(
        "--sweep", help="show the runs of this group only; default: all, grouped by sweep"
    )
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        help="one more name in the config for the sweep's overview, such as data.sparsity",
    )
    parser.add_argument("--report", action="store_true", help="a W&B report of the same sections")
    parser.add_argument(
        "--offline",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write its JSON to a file, or to standard output, and save nothing",
    )
    arguments = parser.parse_args()
    if importlib.util.find_spec("wandb_workspaces") is None:
        parser.error("wandb-workspaces is missing; run: pip install 'kgon[dashboards]'")
    build = dashboards.report if arguments.report else dashboards.workspace
    entity = arguments.entity
    if arguments.offline is None:
        try:
            api = account.connect(account.ANSWER_SECONDS)
        except account.NoKey as error:
            parser.error(f"{error}; or use --offline")
        except account.NoAnswer as error:
            print(f"kgon dashboard: error: {error}", file=sys.stderr)
            sys.exit(1)
        entity = entity or api.default_entity
    view = build(
        entity or "",
        arguments.project,
        arguments.name or arguments.sweep or "kgon",
        arguments.sweep,
        [*dashboards.PARAMETERS, *arguments.parameter],
    )
    if arguments.offline is None:
        view.save()
        print(view.url)
    elif arguments.offline == "-":
        print(dashboards.as_json(view))
    else:
        Path(arguments.offline).write_text(dashboards.as_json(view) + "\n", encoding="utf-8")
        print(arguments.offline)
