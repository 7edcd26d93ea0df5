"""kgon dashboard: a W&B workspace or report of kgon's runs."""

import importlib.util
import sys
from pathlib import Path

from kgon.cli.terminal import Parser
from kgon.files import write_text
from kgon.tracking import account, dashboards


def main() -> None:
    """Console entry: status 1 if the server does not answer, 2 for bad input."""
    parser = Parser(
        "Make a W&B workspace with panels for training, phases, LLC, "
        "posteriors, pictures and sweeps; called again, it updates the one of the same name."
    )
    parser.add_argument("--entity", help="user or team; default: that of the API key")
    parser.add_argument("--project", default="kgon", help="default: kgon")
    parser.add_argument("--name", help="name of the workspace; default: kgon, or the sweep's name")
    parser.add_argument(
        "--sweep", help="show only the runs of this sweep; default: all, grouped by sweep"
    )
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        help="another config entry for the sweep's overview, such as data.sparsity",
    )
    parser.add_argument(
        "--report", action="store_true", help="a W&B report of the same sections instead"
    )
    parser.add_argument(
        "--offline",
        nargs="?",
        const="-",
        metavar="FILE",
        help="only write the JSON to a file, or to standard output",
    )
    arguments = parser.parse_args()
    if importlib.util.find_spec("wandb_workspaces") is None:
        parser.error("wandb-workspaces is not installed; run: pip install 'kgon[dashboards]'")
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
    try:
        unsaved = dashboards.view(
            entity or "",
            arguments.project,
            arguments.name or arguments.sweep or "kgon",
            arguments.sweep,
            [*dashboards.PARAMETERS, *arguments.parameter],
            as_report=arguments.report,
        )
    except ValueError as error:
        parser.error(account.first_line(error))
    if arguments.offline is None:
        try:
            print(dashboards.save(unsaved, api))
        except account.client_errors() as error:
            print(f"kgon dashboard: error: not saved: {account.first_line(error)}", file=sys.stderr)
            sys.exit(1)
    elif arguments.offline == "-":
        print(dashboards.as_json(unsaved))
    else:
        try:
            write_text(Path(arguments.offline), dashboards.as_json(unsaved) + "\n")
        except OSError as error:
            parser.error(f"--offline {arguments.offline}: {error.strerror}")
        print(arguments.offline)
