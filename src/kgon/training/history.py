"""What was recorded during training: tables with a row for each step and member."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


class History:
    """Tables by name; each record holds, for one step, columns of shape (n_members, ...).

    What does not fit that form (plateaus: some for each member) is in `lists`, by name a list of
    rows for each member. What loggers are given is `logged`: for each step a dict of `step`,
    `metrics` (by name, (n_jobs,), NaN where a job has none) and `pictures` (by job, files by name).

    It goes into checkpoints with the model, so that a resumed run has the whole of its record.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {}
        self._columns: dict[str, dict[str, list[Tensor]]] = {}
        """By table and name, pieces (n_records, n_members, ...) that follow one another."""
        self.lists: dict[str, list[list[dict[str, Any]]]] = {}
        self.logged: list[dict[str, Any]] = []

    def add(self, table: str, step: int, **columns: Tensor) -> None:
        """Append a record; a table's columns must be the same every time."""
        pieces = self._columns.setdefault(table, {name: [] for name in columns})
        if pieces.keys() != columns.keys():
            raise ValueError(f"{table} has columns {list(pieces)}, got {list(columns)}")
        self._steps.setdefault(table, []).append(step)
        for name, value in columns.items():
            pieces[name].append(value.detach().cpu().clone()[None])

    def log(
        self,
        step: int,
        metrics: Mapping[str, Tensor] = MappingProxyType({}),
        pictures: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add to the row of a step, the last one or a new one; steps never go back.

        `metrics` are those of all jobs, `pictures` of the only one: packs draw none.
        """
        if not self.logged or self.logged[-1]["step"] < step:
            self.logged.append({"step": step, "metrics": {}, "pictures": {}})
        row = self.logged[-1]
        if row["step"] != step:
            raise ValueError(f"step {step} is logged after step {row['step']}")
        row["metrics"] |= metrics
        if pictures:
            row["pictures"].setdefault(0, {}).update(pictures)

    def __contains__(self, table: str) -> bool:
        return table in self._columns

    def steps(self, table: str) -> Tensor:
        """The steps at which the table was added to, (n_records,)."""
        return torch.tensor(self._steps[table])

    def column(self, table: str, name: str) -> Tensor:
        """One column over all records, (n_records, n_members, ...)."""
        pieces = self._columns[table][name]
        if len(pieces) > 1:
            pieces[:] = [torch.cat(pieces)]
        return pieces[0]

    def columns(self, table: str) -> dict[str, Tensor]:
        """All columns of a table, each (n_records, n_members, ...)."""
        return {name: self.column(table, name) for name in self._columns[table]}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a list, of all members one after the other."""
        return [row for rows in self.lists.get(name, []) for row in rows]

    def of_members(self, where: slice) -> "History":
        """The record of some members only, without what was logged of all."""
        part = History()
        part._steps = {table: list(steps) for table, steps in self._steps.items()}
        part._columns = {
            table: {k: [column[:, where].clone()] for k, column in self.columns(table).items()}
            for table in self._columns
        }
        part.lists = {name: rows[where] for name, rows in self.lists.items()}
        return part

    def logged_of(self, job: int) -> list[dict[str, Any]]:
        """What was logged of one job of a pack, as it would have been of the job alone."""
        return [
            {
                "step": row["step"],
                "metrics": {
                    name: values[job : job + 1].clone()
                    for name, values in row["metrics"].items()
                    if not values[job].isnan()
                },
                "pictures": {0: row["pictures"][job]} if job in row["pictures"] else {},
            }
            for row in self.logged
        ]

    @classmethod
    def joined(cls, parts: Sequence["History"]) -> "History":
        """The record of ensembles that were looked at at the same steps, as that of one."""
        whole = cls()
        whole._steps = dict(parts[0]._steps)
        if any(part._steps != whole._steps for part in parts):
            raise ValueError("the records were made at different steps")
        whole._columns = {
            table: {k: [torch.cat([part.column(table, k) for part in parts], 1)] for k in columns}
            for table, columns in parts[0]._columns.items()
        }
        whole.lists = {
            name: [rows for part in parts for rows in part.lists[name]] for name in parts[0].lists
        }
        by_step = [{row["step"]: row for row in part.logged} for part in parts]
        # A job that drew pictures has rows that others lack.
        steps = sorted(set().union(*by_step))
        whole.logged = [_joined_row(step, [rows.get(step) for rows in by_step]) for step in steps]
        return whole

    def state_dict(self) -> dict[str, Any]:
        # One tensor for each metric: one for each number would take many times as long to write.
        places: dict[str, list[int]] = {}
        for i, row in enumerate(self.logged):
            for name in row["metrics"]:
                places.setdefault(name, []).append(i)
        metrics = {
            name: {
                "rows": torch.tensor(rows),
                "values": torch.stack([self.logged[i]["metrics"][name] for i in rows]),
            }
            for name, rows in places.items()
        }
        return {
            "steps": self._steps,
            "columns": {table: self.columns(table) for table in self._columns},
            "lists": self.lists,
            "logged": [row | {"metrics": {}} for row in self.logged],
            "metrics": metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        self._columns = {
            table: {name: [column] for name, column in columns.items()}
            for table, columns in state["columns"].items()
        }
        self.lists = state["lists"]
        self.logged = [row | {"metrics": {}} for row in state["logged"]]
        for name, column in state["metrics"].items():
            for i, values in zip(column["rows"].tolist(), column["values"], strict=True):
                self.logged[i]["metrics"][name] = values


def numbers_of(metrics: Mapping[str, Tensor], job: int) -> dict[str, float]:
    """The metrics of one job, those that it has."""
    values = {name: float(values[job]) for name, values in metrics.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _joined_row(step: int, rows: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """What several ensembles of one job each logged at a step, if they did, as one row."""
    none = torch.full((1,), torch.nan, dtype=torch.float64)
    metrics = [row["metrics"] if row else {} for row in rows]
    pictures = [row["pictures"] if row else {} for row in rows]
    names = dict.fromkeys(name for own in metrics for name in own)
    return {
        "step": step,
        "metrics": {n: torch.cat([own.get(n, none) for own in metrics]) for n in names},
        "pictures": {job: own[0] for job, own in enumerate(pictures) if own},
    }
