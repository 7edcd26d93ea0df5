"""Writing the page on the paper: Markdown, figures, their data and a table of results."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kgon.figures.style import save
from kgon.files import finite_or_none, write_text
from kgon.paper.drawings import DRAWINGS
from kgon.paper.items import ITEMS
from kgon.paper.rows import MARKS, NOT, VERDICTS, Row, Table
from kgon.paper.section import Item, Picture, Section

_ORIGINS = {
    "paper": ("The paper", "Chen, Lau, Mendel, Wei, Murfet 2023, arXiv 2310.06301."),
    "beyond": ("Beyond the paper", "Not in the paper: there is nothing published to compare with."),
    "elhage": (
        "Elhage et al.",
        "Pictures of Toy Models of Superposition (2022) from the same configs, which differ from "
        "theirs in size. Not in the paper; what they describe is told from their text, without "
        "numbers to compare with.",
    ),
}

_RULES = """\
**Verdicts** follow from rules, not from judgement (`kgon.paper.rows`). Let d = kgon − published and
z = d over the root of the summed squares of both standard errors and of the published number's
rounding.
A measured number is *reproduced* if |z| ≤ 2, *reproduced with a remark* if 2 < |z| ≤ 3, and *not
reproduced* beyond. A computed number is reproduced if it rounds to the published digits; a statement
if it is found true. What rests on an inference (I), a proposal or a stated remark is at best
*reproduced with a remark*. Where nobody has published a number, or only a derivation (D) outside the
paper has one, the verdict is *no published number*; such a reference is shown in italics and compared
all the same.

**How sure a published number is**, as the full text was not at hand when kgon was written:"""


def write_page(folder: Path, sections: Mapping[str, Section | None], how: str) -> dict[str, Any]:
    """Write README.md, results.json, figures/ and data/ into a folder; return the results.

    Args:
        folder: made if it does not exist.
        sections: by item. An item whose jobs have not been run has None, and keeps its section of
            the earlier page in the folder, if there is one.
        how: a sentence about the command that made the page, and what it ran.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts, rows = _earlier(folder)
    for item in ITEMS:
        section = sections.get(item.name)
        if section is None:
            continue
        for picture in section.pictures:
            draw(folder, picture)
        texts[item.name] = _section(item, section)
        rows[item.name] = [
            {"item": item.name, "command": block.command, **row.plain()}
            for block in section.blocks
            for row in block.rows
        ]
    known = [row for item in ITEMS for row in rows.get(item.name, ())]
    counts = Counter(row["verdict"] for row in known)
    results = {
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
        "not_run": [item.name for item in ITEMS if item.name not in rows],
        "rows": known,
    }
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    page = _page(texts, results, how)
    write_text(folder / "README.md", "\n".join(page).rstrip() + "\n")
    return results


