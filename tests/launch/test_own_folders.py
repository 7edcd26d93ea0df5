"""Options and modules of a user's own, in a folder of theirs."""

import json
import sys
from pathlib import Path

import pytest

import kgon
from kgon.cli import main
from kgon.launch.options import CONF
from kgon.launch.own_folders import with_own_folders
from kgon.record import run_directory

TINY = ["members=1", "trainer.max_steps=4", "callbacks=[losses]", "logger=none",
        "runs.figures=false"]  # fmt: skip
MODULE = """
import lightning
import torch
from kgon.data import Distribution

class Plain(Distribution):
    n_uniforms = 6

    def inputs(self, u):
        return u

class Narrow(Plain):
    n_uniforms = 3

class Empty(Distribution):
    n_uniforms = 2

class Log(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        self.log("mine", 1.0)

def sgd(params, lr):
    return torch.optim.SGD(params, lr=lr)

def wrong(params, lr):
    return absent

def start(keys, n_hidden, n_features):
    return torch.zeros(n_hidden, n_features), torch.zeros(n_features)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with own/ and a module beside it, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("experiment", "optimizer", "data"):
        (tmp_path / "own" / name).mkdir(parents=True)
    (tmp_path / "ownmodule.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    write("optimizer/own", "_target_: ownmodule.sgd\n_partial_: true\nlr: 0.01\n")
    yield tmp_path
    for name in ("ownmodule", "broken", "inside"):
        sys.modules.pop(name, None)


def write(name, text):
    Path(f"own/{name}.yaml").write_text(text)


def train(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["kgon", "train", *words])
    main()


def refusal(monkeypatch, capsys, *words):
    with pytest.raises(SystemExit) as end:
        train(monkeypatch, *words, *TINY)
    assert end.value.code == 2
    complaint = capsys.readouterr().err.strip()
    assert len(complaint.splitlines()) == 1, complaint
    assert not Path("multirun").exists()
    return complaint


IN_EXPERIMENT = {
    "membrs: 2": "there is no setting membrs; did you mean members?",
    "schedule: {n_loses: 5}": "no setting schedule.n_loses; did you mean schedule.n_losses?",
    "runs: {overwite: true}": "no setting runs.overwite; did you mean runs.overwrite?",
    "callbacks: {llcc: {n_draws: 5}}": "did you mean callbacks.llc.n_draws?",
    "seed: two": "seed must be a number such as 0; got two",
    "trainer: {max_step: 7}": "unexpected keyword argument 'max_step'",
    "optimizer: {lrr: 7}": "unexpected keyword argument 'lrr'",
    "optimizer: {lr: '${modle.lr}'}": "optimizer.lr: Interpolation key 'modle.lr' not found",
    "data: {_target_: ownmodule.Plan}": "/ownmodule.py has no 'Plan'; did you mean Plain?",
    "data: {_target_: nowhere.Plain}": "No module named 'nowhere'",
}


@pytest.mark.parametrize("text", IN_EXPERIMENT)
def test_a_wrong_word_in_an_experiment_is_named_with_its_file(folder, monkeypatch, capsys, text):
    write("experiment/mine", f"# @package _global_\n{text}\n")
    said = refusal(monkeypatch, capsys, "-cd", "own", "experiment=mine")
    assert f"{folder}/own/experiment/mine.yaml: " in said and IN_EXPERIMENT[text] in said


OTHERS = {
    "defaults:\n  - override /optimzer: own": "'optimzer'; did you mean optimizer?",
    "defaults:\n  - override /optimizer: owm": "has no option 'owm'; did you mean own?",
    "defaults:\n  - optimizer: own": "must say 'override /optimizer: own'",
    "members: [1": "own/experiment/mine.yaml\", line 2",
    "logger: {projct: a}": "logger.projct: wandb.init has no such argument",
}  # fmt: skip


@pytest.mark.parametrize("text", OTHERS)
def test_what_hydra_or_wandb_would_find_is_one_line_too(folder, monkeypatch, capsys, text):
    write("experiment/mine", f"# @package _global_\n{text}\n")
    words = ["-cd", "own", "experiment=mine"]
    with pytest.raises(SystemExit):
        train(monkeypatch, *words)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert OTHERS[text] in line


IN_OPTION = {
    "_traget_: ownmodule.sgd\n": "no setting optimizer._traget_; did you mean _target_?",
    "_target_: ownmodule.sgd\nlr: 0.1\n": "'params' (with _partial_: true, kgon gives",
    "_target_: broken.f\n_partial_: true\n": "SyntaxError: invalid syntax (broken.py, line 1)",
    "_target_: ownmodule.wrong\n_partial_: true\nlr: 1.0\n": "NameError: name 'absent' is not def",
}


@pytest.mark.parametrize("text", IN_OPTION)
def test_what_is_wrong_in_an_option_or_its_module_is_named(folder, monkeypatch, capsys, text):
    write("optimizer/bad", text)
    said = refusal(monkeypatch, capsys, "-cd", "own", "optimizer=bad")
    assert IN_OPTION[text] in said
    assert "own/optimizer/bad.yaml: " in said or f"{folder}/ownmodule.py, line" in said


ON_COMMAND_LINE = {
    "optimizer=owm": "did you mean own?; there are adam, adamw, own, rmsprop, sgd",
    "optimizer=own optimizer.lrr=1": "no option 'optimizer.lrr'; did you mean optimizer.lr?",
    "data._target_=ownmodule.Empty": "NotImplementedError: Empty has no method inputs(u)",
    "data._target_=ownmodule.Narrow": "data: Narrow.inputs must return (1, 1000, 6) for u of shape",
    "+callbacks.mine._target_=ownmodule.Plain +callbacks.mine.n_features=6":
        "callbacks.mine must be a lightning.Callback, made by a _target_; got Plain",
    "init._target_=ownmodule.start +init._partial_=true ~init.label ~init.noise ~init.bias_std":
        "init must return tensors W, b of shapes [(1, 2, 6), (1, 6)], got [(2, 6), (6,)]",
    "-cn llc": "--config-dir FOLDER",
}  # fmt: skip


@pytest.mark.parametrize("words", ON_COMMAND_LINE)
def test_wrong_words_about_ones_own_are_explained(folder, monkeypatch, capsys, words):
    assert ON_COMMAND_LINE[words] in refusal(monkeypatch, capsys, "-cd", "own", *words.split())


def test_an_option_that_kgons_own_hides_is_refused(folder, monkeypatch, capsys):
    write("optimizer/sgd", "_target_: ownmodule.sgd\n_partial_: true\nlr: 0.01\n")
    said = refusal(monkeypatch, capsys, "--config-dir=own")
    assert "own/optimizer/sgd.yaml: kgon has an option optimizer=sgd, which hides this one" in said
    write("experiment/mine", "members: 1\n")
    said = refusal(monkeypatch, capsys, "--config-dir", "own", "experiment=mine", "optimizer=own")
    assert said.endswith("own/experiment/mine.yaml: its first line must be # @package _global_")


@pytest.mark.parametrize("command", ["llc", "posterior"])
def test_commands_about_single_features_say_why_they_take_no_data(
    folder, monkeypatch, capsys, command
):
    write("data/own", "_target_: ownmodule.Plain\nn_features: 6\n")
    monkeypatch.setattr(sys, "argv", ["kgon", command, "-cd", "own", "data=own"])
    with pytest.raises(SystemExit):
        main()
    assert "single-feature inputs" in capsys.readouterr().err


def test_kgons_experiments_stay_beside_ones_own(folder):
    experiments = f"file://{CONF / 'train'}"
    for words in (["-cd", "own"], ["--config-dir=own"], ["hydra.searchpath=[file://own]"]):
        (word,) = with_own_folders("train", words)
        assert word == f"hydra.searchpath=['{experiments}','file://{folder}/own']"
        assert with_own_folders("train", [word]) == [word]
    word, other = with_own_folders("train", ["-cd", "own", "seed=1", "hydra.searchpath=[pkg://a]"])
    assert word.endswith("'pkg://a']") and other == "seed=1"
    for words, said in ((["-cd", "no"], "no is not a folder"), (["-cd"], "is not a folder"),
                        (["hydra.searchpath=own"], "must be a list")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            with_own_folders("train", words)


def test_own_settings_of_an_experiment_may_be_referred_to(folder, monkeypatch):
    # From Python, with a module that lies inside the folder of options.
    Path("own/inside.py").write_text(MODULE)
    write("optimizer/inner", "_target_: inside.sgd\n_partial_: true\nlr: ${rate}\n")
    write("experiment/mine", "# @package _global_\ndefaults:\n  - override /optimizer: inner\n"
                             "rate: 0.125\n")  # fmt: skip
    words = ["hydra.searchpath=[file://own]", "experiment=mine", *TINY]
    run = kgon.train(kgon.compose("train", words))
    assert run.config["optimizer"]["lr"] == 0.125
    code = json.loads((run.path / "status.json").read_text())["code"]
    assert list(code["modules"]) == ["inside"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "packed"])
def test_a_sweep_finds_modules_and_says_when_they_have_changed(zygote, tmp_path, launcher):
    (tmp_path / "own" / "optimizer").mkdir(parents=True)
    (tmp_path / "own" / "inside.py").write_text(MODULE)
    option = "_target_: inside.sgd\n_partial_: true\nlr: 0.01\n"
    (tmp_path / "own" / "optimizer" / "own.yaml").write_text(option)
    # Flags may stand anywhere.
    words = ("train", "members=1", "-m", "-cd", "own", "optimizer=own", "seed=1,2", *TINY[1:],
             f"hydra/launcher={launcher}")  # fmt: skip
    first = zygote.run(tmp_path, *words)
    assert first.status == 0, first.output
    runs = [run_directory.load(path) for path in run_directory.find([tmp_path / "multirun"])]
    assert [run.status["state"] for run in runs] == ["finished"] * 2
    assert all(run.status["code"]["modules"].keys() == {"inside"} for run in runs)
    assert "warning" not in zygote.run(tmp_path, *words).output
    with (tmp_path / "own" / "inside.py").open("a") as module:
        module.write("# changed\n")
    again = zygote.run(tmp_path, *words)
    said = "made with another version of the module inside; runs.overwrite=true"
    assert again.status == 0 and f"warning: 2 finished: {said}" in again.output
    alone = zygote.run(
        tmp_path, *(word for word in words if word not in ("-m", "seed=1,2")), "seed=2"
    )
    assert alone.status == 0 and f"warning: it was {said} repeats it" in alone.output
    anew = zygote.run(tmp_path, *words, "runs.overwrite=true")
    assert anew.status == 0 and "warning" not in anew.output
    assert "warning" not in zygote.run(tmp_path, *words).output
