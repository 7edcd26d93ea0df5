"""The dictionary of columns, docs/columns.md: `python -m kgon.record.columns > docs/columns.md`."""

from kgon.record.tables import RECORDED

_FRAMES = {"loss": "losses"}
"""The names in Python that differ from those of the files."""


def page() -> str:
    """Each table of a training run with its columns: name, type, unit, meaning."""
    lines = [
        "# Columns",
        "",
        "The tables of a training run, as `kgon.load` gives them (pandas) and as they are in the "
        "run's folder (Parquet). `python -m kgon.record.columns` writes this page from the rows' "
        "docstrings.",
        "",
        "In Python every table has two kinds of columns more: `run`, the run's folder, and one for "
        "each setting that varies between the runs, named as on the command line "
        "(`optimizer.lr`). Where a table has a column of that name, it is `config.members`, for "
        "instance.",
    ]
    for name, kind in RECORDED.items():
        summary = (kind.__doc__ or "").split("\n\n")[0]
        lines += ["", f"## {_FRAMES.get(name, name)}", "", f"`{name}.parquet`. {summary}", ""]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        for column in kind.explained():
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| `{column.name}` | {column.type} | {column.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
