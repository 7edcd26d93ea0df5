"""kgon llc from the command line: tables, files and figures, and what it refuses."""

import math
import sys

import matplotlib.colors
import pytest
from small_job import read

from kgon.cli import main
from kgon.cli.llc import TABLES, TABLES_OF_A_RUN
from kgon.figures import llc as llc_figures
from kgon.figures.style import phase_color
from kgon.record import run_directory
from kgon.theory.critical import critical_point, critical_points

TINY = ["n_chains=8", "n_draws=60", "n_burnin=20", "logger=none"]


@pytest.fixture
def kgon(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kgon", *words])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that must be refused; returns the complaint."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kgon", "llc", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        complaint = capsys.readouterr().err
        assert len(complaint.strip().splitlines()) == 1
        assert not (tmp_path / "multirun").exists()
        return complaint

    return run


def only_run(folder, command="llc"):
    (path,) = [p for p in run_directory.find([folder / "multirun"]) if p.name.startswith(command)]
    return path


def test_critical_points_give_the_papers_table_a_file_and_a_figure(kgon, tmp_path):
    printed = kgon("llc", "point=[5,5+,4++]", "n_samples=[5000,50000]", *TINY)
    path = only_run(tmp_path)
    assert run_directory.load(path).status["state"] == "finished"
    rows = read(path, TABLES)["estimates"]
    assert [(r["label"], r["n_samples"]) for r in rows] == [
        (label, n) for n in (5000, 50000) for label in ("5", "5+", "4++")
    ]
    for row in rows:
        n = row["n_samples"]
        assert row["theory"] == critical_point(row["label"], 6).llc
        assert row["nbeta"] == pytest.approx(n / math.log(n))
        assert row["localization"] == pytest.approx(0.6 * math.sqrt(row["nbeta"]))
        assert row["kept"] == row["n_chains"] == 8
    published = [row["published"] for row in rows]
    assert published == [7.705, 9.906, None, 7.32, 8.74, None]
    assert rows[0]["source"] != rows[3]["source"]
    assert "7.705±0.85" in printed and "7.32 *" in printed and "4 .. 5.5" in printed
    assert (path / "figures" / "llc.png").stat().st_size > 1000
    assert "has finished before" in kgon("llc", "point=[5,5+,4++]", "n_samples=[5000,50000]", *TINY)


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (["point=4+"], "theory at 4, with any number of +, is the volume exponent; the paper"),
        (["point=2x2x2+", "model.n_features=7", "model.n_hidden=3"], "theory at 2x2x2, with any"),
        (["point=4-"], None),  # no theory
        (["point=5"], None),
    ],
)
def test_the_theory_of_cross_polytopes_is_said_to_be_a_volume_exponent(kgon, words, noted):
    printed = kgon("llc", *words, "loss=population", *TINY)
    assert noted in printed if noted else "volume exponent" not in printed


def test_a_points_estimate_does_not_depend_on_the_others_asked_for(kgon, tmp_path):
    found = []
    for i, points in enumerate(("[5,6]", "[6]")):
        kgon("llc", f"point={points}", f"runs.dir=multirun{i}", "dtype=float32", *TINY)
        (path,) = run_directory.find([tmp_path / f"multirun{i}"])
        rows = read(path, TABLES)["estimates"]
        found += [row["llc"] for row in rows if row["label"] == "6"]
    # The noise is the same; the mean over another shape of array may round otherwise.
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_other_samplers_have_the_exact_value_beside_them_and_reasons_below(kgon, tmp_path):
    words = ["sampler=rmsprop_sgld", "lr=1e-6", "point=6", "loss=population"]
    printed = kgon("llc", *words, *TINY)
    (row,) = read(only_run(tmp_path), TABLES)["estimates"]
    assert row["lr"] == 1e-6 and math.isnan(row["acceptance"])
    assert row["verdict"] == "unconverged" and row["exact_verdict"] == "ok"
    assert f"{row['exact']:.2f}" in printed and f"{row['llc']:.2f} ± {row['stderr']:.2f}" in printed
    assert f"unconverged: {row['reason']} (1 of 1)" in printed


def test_chains_run_until_the_target_by_default(kgon, tmp_path):
    kgon("llc", "point=5", "loss=population", "target=0.1", "logger=none")
    (row,) = read(only_run(tmp_path), TABLES)["estimates"]
    assert row["verdict"] == "ok" and row["stderr"] <= 0.1 * row["llc"] and row["lr"] is None
    assert row["exact"] is None and 0.5 < row["acceptance"] <= 1


def test_calibration_draws_the_grid_and_chooses_from_it(kgon, tmp_path):
    words = ["target=0.1", "budget=3000", "n_chains=8", "logger=none"]
    printed = kgon("llc", "calibrate=true", "point=6", "loss=population", *words)
    assert "Chosen settings" in printed
    path = only_run(tmp_path)
    tables = read(path, TABLES)
    grid, (row,) = tables["calibration"], tables["chosen"]
    assert len(grid) == 5 * 2
    (chosen,) = [row for row in grid if row["chosen"]]
    assert row == {name: value for name, value in chosen.items() if name != "chosen"}
    assert chosen["verdict"] == "ok"
    assert f"{chosen['llc']:.2f} ± {chosen['stderr']:.2f}" in printed
    assert (path / "figures" / "calibration-6-5000.png").exists()


def test_where_no_setting_is_ok_the_chosen_one_is_blank(kgon, tmp_path):
    words = ["budget=20", "n_chains=8", "logger=none"]
    kgon("llc", "calibrate=true", "point=6", "loss=population", *words)
    tables = read(only_run(tmp_path), TABLES)
    assert not any(row["verdict"] == "ok" or row["chosen"] for row in tables["calibration"])
    (row,) = tables["chosen"]
    assert {name for name, value in row.items() if value is not None} == {
        "label", "n_samples", "theory",
    }  # fmt: skip


