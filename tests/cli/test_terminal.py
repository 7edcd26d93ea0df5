"""Terminals, pipes and settings of a user that a command meets."""

import json
import os
import subprocess
import sys

import pytest
from zygote import SOURCE

from kgon.cli import main
from kgon.record import run_directory

TINY = ("members=2", "trainer.max_steps=20", "logger=none",
        "callbacks=[losses,snapshots,phases,plateaus,pictures,checkpoint]")  # fmt: skip


def kgon(folder, *words, without=(), **environment):
    """A command in an interpreter of its own, because it reads these settings when it starts."""
    env = {k: v for k, v in os.environ.items() if k not in without}
    return subprocess.run(
        [sys.executable, "-m", "kgon", *words],
        cwd=folder,
        env=env | {"PYTHONPATH": SOURCE} | environment,
        capture_output=True,
        text=True,
    )


def test_a_terminal_without_unicode_shows_runs(tmp_path):
    job = run_directory.RunDirectory(tmp_path / "multirun" / "one").job("train", ["init=ü"], {})
    with job as running:
        running.report(1.0, {"final/phase/4": 1.0, "final/phase/5": 2.0})
    shown = kgon(tmp_path, "runs", PYTHONIOENCODING="ascii", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "5:2  4:1" in shown.stdout and "?" in shown.stdout


def swept(folder, overrides, command="train"):
    """Finished runs with these words; their folders' names sort in the order of the list."""
    for i, words in enumerate(overrides):
        job = run_directory.RunDirectory(folder / f"{command}-{i:010}").job(command, words, {})
        with job as running:
            phases = {f"final/phase/{'4+++---'[:k]}": 10.0 for k in range(1, 7)}
            running.report(1.0, {"final/loss": 0.123456, **phases})


def rows(capsys, monkeypatch, folder, width=80):
    """The words of each row that `kgon runs` prints on so wide a terminal, the heading first."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["kgon", "runs", str(folder)])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    start = next(i for i, line in enumerate(lines) if line.startswith(" run"))
    return [line.split() for line in lines[start:] if line.strip() and "─" not in line]


def test_runs_are_in_order_of_what_was_swept_and_show_it(tmp_path, capsys, monkeypatch):
    found = [("10", "0.0003"), ("9", "0.0003"), ("10", "1e-05"), ("9", "0.005")]
    swept(tmp_path, [[f"seed={s}", "members=3", f"optimizer.lr={lr}"] for s, lr in found])
    heading, *shown, shared = rows(capsys, monkeypatch, tmp_path)
    assert heading[:4] == ["run", "state", "seed", "lr"] and heading[-1] == "phases"
    assert [(row[2], row[3]) for row in shown] == [
        ("9", "0.0003"), ("9", "0.005"), ("10", "1e-05"), ("10", "0.0003"),
    ]  # fmt: skip
    assert shared == ["all", "with", "members=3"]
    # Numbers of members are whole or left out.
    assert all(word.endswith(":10") for word in shown[0] if ":" in word) and shown[0][-1] == "..."


def test_values_of_what_was_swept_are_whole_on_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    words = [[f"optimizer.lr={lr}", f"schedule.lr={lr}", f"loss={lr}", "init=x"] for lr in range(2)]
    swept(tmp_path, [[*own, "+a.b=twenty-letters-at-mo"] for own in words[:1]] + words[1:])
    heading, *shown, _ = rows(capsys, monkeypatch, tmp_path, 100)
    # Names that two settings or a column of the table share are not cut short.
    assert heading[2:6] == ["optimizer.lr", "schedule.lr", "loss=", "b"]
    assert [row[2:5] for row in shown] == [["0"] * 3, ["1"] * 3]
    assert shown[0][5] == "twenty-letters-at-mo"


def test_runs_of_other_commands_have_a_table_of_their_own(tmp_path, capsys, monkeypatch):
    many = [[f"{name}.{name}{name}=0.000{i}" for name in "abcde"] for i in (2, 1)]
    swept(tmp_path, many)
    swept(tmp_path, [["n_samples=100"]], "llc")
    heading, llc, *more = rows(capsys, monkeypatch, tmp_path)
    assert heading[2] == "n_samples" and llc[2] == "100"
    # Words of many settings break between and not within them.
    assert [word for row in more for word in row if "=" in word] == [
        f"{name}{name}=0.000{i}" for i in (1, 2) for name in "abcde"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "kgon: error: there is no command 'nothing'; there are train, llc, "),
        (["trian"], "kgon: error: there is no command 'trian'; did you mean train?"),
        (["runs", "nowhere"], "kgon runs: error: no run in nowhere"),
        (["runs", "--state", "done"], "kgon runs: error: argument --state: invalid choice: 'done'"),
        (["runs", "--stale"], "unrecognized arguments: --stale; the options are --help, --state"),
        (["runs", "--json", "--follow"], "kgon runs: error: --json and --follow cannot be"),
        (["report"], "kgon report: error: no run in multirun"),
        (["figures"], "kgon figures: error: no run in multirun"),
        (["figures", "--member", "x"], "kgon figures: error: argument --member: invalid int"),
        (["sync", "--parallel", "0"], "kgon sync: error: --parallel must be at least 1, got 0"),
        (["dashboard", "--out"], "kgon dashboard: error: unrecognized arguments: --out; the"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kgon", *words])
    with pytest.raises(SystemExit) as end:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message in line


@pytest.mark.parametrize("words", ["--help", "train --help", "runs --json many"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, words):
    for i in range(200):
        folder = tmp_path / "many" / str(i)
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "kgon", *words.split()], cwd=tmp_path, stdout=writing,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": SOURCE},
    )  # fmt: skip
    os.close(writing)
    assert (done.stderr, done.returncode) == ("", 141)


@pytest.mark.slow
def test_figures_need_no_latex_whatever_matplotlib_is_told(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    done = kgon(tmp_path, "train", *TINY)
    assert done.returncode == 0, done.stderr
    with_report = kgon(tmp_path, "report", "multirun")
    assert with_report.returncode == 0, with_report.stderr


@pytest.mark.slow
def test_a_user_without_a_home_can_train(tmp_path):
    done = kgon(tmp_path, "train", *TINY, without=["HOME"])
    assert done.returncode == 0, done.stderr
