"""Results as DataFrames: their columns do not depend on what was found."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from small_job import JOB

import kgon
from kgon.cli import columns
from kgon.record.run_directory import RunDirectory
from kgon.record.tables import (
    RECORDED,
    LLCEstimate,
    Loss,
    Member,
    Plateau,
    Snapshot,
    Transition,
    own_table,
    schema,
    table,
)
from kgon.record.tables import columns as columns_of

FRAMES = ("members", "losses", "snapshots", "plateaus", "transitions", "llc")


def member(number, **values):
    blank = dict.fromkeys(schema(Member).names)
    return Member(**blank | {"member": number, "state": "finished", "stages": ""} | values)


def record(path, config, *, tables=True, command="train", n=1, **metrics):
    """A run with `n` members, of which the first one diverged if there are several."""
    directory = RunDirectory(path)
    with directory.job(command, [], {"command": command} | config) as job:
        job.report(1.0, metrics)
        if not tables:
            return
        found = [member(i, diverged_at=3 if n > 1 and i == 0 else None) for i in range(n)]
        directory.save_table("members", table(Member, found))
        plateaus = [Plateau(0, 0, 9, 0.1, "5", 0.0)] if n > 1 else []
        directory.save_table("plateaus", table(Plateau, plateaus))
        directory.save_table("transitions", table(Transition, [Transition("4", "5", 2)]))
        step = np.array([0, 10])
        loss = {name: np.full((2, n), 0.5) for name in ("loss", "train_loss")}
        directory.save_table("loss", Loss.long_table(step, range(n), loss))
        phase = {"phase": np.full((2, n), "5")}
        directory.save_table("snapshots", Snapshot.long_table(step, range(n), phase))
        W, b = np.zeros((2, n, 2, 6)), np.zeros((2, n, 6))
        directory.save_weights(step, W + n, b)


def settings(seed, lr, **others):
    return {"seed": seed, "optimizer": {"lr": lr}, "members": 2, "steps": [1, 2], **others}


def test_a_column_for_each_setting_that_varies_and_only_for_those(tmp_path):
    record(tmp_path / "a", settings(1, 0.01, runs={"dir": "x"}), **{"final/loss": 0.1})
    record(tmp_path / "b", settings(1, 1, runs={"dir": "y"}), n=3, **{"final/loss": 0.2})
    record(tmp_path / "c", settings(1, 0.1, extra=None), tables=False)
    loaded = kgon.load(str(tmp_path))
    assert loaded.settings == ["optimizer.lr"]
    assert loaded.losses.groupby("run", sort=False)["optimizer.lr"].first().to_dict() == {
        "a": 0.01, "b": 1.0,
    }  # fmt: skip
    assert len(loaded.members) == 4 and len(loaded.losses) == 8
    assert loaded.members["diverged_at"].isna().sum() == 3
    runs = loaded.runs.set_index("run")
    assert runs["state"].tolist() == ["finished"] * 3
    assert runs.loc["b", "final/loss"] == 0.2 and np.isnan(runs.loc["c", "final/loss"])


def test_types_do_not_depend_on_the_data_or_on_which_run_comes_first(tmp_path):
    for order, counts in (("ab", (1, 3)), ("ba", (3, 1)), ("none", ())):
        for name, n in zip(order, counts, strict=False):
            record(tmp_path / order / name, settings(n, 0.1), n=n)
        record(tmp_path / order / "z", settings(9, 0.1), tables=False)
        # Arrow's own reader takes the types of the first file.
        for name, kind in RECORDED.items() if counts else ():
            for file in (tmp_path / order).glob(f"*/{name}.parquet"):
                assert pq.read_schema(file) == schema(kind)
    loaded = [kgon.load(tmp_path / order) for order in ("ab", "ba", "none")]
    for name in FRAMES:
        one, other, empty = (getattr(each, name) for each in loaded)
        assert len(empty) == 0
        own = [c for c in one.columns if c not in ("run", "seed")]
        assert one.columns.tolist() == other.columns.tolist()
        assert one.dtypes[own].equals(other.dtypes[own])
        assert one.dtypes[own].equals(empty.dtypes[own])


def test_an_older_record_without_a_column_or_with_a_column_without_type_is_read(tmp_path):
    record(tmp_path / "old", settings(1, 0.1))
    file = tmp_path / "old" / "members.parquet"
    rows = pq.read_table(file).to_pandas().drop(columns=["interference"]).astype({"phase": object})
    rows.assign(phase=None).to_parquet(file)
    (row,) = kgon.load(tmp_path / "old").members.to_dict("records")
    assert pd.isna(row["interference"]) and pd.isna(row["phase"]) and row["member"] == 0


def test_a_setting_with_the_name_of_a_column_keeps_both(tmp_path):
    record(tmp_path / "a", settings(1, 0.1) | {"members": 2})
    record(tmp_path / "b", settings(1, 0.1) | {"members": [3, 4]})
    frame = kgon.load(tmp_path).transitions
    assert frame["config.members"].tolist() == [2, "[3, 4]"]
    assert frame["members"].tolist() == [2, 2]


def test_what_belongs_to_one_run(tmp_path):
    record(tmp_path / "a", settings(1, 0.1) | {"data": "${optimizer}"}, n=2)
    record(tmp_path / "b", settings(2, 0.1), tables=False)
    one, both = kgon.load(tmp_path / "a"), kgon.load(tmp_path)
    assert one.config["data"] == {"lr": 0.1}
    assert one.W.shape == (2, 2, 2, 6) and one.b.shape == (2, 2, 6) and bool((one.W == 2).all())
    assert torch.equal(one.step, torch.tensor([0, 10]))
    for name in ("W", "b", "config"):
        with pytest.raises(ValueError, match=r"holds 2 runs; .* kgon.load"):
            getattr(both, name)
    with pytest.raises(ValueError, match="no snapshots of W and b: its state is finished"):
        _ = kgon.load(tmp_path / "b").W


def test_runs_of_other_commands_have_no_members_but_a_row(tmp_path):
    record(tmp_path / "a", {"n_samples": 100}, command="llc", tables=False, **{"llc/5": 7.0})
    loaded = kgon.load(tmp_path)
    assert loaded.runs["llc/5"].tolist() == [7.0] and loaded.settings == []
    with pytest.raises(ValueError, match="no run of kgon train"):
        _ = loaded.members
    with pytest.raises(ValueError, match="no run in"):
        kgon.load(tmp_path / "nothing")


def test_a_sweeps_folder_means_its_runs(tmp_path):
    for name in ("a", "b", "c"):
        record(tmp_path / name, settings(1, 0.1), tables=False)
    (tmp_path / "sweeps" / "sweep-1").mkdir(parents=True)
    for name in ("a", "c"):
        (tmp_path / "sweeps" / "sweep-1" / name).touch()
    loaded = kgon.load(tmp_path / "sweeps" / "sweep-1")
    assert loaded.runs["run"].tolist() == ["a", "c"]


@pytest.fixture(scope="module")
def trained(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = zygote.run(folder, "train", *JOB, "seed=3")
    assert done.status == 0, done.output
    return kgon.load(folder / "multirun")


def test_the_dictionary_of_columns_is_that_of_a_run(trained):
    """Names and types by the run's files; units and meanings by the page. The files of other
    commands are looked at where these are tested."""
    page = (Path(__file__).parents[2] / "docs" / "columns.md").read_text()
    assert page == columns.page(), "python -m kgon.cli.columns > docs/columns.md"
    for name, kind in RECORDED.items():
        assert pq.read_schema(trained.folders[0] / f"{name}.parquet") == schema(kind)
    for tables in (RECORDED, *columns.TABLES.values()):
        for kind in tables.values():
            for column in columns_of(kind):
                assert column.meaning and f"| `{column.name}` | {column.type} |" in page


def test_a_runs_tables_agree_with_each_other(trained):
    """What the tables say of the last step is what they say of the members."""
    members = trained.members.set_index("member")
    last = trained.losses[trained.losses["step"] == 4000].set_index("member")
    assert last["loss"].equals(members["final_loss"].rename("loss"))
    llc = trained.llc[trained.llc["step"] == 4000].set_index("member")
    assert llc["mean"].equals(members["llc"].rename("mean"))
    W, b = trained.W[-1], trained.b[-1]
    assert kgon.classify(W, b) == members["phase"].tolist()
    torch.testing.assert_close(
        kgon.population_loss(W, b), torch.tensor(members["final_loss"].to_numpy())
    )
    assert set(schema(LLCEstimate).names) <= set(llc.reset_index().columns)
    assert trained.snapshots["step"].unique().tolist() == trained.step.tolist()


def test_a_table_of_an_own_callback_is_read_like_kgons(tmp_path):
    for name, lr, n in (("a", 0.1, 1), ("b", 0.2, 2)):
        record(tmp_path / name, settings(1, lr))
        column = {"length": torch.arange(4.0 * n).view(2, n, 2)}
        lengths = own_table(np.array([0, 10]), range(n), column)
        RunDirectory(tmp_path / name).save_table("lengths", lengths)
    record(tmp_path / "c", settings(1, 0.3))
    frame = kgon.load(tmp_path).table("lengths")
    assert [*frame] == ["run", "optimizer.lr", "step", "member", "length_0", "length_1"]
    assert frame["run"].tolist() == ["a", "a", "b", "b", "b", "b"]
    assert frame["step"].tolist() == [0, 10, 0, 0, 10, 10] and frame["step"].dtype == "int64"
    assert frame["length_1"].tolist() == [1, 3, 1, 3, 5, 7]
    with pytest.raises(ValueError, match="no run has a table 'length'; there are lengths, loss"):
        kgon.load(tmp_path).table("length")
