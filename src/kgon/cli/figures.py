"""kgon figures [DIR...]: the figures of runs; --film: a film of W; --x and --y: across a sweep."""

import sys
from pathlib import Path

from kgon.cli.terminal import Parser


def main() -> None:
    """Console entry: folders of runs, or folders that hold them."""
    parser = Parser(
        "Draw the figures of recorded training runs, without training, into their folders. With "
        "--film: the film of a member instead, figures/film.gif. With --x and --y: draw one result "
        "of the runs against a setting."
    )
    parser.add_folders()
    parser.add_argument("--x", help="a setting that varies, such as optimizer.lr")
    parser.add_argument("--y", help="a result, such as llc, phase, loss or transitions")
    parser.add_argument(
        "--out",
        type=Path,
        help="with --x and --y: the file, without .png; default: Y_against_X, where one stands",
    )
    parser.add_argument(
        "--film",
        action="store_true",
        help="W of one member, step by step, while a cursor runs along its loss and its LLC",
    )
    parser.add_argument(
        "--member", type=int, help="with --film: its number; default: the one with most transitions"
    )
    parser.add_argument(
        "--log", action="store_true", help="with --film: a logarithmic axis of steps"
    )
    arguments = parser.parse_args()
    across = [name for name in ("x", "y", "out") if getattr(arguments, name) is not None]
    if across and not {"x", "y"} <= set(across):
        parser.error("--x and --y are given together, --out only with them")
    if across and len(arguments.folder) > 1:
        parser.error(f"--x and --y take one folder, got {len(arguments.folder)}")
    if arguments.film and across:
        parser.error("--film is not given together with --x, --y or --out")
    if not arguments.film and (arguments.log or arguments.member is not None):
        parser.error("--member and --log are given only with --film")
    from kgon.figures import style  # not before: it imports torch
    from kgon.record.frames import load

    try:
        records = [load(folder) for folder in arguments.folder]
        if across:
            figure = records[0].against(arguments.x, arguments.y)
            name = f"{arguments.y}_against_{arguments.x}".replace("/", "_")
            print(*style.save(figure, arguments.out or Path(name)), sep="\n")
            return
    except ValueError as error:
        parser.error(str(error))
    left_out = 0
    for folder in (folder for record in records for folder in record.folders):
        try:
            if arguments.film:
                file = folder / "figures" / "film.gif"
                print(load(folder).film(file, arguments.member, log=arguments.log))
                continue
            figures = load(folder).figures()
        except (ValueError, OSError) as error:
            print(f"kgon figures: left out: {error}", file=sys.stderr)
            left_out += 1
            continue
        for name, figure in figures.items():
            print(style.save(figure, folder / "figures" / name)[0])
    sys.exit(int(left_out == sum(len(record.folders) for record in records)))
