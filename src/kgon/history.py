"""What was recorded during training: tables with a row for each step and member."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class History:
    """Tables by name; each record holds, for one step, columns of shape (n_members, ...).

    What does not fit that form (plateaus: some for each member) is in `lists`, by name a list of
    rows for each member. What loggers are given is `logged`: for each step a dict of `step`,
    `metrics` (numbers by name) and `pictures` (files by name).

    It goes into checkpoints with the model, so that a resumed run has the whole of its record.
    What was logged is with each job of a packed ensemble: no part of `state_dict`.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {}
        self._records: dict[str, list[dict[str, Tensor]]] = {}
        self.lists: dict[str, list[list[dict[str, Any]]]] = {}
        self.logged: list[dict[str, Any]] = []

    def add(self, table: str, step: int, **columns: Tensor) -> None:
        """Append a record; a table's columns must be the same every time."""
        records = self._records.setdefault(table, [])
        if records and records[0].keys() != columns.keys():
            raise ValueError(f"{table} has columns {list(records[0])}, got {list(columns)}")
        self._steps.setdefault(table, []).append(step)
        records.append({name: value.detach().cpu().clone() for name, value in columns.items()})

    def log(self, step: int, metrics: dict[str, float], pictures: dict[str, str]) -> None:
        """Add to the row of a step, the last one or a new one; steps never go back."""
        if not self.logged or self.logged[-1]["step"] < step:
            self.logged.append({"step": step, "metrics": {}, "pictures": {}})
        row = self.logged[-1]
        if row["step"] != step:
            raise ValueError(f"step {step} is logged after step {row['step']}")
        row["metrics"] |= metrics
        row["pictures"] |= pictures

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

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a list, of all members one after the other."""
        return [row for rows in self.lists.get(name, []) for row in rows]

    def of_members(self, where: slice) -> "History":
        """The record of some members only; what was logged of all is no part of it."""
        part = History()
        part._steps = {table: list(steps) for table, steps in self._steps.items()}
        part._records = {
            table: [{k: column[where].clone() for k, column in r.items()} for r in records]
            for table, records in self._records.items()
        }
        part.lists = {name: rows[where] for name, rows in self.lists.items()}
        return part

    @classmethod
    def joined(cls, parts: Sequence["History"]) -> "History":
        """The record of ensembles that were looked at at the same steps, as that of one."""
        whole = cls()
        whole._steps = dict(parts[0]._steps)
        if any(part._steps != whole._steps for part in parts):
            raise ValueError("the records were made at different steps")
        whole._records = {
            table: [
                {k: torch.cat([part._records[table][i][k] for part in parts]) for k in record}
                for i, record in enumerate(records)
            ]
            for table, records in parts[0]._records.items()
        }
        whole.lists = {
            name: [rows for part in parts for rows in part.lists[name]] for name in parts[0].lists
        }
        return whole

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "records": self._records, "lists": self.lists}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._records = state["steps"], state["records"]
        self.lists = state["lists"]
