"""The dictionary of columns, docs/columns.md: `python -m kgon.cli.columns > docs/columns.md`."""

from collections.abc import Iterator, Mapping

from kgon.cli import atlas, llc, posterior
from kgon.record.tables import RECORDED, columns

_FRAMES = {"loss": "losses"}
"""The names in Python that differ from those of the files."""

TABLES: dict[str, Mapping[str, type]] = {
    "kgon llc": llc.TABLES,
    "kgon llc run=DIR": llc.TABLES_OF_A_RUN,
    "kgon posterior": posterior.TABLES,
    "kgon atlas": atlas.TABLES,
}
"""The tables of other commands than `kgon train`, by file name, and their rows."""


def page() -> str:
    """Each table with its columns: name, type, unit, meaning."""
    lines = [
        "# Columns",
        "",
        "The tables of a training run, as `kgon.load` gives them (pandas) and as they are in the "
        "run's folder (Parquet), and those that other commands leave in theirs. "
        "`python -m kgon.cli.columns` writes this page from the rows' docstrings.",
        "",
        "In Python every table of a training run has two more kinds of columns: `run`, the run's "
        "folder, and one for each setting that varies between the runs, named as on the command "
        "line (`optimizer.lr`). Where a table has a column of that name, it is `config.members`, "
        "for instance.",
    ]
    for name, kind in RECORDED.items():
        lines += ["", f"## {_FRAMES.get(name, name)}", *_table(name, kind)]
    for command, tables in TABLES.items():
        lines += ["", f"## {command}"]
        for name, kind in tables.items():
            lines += ["", f"### {name}", *_table(name, kind)]
    return "\n".join(lines) + "\n"


def _table(name: str, kind: type) -> Iterator[str]:
    summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    yield from ("", f"`{name}.parquet`. {summary}", "")
    yield from ("| column | type | unit | meaning |", "|---|---|---|---|")
    for column in columns(kind):
        meaning = column.meaning.replace("|", "\\|")
        yield f"| `{column.name}` | {column.type} | {column.unit} | {meaning} |"


if __name__ == "__main__":
    print(page(), end="")
