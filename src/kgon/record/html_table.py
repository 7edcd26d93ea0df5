"""Tables of a page that a reader can sort."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np


class Cell:
    """A table cell whose HTML differs from the value it is sorted by."""

    def __init__(self, value: str, html: str, css_class: str = ""):
        self.value = value
        self.html = html
        self.css_class = css_class


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    attributes: Sequence[str] | None = None,
    *,
    identifier: str | None = None,
) -> str:
    """A sortable table; `attributes` are the rows'. Numbers show 5 digits and sort in full; what
    is empty or not finite sorts last."""
    numeric = [
        any(isinstance(row[i], int | float) for row in rows)
        and all(row[i] is None or isinstance(row[i], int | float) for row in rows)
        for i in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col" aria-sort="none"{_class(n)}>'
        f'<button type="button">{escape(c)}</button></th>'
        for c, n in zip(columns, numeric, strict=True)
    )
    lines = []
    for n, row in enumerate(rows):
        cells = "".join(_cell(v, right) for v, right in zip(row, numeric, strict=True))
        lines.append(f"<tr {attributes[n]}>{cells}</tr>" if attributes else f"<tr>{cells}</tr>")
    name = f' id="{identifier}"' if identifier else ""
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0"><table class="sortable"{name}>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _cell(value: Any, numeric: bool) -> str:
    if isinstance(value, Cell):
        return f'<td class="{value.css_class}" data-value="{escape(value.value)}">{value.html}</td>'
    if value is None:
        return f"<td{_class(numeric)}></td>"
    if isinstance(value, float):
        key = repr(value) if np.isfinite(value) else ""
        return f'<td class="number" data-value="{key}">{value:.5g}</td>'
    return f"<td{_class(numeric)}>{escape(str(value))}</td>"
