"""The README's Python runs, and its numbers are the documents'."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("6 0.04819 8.5 minimum")


def test_rows_of_the_paper_are_those_of_the_whole_table():
    _, _, table = README.read_text().partition("Ten rows of it:\n\n")
    table, _, _ = table.partition("\n\n")
    head, _, *rows = table.splitlines()
    assert head.startswith("| what | published | kgon |") and len(rows) == 10
    whole = (README.parent / "docs" / "paper" / "README.md").read_text().splitlines()
    assert [row for row in rows if not any(line.startswith(row) for line in whole)] == []
