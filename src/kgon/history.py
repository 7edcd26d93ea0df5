"""What was recorded during training: tables with a row for each step and member."""

from typing import Any

import torch
from torch import Tensor


class History:
    """Tables by name; each record holds, for one step, columns of shape (n_members, ...).

    What does not fit that form (plateaus: some for each member) is a list of `rows` by name.

    It goes into checkpoints with the model, so that a resumed run has the whole of its record.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {}
        self._records: dict[str, list[dict[str, Tensor]]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, step: int, **columns: Tensor) -> None:
        """Append a record; a table's columns must be the same every time."""
        records = self._records.setdefault(table, [])
        if records and records[0].keys() != columns.keys():
            raise ValueError(f"{table} has columns {list(records[0])}, got {list(columns)}")
        self._steps.setdefault(table, []).append(step)
        records.append({name: value.detach().cpu().clone() for name, value in columns.items()})

    def __contains__(self, table: str) -> bool:
        return table in self._records

    def steps(self, table: str) -> Tensor:
        """The steps at which the table was added to, (n_records,)."""
        return torch.tensor(self._steps[table])

    def column(self, table: str, name: str) -> Tensor:
        """One column over all records, (n_records, n_members, ...)."""
        return torch.stack([record[name] for record in self._records[table]])

    def columns(self, table: str) -> dict[str, Tensor]:
        """All columns of a table, each (n_records, n_members, ...)."""
        return {name: self.column(table, name) for name in self._records[table][0]}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "records": self._records, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._records = state["steps"], state["records"]
        self.rows = state["rows"]
