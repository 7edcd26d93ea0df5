"""kgon atlas from the command line: what it leaves, what it refuses."""

import sys

import pytest
from small_job import read

from kgon.cli import main
from kgon.cli.atlas import TABLES
from kgon.record import run_directory
from kgon.theory.atlas import Found, built


def test_it_leaves_points_passes_and_rates(zygote, tmp_path):
    words = ["n_features=7", "escape.start=7d2a", "escape.barriers=[1]", "escape.n_chains=10",
             "escape.n_intervals=2", "show=5"]  # fmt: skip
    done = zygote.run(tmp_path, "atlas", *words, COLUMNS="120")
    assert done.status == 0, done.output
    (path,) = run_directory.find([tmp_path / "multirun"])
    run = run_directory.load(path)
    assert run.status["state"] == "finished" and run.path.name.startswith("atlas-")
    atlas = built(7, 2)
    tables = read(path, TABLES)
    points, passes, rates = tables["points"], tables["passes"], tables["escapes"]
    assert [row["label"] for row in points] == [p.label for p in atlas]
    assert all(row["gradient_norm"] < 1e-12 for row in points)
    assert {"7", "7d2a"} in [{row["first"], row["second"]} for row in passes]
    for row in passes:
        assert 0 <= row["barrier_first"] <= row["barrier_second"]
    assert {row["start"] for row in rates} == {"7d2a"}
    assert run.weights()["W"].shape == (len(atlas), 2, 7)
    assert Found.from_json((path / "n7_m2.json").read_text()).as_json() == atlas.found.as_json()
    assert {f.name for f in (path / "figures").glob("*.png")} == {"passes.png", "escapes.png"}
    assert "regular 7-gon" in done.output and "Eyring" in done.output
    assert f"5 lowest of {len(atlas)} critical points" in done.output
    assert f"5 lowest of {len(passes)} passes" in done.output


def test_a_search_of_ones_own(zygote, tmp_path):
    done = zygote.run(tmp_path, "atlas", "n_features=4", "n_starts=30", "seed=5", COLUMNS="120")
    assert done.status == 0, done.output
    assert "descending from 30 starts" in done.output and "4 single columns" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n_features=0"], "n_features must be a whole number >= 1, got 0"),
        (["n_hidden=two"], "n_hidden must be a number such as 2; got two"),
        (["n_starts=3"], "n_starts must be a whole number >= 10, got 3"),
        (["escape.start=5"], "escape.start: must be a minimum without dead columns, not 5"),
        (["escape.start=nothing"], "escape.start: no critical point 'nothing'"),
        (["escape.barriers=[0]"], "escape.barriers must be a list of numbers > 0"),
        (["escape.n_chains=1"], "escape.n_chains must be a whole number >= 10, got 1"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, tmp_path, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kgon", "atlas", "logger=none", *words])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2 and message in error and "\n" not in error
    assert not list(tmp_path.rglob("status.json"))
