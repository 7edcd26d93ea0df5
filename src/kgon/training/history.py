"""What is recorded during training: tables with a row for each step and member."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LAST = slice(-1, None)
"""The last record of a table."""


class History:
    """Tables by name; each record holds, for one step, columns of shape (n_members, ...).

    `lists` holds what has a varying number of rows per member, such as plateaus: by name, a list of
    rows for each member. The history is saved in checkpoints, so a resumed run has all of it.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {}
        self._columns: dict[str, dict[str, list[Tensor]]] = {}
        """By table and column, pieces (n_records, n_members, ...) to be concatenated."""
        self.lists: dict[str, list[list[Any]]] = {}

    def add(self, table: str, step: int, **columns: Tensor) -> None:
        """Append a record; a table's columns must be the same every time."""
        pieces = self._columns.setdefault(table, {name: [] for name in columns})
        if pieces.keys() != columns.keys():
            raise ValueError(f"{table} has columns {list(pieces)}, got {list(columns)}")
        self._steps.setdefault(table, []).append(step)
        for name, value in columns.items():
            pieces[name].append(value.detach().cpu().clone()[None])

    def __contains__(self, table: str) -> bool:
        return table in self._columns

    def steps(self, table: str) -> Tensor:
        """The steps of a table's records, (n_records,)."""
        return torch.tensor(self._steps[table])

    def column(self, table: str, name: str, records: slice = slice(None)) -> Tensor:
        """One column, (n_records, n_members, ...), over all records or some."""
        pieces = self._columns[table][name]
        if records == LAST:  # without joining the pieces: callbacks ask for it at every record
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
        part = History()
        for table, steps in self._steps.items():
            part._steps[table] = steps[records]
            part._columns[table] = {
                name: [column[:, members].clone()]
                for name, column in self.columns(table, records).items()
            }
        part.lists = {name: rows[members] for name, rows in self.lists.items()}
        return part

    @classmethod
    def joined(cls, histories: Sequence["History"]) -> "History":
        """The histories of several ensembles as one, in order of members.

        Raises:
            ValueError: they were recorded at different steps.
        """
        first, whole = histories[0], cls()
        if any(history._steps != first._steps for history in histories):
            raise ValueError("the records were made at different steps")
        whole._steps = dict(first._steps)
        whole._columns = {
            table: {
                name: [torch.cat([history.column(table, name) for history in histories], 1)]
                for name in columns
            }
            for table, columns in first._columns.items()
        }
        whole.lists = {
            name: [rows for history in histories for rows in history.lists[name]]
            for name in first.lists
        }
        return whole

    def state_dict(self) -> dict[str, Any]:
        """The history as plain containers of tensors."""
        return {
            "steps": self._steps,
            "columns": {table: self.columns(table) for table in self._columns},
            "lists": self.lists,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace this history by one from `state_dict`."""
        self._steps = state["steps"]
        self._columns = {
            table: {name: [column] for name, column in columns.items()}
            for table, columns in state["columns"].items()
        }
        self.lists = state["lists"]
