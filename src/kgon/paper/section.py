"""An item of the page, and the section that shows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kgon.paper.jobs import JOBS, Results
from kgon.paper.rows import Row, Table


@dataclass(frozen=True)
class Block:
    """Rows that come from one command."""

    command: str
    rows: list[Row]


@dataclass(frozen=True)
class Picture:
    """A figure: its name, the name of its function in `drawings`, its data, its caption."""

    name: str
    drawing: str
    data: Mapping[str, Any]
    caption: str


@dataclass(frozen=True)
class Section:
    """The part of the page about one item."""

    blocks: list[Block] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """One heading of the page.

    Attributes:
        name: its name in `kgon paper item=...` and in the table of results.
        title: the heading.
        needs: names of the JOBS whose runs it reads.
        make: makes the section from the results.
        origin: "paper", "beyond" or "elhage".
        slow: the name of a result that takes minutes without being a job (`Results.once`). Such an
            item is on the page only if it was asked for, or if the result is stored.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    make: Callable[[Results], Section]
    origin: str = "paper"
    slow: str | None = None


def item_command(name: str) -> str:
    """The command of an item that needs no job."""
    return f"kgon paper item={name}"


def job_command(name: str, results: Results) -> str:
    """The command of a job."""
    return JOBS[name].text(results.quick)