def _earlier(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[dict[str, Any]]]]:
    """The text and the rows of each item on the earlier page in the folder, if there is one."""
    page, results = folder / "README.md", folder / "results.json"
    if not (page.exists() and results.exists()):
        return {}, {}
    stored = json.loads(results.read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in stored["rows"]:
        rows.setdefault(row["item"], []).append(row)
    parts = re.split(r"\n(?=#{2,3} )", page.read_text(encoding="utf-8"))
    names = {f"### {item.title}": item.name for item in ITEMS if item.name not in stored["not_run"]}
    lines = [part.rstrip().split("\n") for part in parts]
    return {names[own[0]]: ["", *own] for own in lines if own[0] in names}, rows


def draw(folder: Path, picture: Picture) -> None:
    """Write the picture's data and draw the figure from that file, so that the two agree."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    file = folder / "data" / f"{picture.name}.json"
    content = {"drawing": picture.drawing, "caption": picture.caption, **_rounded(picture.data)}
    write_text(file, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    stored = json.loads(file.read_text(encoding="utf-8"))
    save(DRAWINGS[stored["drawing"]](stored), folder / "figures" / picture.name)


def _rounded(node: Any) -> Any:
    """The data with floats of six significant digits, more than a figure shows, and None in place
    of NaN and infinity."""
    if isinstance(node, Mapping):
        return {str(k): _rounded(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_rounded(v) for v in node]
    if isinstance(node, float):
        return finite_or_none(float(f"{node:.6g}"))
    return node


def _page(texts: Mapping[str, list[str]], results: Mapping[str, Any], how: str) -> list[str]:
    lines = [
        "# The paper, number by number",
        "",
        "What *Dynamical versus Bayesian Phase Transitions in a Toy Model of Superposition* says, and "
        f"what kgon computes. {how}",
        "",
        "Beside this page: [`results.json`](results.json), every row of every table; `data/`, what "
        "each figure shows; `figures/`, each as PNG and SVG.",
        "",
        *_RULES.split("\n"),
        "",
        "| mark | meaning |",
        "|---|---|",
        *(f"| {mark} | {meaning} |" for mark, meaning in MARKS.items()),
        "",
        "Losses are summed over coordinates, without a factor 1/2. c is `n_features`, r `n_hidden`.",
        "",
        *_summary(results),
    ]
    origin = None
    for item in ITEMS:
        if item.origin != origin:
            origin = item.origin
            lines += ["", f"## {_ORIGINS[origin][0]}", "", _ORIGINS[origin][1]]
        not_run = f"Not run yet: `kgon paper item={item.name}`."
        lines += texts.get(item.name, ["", f"### {item.title}", "", not_run])
    return lines


def _summary(results: Mapping[str, Any]) -> list[str]:
    heads = [verdict.removeprefix("reproduced ") for verdict in VERDICTS]
    lines = ["| item | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for item in ITEMS:
        counts = Counter(r["verdict"] for r in results["rows"] if r["item"] == item.name)
        not_run = item.name in results["not_run"]
        cells = ["not run" if not_run else str(counts[verdict]) for verdict in VERDICTS]
        anchor = "".join(c for c in item.title.lower() if c.isalnum() or c in " -_")
        link = f"[{item.title}](#{anchor.replace(' ', '-')})"
        lines.append(f"| {link} | " + " | ".join(cells) + " |")
    totals = [f"**{results['verdicts'][verdict]}**" for verdict in VERDICTS]
    return [*lines, "| **all** | " + " | ".join(totals) + " |"]


def _section(item: Item, section: Section) -> list[str]:
    lines = ["", f"### {item.title}", ""]
    for picture in section.pictures:
        lines += [
            f'<a href="figures/{picture.name}.svg"><img src="figures/{picture.name}.png" '
            f'width="480" alt="{item.title}"></a>',
            "",
            f"*{picture.caption}* ([data](data/{picture.name}.json))",
            "",
        ]
    lines += [f"| {' | '.join(_COLUMNS)} |", "|---|--:|--:|--:|---|---|---|---|"]
    lines += [row_line(row, block.command) for block in section.blocks for row in block.rows]
    for note in section.notes:
        lines += ["", note]
    for table in section.tables:
        lines += ["", *_table(table)]
    return lines


_COLUMNS = ("quantity", "published", "kgon", "difference in s.e.", "verdict", "command",
            "source, how sure", "remark")  # fmt: skip


def row_line(row: Row, command: str) -> str:
    """A row of the page's tables, in Markdown."""
    published = row.published
    shown = source = "-"
    verdict = f"**{row.verdict}**" if row.verdict == NOT else row.verdict
    if published is not None:
        shown, source = str(published), f"{published.where} [{', '.join(published.marks)}]"
        if not published.in_the_paper:
            shown = f"*{published}*"
            verdict += " (disagrees with the reference)" if row.agreement == NOT else " (agrees)"
    commands = "<br>".join(f"`{part}`" for part in command.split(" ; "))
    cells = [row.quantity, shown, row.shown, row.shown_difference, verdict, commands, source,
             row.remark]  # fmt: skip
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(table: Table) -> list[str]:
    title, header, body = table
    return [
        f"**{title if title.startswith('k-') else title[0].upper() + title[1:]}**",
        "",
        "| " + " | ".join(_cell(h) for h in header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in body),
    ]
