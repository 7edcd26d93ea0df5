"""Tables of a page that a reader can sort."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A table cell whose HTML differs from the value it is sorted by."""

    value: str
    html: str
    css_class: str = ""


Value = int | float | str | None | Cell


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Value]],
    attributes: Sequence[str] | None = None,
    *,
    identifier: str | None = None,
) -> str:
    """A sortable table. Numbers show 5 digits and sort in full; blanks sort last.

    Text is escaped. `attributes` are the HTML attributes of each row, `identifier` of the table.
    """
    numeric = [
        all(row[i] is None or isinstance(row[i], int | float) for row in rows)
        and any(row[i] is not None for row in rows)
        for i in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col" aria-sort="none"{_NUMBER * n}>'
        f'<button type="button">{escape(c)}</button></th>'
        for c, n in zip(columns, numeric, strict=True)
    )
    body = "\n".join(
        f"<tr{f' {attributes[n]}' if attributes else ''}>"
        + "".join(_cell(v, right) for v, right in zip(row, numeric, strict=True))
        + "</tr>"
        for n, row in enumerate(rows)
    )
    name = f' id="{identifier}"' if identifier else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="sortable"{name}>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


_NUMBER = ' class="number"'


def _cell(value: Value, numeric: bool) -> str:
    if isinstance(value, Cell):
        return f'<td class="{value.css_class}" data-value="{escape(value.value)}">{value.html}</td>'
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        shown, key = f"{value:.5g}", repr(value) if math.isfinite(value) else ""
        return f"<td{_NUMBER}" + (f' data-value="{key}"' if key != shown else "") + f">{shown}</td>"
    return f"<td{_NUMBER * numeric}>{escape(str(value))}</td>"