def test_snapshots_of_a_training_run(kgon, tmp_path):
    small = ["members=3", "trainer.max_steps=40", "callbacks=[losses,snapshots,progress]"]
    kgon("train", *small, "n_samples=300", "logger=none")
    trained = only_run(tmp_path, "train")
    weights = run_directory.load(trained).weights()
    for words in ([], ["loss=population", "n_samples=300"]):
        kgon("llc", f"run={trained}", "snapshots=2", "members=2", *words, *TINY, "runs.dir=other")
    paths = run_directory.find([tmp_path / "other"])
    tables = [read(path, TABLES_OF_A_RUN)["estimates"] for path in paths]
    for rows in tables:
        assert [(r["step"], r["member"]) for r in rows] == [
            (int(weights["step"][i]), m) for i in (0, -1) for m in (0, 1)
        ]
        assert all(row["nbeta"] == pytest.approx(300 / math.log(300)) for row in rows)
    assert {rows[0]["loss"] for rows in tables} == {"sample", "population"}
    assert tables[0][0]["llc"] != tables[1][0]["llc"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["point=[5x]"], "point: no critical point '5x' for n_features=6, n_hidden=2"),
        (["point=7"], "'7' has 7 live columns and needs n_features >= 7"),
        (["point=[]"], "point must be one or more labels"),
        (["point=[5,5]"], "label twice"),
        (["run=nowhere"], "run=nowhere is not a run directory"),
        (["lr=1e-5"], "lr=1e-05 is for sampler=sgld: hmc adapts its own step size"),
        (["sampler=rmsprop_sgld"], "lr must be given"),
        (["n_draws=50"], "n_draws and n_burnin must be given both or neither"),
        (["target=0"], "target must be positive, got 0"),
        (["budget=1.5"], "budget must be a whole number"),
        (["calibrate=true", "calibration.localization=[]"], "calibration.localization must be"),
        (["lr=0"], "lr must be positive, got 0"),
        (["nbeta=-1"], "nbeta must be positive, got -1"),
        (["lr=[1e-5]", "n_samples=[5000,50000]"], "as long as n_samples=[5000, 50000]"),
        (["n_samples=1"], "n_samples must be one or more numbers >= 2, got 1"),
        (["loss=exact"], "loss must be population or sample, got exact"),
        (["dtype=half"], "dtype must be float64 or float32, got half"),
        (["n_chains=0"], "n_chains must be positive, got 0"),
        (["n_chains=100000000"], "GiB of memory"),
        (["localization=-1"], "localization must be >= 0, got -1"),
        (["discard=2"], "discard must lie in [0, 1]"),
        (["sampler=sgnht"], "there are hmc, rmsprop_sgld, sgld"),
        (["data=sparse"], "no group 'data'; there are sampler, logger, experiment"),
        (["n_features=6"], "did you mean model.n_features"),
        (["model.n_hidden=0"], "model.n_hidden must be a whole number >= 1, got 0"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(refused, words, message):
    assert message in refused(*words)


def test_a_run_directory_without_weights_is_refused(refused, tmp_path):
    with run_directory.RunDirectory(tmp_path / "empty").job("train", [], {"n_samples": 10}):
        pass
    assert "has no weights.safetensors" in refused(f"run={tmp_path / 'empty'}")


ROW = {"n_samples": 5000, "stderr": 0.1, "published": None, "published_spread": None}


def test_the_figure_against_theory_has_a_line_for_each_theory_value():
    rows = [
        {**ROW, "label": p.label, "llc": 8.0, "theory": p.llc, "verdict": "ok"}
        for p in critical_points(6)
    ]
    (ax,) = llc_figures.against_theory(rows).axes
    lines = {line.get_gid(): line for line in ax.lines if line.get_gid()}
    known = {p.label: p.llc for p in critical_points(6) if p.llc is not None}
    assert set(lines) == {f"theory-{label}" for label in known}
    for label, value in known.items():
        line = lines[f"theory-{label}"]
        assert line.get_ydata()[0] == value
        assert matplotlib.colors.to_hex(line.get_color()) == phase_color(label)


def test_along_training_starts_at_step_0_and_shows_every_estimate():
    rows = [
        {"step": step, "member": 3, "phase": "5", "llc": 6.5, "stderr": 0.1, "verdict": "ok"}
        for step in (0, 200, 225_000)
    ]
    (ax,) = llc_figures.along_training(rows, []).axes
    low, high = ax.get_xlim()
    assert low == 0 and high > 225_000
    ticks = ax.xaxis.get_majorticklocs()
    assert ticks[0] == 0 and all(b >= 200 for b in ticks[1:])


def test_the_calibrations_figure_marks_what_is_ok_and_rings_the_chosen():
    mean, error = [[7.0, 6.0], [7.1, 5.0], [9.0, -3.0]], [[0.1, 0.1]] * 3
    ok = [[True, False], [True, False], [False, False]]
    figure = llc_figures.calibration(
        "5", [0.1, 1.0, 10.0], [587.0, 176.0], mean, error, ok, (1, 0), 7.0
    )
    (ax,) = figure.axes
    by_id = {line.get_gid(): line.get_xydata().tolist() for line in ax.lines if line.get_gid()}
    assert by_id["ok-0"] == [[0.1, 7.0], [1.0, 7.1]]
    assert by_id["not-ok-0"] == [[10.0, 9.0]]
    assert len(by_id["not-ok-1"]) == 3
    assert by_id["chosen"] == [[1.0, 7.1]]
