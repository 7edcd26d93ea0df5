"""Results of recorded runs as pandas DataFrames: `kgon.load`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from kgon.figures.sweep import against_parameter, parts
from kgon.record import run_directory, tables
from kgon.record.run_directory import WITHOUT_EFFECT, RunDirectory, leaves
from kgon.record.tables import RECORDED

if TYPE_CHECKING:
    from kgon.record.drawing import Drawing


@dataclass(frozen=True)
class Record:
    """What one run, or the runs of a folder, found.

    `members`, `losses`, `snapshots`, `plateaus`, `transitions` and `llc` are pandas DataFrames with
    the rows of all runs of `kgon train`; docs/columns.md explains their columns. In front of them
    are the columns `run`, the name of the run's folder, and one for each setting that varies
    between the runs, such as `optimizer.lr`; it is None in a run without this setting. A table is
    read when it is first asked for.

    `W` (n_records, n_members, n_hidden, n_features), `b` (n_records, n_members, n_features), `step`
    (n_records,) and `config` are those of a single run.

    Attributes:
        path: the folder that was loaded.
        folders: the folders of its runs.
    """

    path: Path
    folders: tuple[Path, ...] = field(repr=False)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run: its settings, command, state, time, and the numbers that it found."""
        columns = self._varying(self._configs)
        rows = [
            {"command": status.get("command"), "state": status["state"],
             "seconds": status.get("seconds"), **(status.get("metrics") or {})}
            for status in self._statuses.values()
        ]  # fmt: skip
        frame = pd.DataFrame(rows)
        return _with_settings(frame, columns, range(len(rows)))

    @property
    def settings(self) -> list[str]:
        """The settings that vary between runs of one command."""
        return [*self._varying(self._configs)][1:]

    @property
    def members(self) -> pd.DataFrame:
        """The final results of each member."""
        return self._tables["members"]

    @property
    def losses(self) -> pd.DataFrame:
        """The losses of each member at each recorded step."""
        return self._tables["loss"]

    @property
    def snapshots(self) -> pd.DataFrame:
        """The phase of each member at each step of `W` and `b`."""
        return self._tables["snapshots"]

    @property
    def plateaus(self) -> pd.DataFrame:
        """The plateaus of each member."""
        return self._tables["plateaus"]

    @property
    def transitions(self) -> pd.DataFrame:
        """How many members of a run passed from one stage to the next."""
        return self._tables["transitions"]

    @property
    def llc(self) -> pd.DataFrame:
        """The estimates of learning coefficients of each member at each recorded step."""
        return self._tables["llc"]

    def table(self, name: str) -> pd.DataFrame:
        """The table that a callback of one's own recorded; ValueError if no run has it."""
        return self._tables[name]

    def figures(self) -> dict[str, Figure]:
        """The figures of a single run by name, drawn from its record.

        Raises:
            ValueError: there are several runs, or the run has nothing to draw.
        """
        return self._drawing("figures").figures()

    def film(self, path: str | Path, member: int | None = None, *, log: bool = False) -> Path:
        """Write the film of a member of a single run: W, while a cursor runs along loss and LLC.

        Args:
            path: the file, a .gif, or a .webm with the extra kgon[film].
            member: its number; by default the member with most transitions.
            log: whether the axis of steps is logarithmic.

        Raises:
            ValueError: there are several runs, the run has nothing to draw, there is no such
                member, or the file is neither of the two.
        """
        return self._drawing("a film").film(Path(path), member, log=log)

    def _drawing(self, what: str) -> "Drawing":
        from kgon.record.drawing import Drawing  # not before: it imports Hydra

        folder = self._one(what)
        run = run_directory.load(folder)
        if not run.members or (run.loss is None and run.snapshots is None):
            command, state = (run.status.get(name) for name in ("command", "state"))
            raise ValueError(f"{folder} has nothing to draw: it is a {state} run of kgon {command}")
        return Drawing.of(run)

    def against(self, x: str, y: str) -> Figure:
        """The result y of each run against the setting x, and means with their errors.

        Pale dots are runs. A mean is over the runs with the same x; two of its errors hold the mean
        over many such runs 19 times out of 20. Numbers that are positive and spread over more than
        a factor of ten have a logarithmic axis.

        Args:
            x: a setting that varies, such as `optimizer.lr`.
            y: a number that runs found, such as `loss` or `transitions` (the columns
                `final/loss`, `final/transitions` of `runs`), or one by phase: `llc` (`final/llc/5`,
                ...: mean over a phase's estimates with the verdict ok) or `phase` (`final/phase/5`,
                ..., drawn as shares of a run's members).

        Raises:
            ValueError: x does not vary, or y is no result; the message lists those there are.
        """
        if x not in self.settings:
            there = ", ".join(self.settings) or "none"
            raise ValueError(
                f"x={x} does not vary between the runs of {self.path}; what varies: {there}"
            )
        results = [s.get("metrics") or {} if s["state"] == "finished" else {}
                   for s in self._statuses.values()]  # fmt: skip
        known = dict.fromkeys(k for found in results for k, v in found.items()
                              if not isinstance(v, str))  # fmt: skip
        chosen = [k for k in known if y.removeprefix("final/") in _names(k)]
        if not chosen:
            there = ", ".join(dict.fromkeys(_names(k)[0] for k in known)) or "none"
            raise ValueError(f"y={y} is no result of the runs of {self.path}; there are {there}")
        shown = [
            (_drawable(settings[x]), found)
            for settings, found in zip(self._configs.values(), results, strict=True)
            if settings.get(x) is not None and found
        ]
        values, found = [value for value, _ in shown], [own for _, own in shown]
        figure = against_parameter(x, values, found, only=chosen, others=self._others(x))
        if figure is None:
            raise ValueError(f"no finished run of {self.path} has both x={x} and y={y}")
        return figure

    def _others(self, x: str) -> list[str]:
        """What varies besides a setting; of a group whose `_target_` varies, the group."""
        groups = [name for name in self.settings if name.endswith("._target_")]
        inside = tuple(name.removesuffix("_target_") for name in groups)
        named = [name.removesuffix("._target_") for name in self.settings
                 if name in groups or not name.startswith(inside)]  # fmt: skip
        return [name for name in named if name != x.removesuffix("._target_")]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of a single run."""
        return run_directory.config(self._one("config"))

    @property
    def W(self) -> Tensor:
        """The weights of a single run's members at its snapshots."""
        return self._weights["W"]

    @property
    def b(self) -> Tensor:
        """The biases of a single run's members at its snapshots."""
        return self._weights["b"]

    @property
    def step(self) -> Tensor:
        """The steps of a single run's snapshots."""
        return self._weights["step"]

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        folder = self._one("W and b")
        if not (folder / "weights.safetensors").exists():
            state = self._statuses[folder]["state"]
            raise ValueError(f"{folder} has no snapshots of W and b: its state is {state}")
        weights: dict[str, Tensor] = load_file(folder / "weights.safetensors")
        return weights

    def _one(self, what: str) -> Path:
        if len(self.folders) > 1:
            raise ValueError(
                f"{self.path} holds {len(self.folders)} runs; {what} are those of one: "
                f'kgon.load("{self.folders[0]}")'
            )
        return self.folders[0]

    @cached_property
    def _statuses(self) -> dict[Path, dict[str, Any]]:
        return {folder: RunDirectory(folder).status() for folder in self.folders}

    @cached_property
    def _configs(self) -> dict[Path, dict[str, Any]]:
        """The settings of each run that have an effect, by dotted name."""
        kept = (*WITHOUT_EFFECT, "command")
        return {
            folder: dict(leaves(run_directory.without(run_directory.read_config(folder), kept)))
            for folder in self.folders
        }

    def _varying(self, configs: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Any]]:
        """The columns `run` and, by name, the settings that vary between runs of one command."""
        varying: dict[str, None] = {}
        for command in dict.fromkeys(self._statuses[folder].get("command") for folder in configs):
            own = [c for folder, c in configs.items()
                   if self._statuses[folder].get("command") == command]  # fmt: skip
            for name in dict.fromkeys(name for settings in own for name in settings):
                if len({repr(settings.get(name)) for settings in own}) > 1:
                    varying[name] = None
        settings = {name: [c.get(name) for c in configs.values()] for name in varying}
        return {"run": [folder.name for folder in configs], **settings}

    @cached_property
    def _tables(self) -> "_Tables":
        trained = {folder: settings for folder, settings in self._configs.items()
                   if self._statuses[folder].get("command") == "train"}  # fmt: skip
        if not trained:
            raise ValueError(f"{self.path} holds no run of kgon train, which has these tables")
        return _Tables([*trained], self._varying(trained))


