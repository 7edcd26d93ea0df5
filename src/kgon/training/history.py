"""What is recorded during training: tables with a row for each step and member."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LAST = slice(-1, None)
"""The last record of a table."""


class History:
    """Tables by name; a record holds, for one step, columns of shape (n_members, ...).

    `lists` holds by name what varies in number from member to member, such as plateaus: a list of
    rows for each member. Checkpoints contain the `state_dict`.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._steps: dict[str, list[int]] = state.get("steps", {})
        self._columns: dict[str, dict[str, list[Tensor]]] = {
            table: {name: [column] for name, column in columns.items()}
            for table, columns in state.get("columns", {}).items()
        }
        """By table and column, pieces (n_records, n_members, ...) to be concatenated."""
        self.lists: dict[str, list[list[Any]]] = state.get("lists", {})

    def add(self, table: str, step: int, **columns: Tensor) -> None:
        """Append a record."""
        pieces = self._columns.setdefault(table, {name: [] for name in columns})
        if pieces.keys() != columns.keys():
            raise ValueError(
                f"the table {table!r} has the columns {', '.join(pieces)}, got {', '.join(columns)}"
            )
        self._steps.setdefault(table, []).append(step)
        for name, value in columns.items():
            pieces[name].append(value.detach().cpu().clone()[None])

    @property
    def tables(self) -> set[str]:
        """The tables' names."""
        return set(self._columns)

    def __contains__(self, table: str) -> bool:
        return table in self._columns

    def steps(self, table: str) -> Tensor:
        """The steps of a table's records, (n_records,)."""
        return torch.tensor(self._steps[table])

    def column(self, table: str, name: str, records: slice = slice(None)) -> Tensor:
        """One column, (n_records, n_members, ...), over all records or some."""
        pieces = self._columns[table][name]
        if records == LAST:  # callbacks ask for it at every record, so do not join the pieces
            return pieces[-1][-1:]
        if len(pieces) > 1:
            pieces[:] = [torch.cat(pieces)]
        return pieces[0][records]

    def columns(self, table: str, records: slice = slice(None)) -> dict[str, Tensor]:
        """All columns of a table, each (n_records, n_members, ...)."""
        return {name: self.column(table, name, records) for name in self._columns[table]}

    def rows(self, name: str) -> list[Any]:
        """The rows of a list, member by member."""
        return [row for rows in self.lists.get(name, []) for row in rows]

    def of_members(self, members: slice, records: slice = slice(None)) -> "History":
        """The history of some members, with all records or some."""
        columns = {
            table: {name: c[:, members].clone() for name, c in self.columns(table, records).items()}
            for table in self._columns
        }
        steps = {table: steps[records] for table, steps in self._steps.items()}
        lists = {name: rows[members] for name, rows in self.lists.items()}
        return History({"steps": steps, "columns": columns, "lists": lists})

    @classmethod
    def joined(cls, histories: Sequence["History"]) -> "History":
        """The histories of several ensembles as one, in order of members."""
        first = histories[0]
        if any(history._steps != first._steps for history in histories):
            raise ValueError("the records were made at different steps")
        columns = {
            table: {name: torch.cat([h.column(table, name) for h in histories], 1) for name in own}
            for table, own in first._columns.items()
        }
        lists = {name: [rows for h in histories for rows in h.lists[name]] for name in first.lists}
        return cls({"steps": dict(first._steps), "columns": columns, "lists": lists})

    def state_dict(self) -> dict[str, Any]:
        """The history as plain containers of tensors."""
        return {
            "steps": self._steps,
            "columns": {table: self.columns(table) for table in self._columns},
            "lists": self.lists,
        }
