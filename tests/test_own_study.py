"""The page docs/own_study.md, run from top to bottom by a user in an empty folder."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import kgon

PAGE = Path(__file__).parents[1] / "docs" / "own_study.md"
FAST = ["schedule.n_losses=5", "schedule.n_snapshots=4", "schedule.n_llc=1", "runs.figures=false",
        "trainer.max_steps=40", "callbacks.llc.n_draws=8", "callbacks.llc.n_burnin=2"]  # fmt: skip
"""What a test need not see of a training run."""

BLOCK = re.compile(r"^```(?:python|yaml)\n(.*?)^```|^    (kgon .*?)$", re.S | re.M)


def faster(words):
    """The words of a command with fewer steps; a sweep of a whole study stays a sweep."""
    words = [word for word in words if not word.startswith(("trainer.max_steps", "schedule."))]
    own = [word for word in FAST if "llc." not in word or not any("callbacks=" in w for w in words)]
    return [*words, *own]


@pytest.mark.slow
def test_the_page_does_what_it_says(zygote, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    parts = [match.groups() for match in BLOCK.finditer(text)]
    names = {}
    for block, command in parts:
        if command:
            words = shlex.split(command)[1:]
            words = faster(words) if words[0] == "train" else words
            done = zygote.run(tmp_path, *words)
            assert done.status == 0, (command, done.output)
            assert "Traceback" not in done.output, (command, done.output)
        elif file := re.match(r"(?:# @.*\n)?# (\S+\.(?:py|yaml))\b", block):
            path = tmp_path / file[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as module:
                module.write(block + "\n")
        else:
            exec(compile(block, str(PAGE), "exec"), names)
    assert [command for _, command in parts if command][-1].startswith("kgon figures")
    _check_what_it_left(tmp_path, names)


def _check_what_it_left(folder, names):
    runs = kgon.load(folder / "multirun")
    configs = [(folder / "config.yaml").read_text() for folder in runs.folders]
    expected = {"SignSGD": 3, "warmup": 1, "Peaked": 3, "ring": 1, "Lengths": 1, "Largest": 1,
                "matrices": 1}  # fmt: skip
    assert {k: sum(f"mine.{k}\n" in text for text in configs) for k in expected} == expected
    lengths = names["lengths"]
    assert {"run", "step", "member", "length"} <= set(lengths.columns)
    assert sorted(lengths["member"].unique()) == [0, 1, 2, 3, 4]
    assert lengths["step"].max() == 40 and (folder / "lengths.png").exists()
    (csv,) = folder.glob("multirun/*/csv/**/metrics.csv")
    logged = pd.read_csv(csv).dropna(subset="largest")
    assert logged["step"].max() == 40  # steps of SGD
    assert list(folder.glob("multirun/*/figures/weights/step_00000040.png"))
    rates = kgon.load(folder / "rates")
    assert rates.settings == ["optimizer.lr"] and len(rates.folders) == 8
    assert (rates.runs["state"] == "finished").all()
    assert (folder / "loss_against_optimizer.lr.png").stat().st_size > 1000


def test_the_whole_study_is_short():
    study = PAGE.read_text().partition("## A whole study")[2]
    blocks = [block or command for block, command in BLOCK.findall(study)]
    assert sum(len(block.strip().splitlines()) for block in blocks) <= 30