class _Tables(dict[str, pd.DataFrame]):
    """The tables of training runs, by file name; each is read when it is first asked for."""

    def __init__(self, folders: list[Path], settings: Mapping[str, list[Any]]):
        super().__init__()
        self._folders = folders
        self._settings = settings

    def __missing__(self, name: str) -> pd.DataFrame:
        found = {place: table for place, folder in enumerate(self._folders)
                 if (table := run_directory.read_table(folder, name))}  # fmt: skip
        places = [place for place, table in found.items() for _ in range(table.num_rows)]
        if name in RECORDED:
            schema = tables.schema(RECORDED[name])
        elif found:
            schema = pa.unify_schemas(
                [t.schema for t in found.values()], promote_options="permissive"
            )
        else:
            there = {file.stem for folder in self._folders for file in folder.glob("*.parquet")}
            raise ValueError(f"no run has a table {name!r}; there are {', '.join(sorted(there))}")
        # With an empty one there is always a first table.
        parts = [schema.empty_table(), *(_cast(table, schema) for table in found.values())]
        frame = pa.concat_tables(parts).to_pandas()
        blank = {f.name: "Int64" for f in schema
                 if name in RECORDED and f.nullable and f.type == pa.int64()}  # fmt: skip
        self[name] = _with_settings(frame.astype(blank), self._settings, places)
        return self[name]


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, blank where an older record lacks one."""
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(table.num_rows) for f in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)


def _with_settings(
    frame: pd.DataFrame, settings: Mapping[str, list[Any]], places: Any
) -> pd.DataFrame:
    """The frame with a column for each setting in front; `places` are the rows' runs."""
    front = {
        f"config.{name}" if name in frame.columns else name: pd.Series(values).iloc[list(places)]
        for name, values in settings.items()
    }
    return pd.concat(
        [pd.DataFrame({k: v.reset_index(drop=True) for k, v in front.items()}), frame], axis=1
    )


def _drawable(value: Any) -> float | str:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _names(result: str) -> list[str]:
    """The names of a result for `y`, without `final/`: `llc` and `llc/5` for `final/llc/5`."""
    what, phase, _ = parts(result)
    names = [what, f"{what}/{phase}", result]
    return [name.removeprefix("final/") for name in names]


def load(path: str | Path) -> Record:
    """The results of a run, of the runs in a folder, or of a sweep (`multirun/sweeps/NAME`).

    Raises:
        ValueError: there is no run, or a file of one is damaged.
    """
    path = Path(path)
    return Record(path, tuple(run_directory.find([path])))
