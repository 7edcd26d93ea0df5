"""Configs and training from Python are those of the command line."""

import json

import pytest
from omegaconf import DictConfig

import kgon
from kgon.launch import config as configs

TINY = [
    "members=2", "trainer.max_steps=20", "model.n_features=5", "logger=none", "runs.figures=false",
    "callbacks=[losses,snapshots,phases,plateaus]",
]  # fmt: skip


def test_a_config_is_composed_and_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = kgon.compose("train", TINY)
    assert isinstance(config, DictConfig) and config.data.n_features == 5
    config.optimizer.lr = 0.003
    run = kgon.train(config)
    assert [folder.parent.name for folder in run.folders] == ["multirun"]
    assert run.config["optimizer"]["lr"] == 0.003 and run.W.shape[1:] == (2, 2, 5)
    assert run.runs["state"].tolist() == ["finished"]
    words = json.loads((run.folders[0] / "status.json").read_text())["overrides"]
    assert set(words) == {
        "members=2", "trainer.max_steps=20", "model.n_features=5", "optimizer.lr=0.003",
        "runs.figures=false", "~callbacks.llc", "~callbacks.pictures", "~callbacks.checkpoint",
        "~callbacks.progress",
    }  # fmt: skip
    # What has finished is loaded.
    before = (run.folders[0] / "loss.parquet").stat().st_mtime_ns
    assert kgon.train(config).folders == run.folders
    assert "has finished before" in capsys.readouterr().out
    assert (run.folders[0] / "loss.parquet").stat().st_mtime_ns == before


def test_the_folder_is_that_of_the_command_line(tmp_path, monkeypatch, zygote):
    monkeypatch.chdir(tmp_path)
    done = zygote.run(tmp_path, "train", *TINY)
    assert done.status == 0, done.output
    (there,) = kgon.load("multirun").folders
    assert configs.directory(kgon.compose("train", TINY)) == there


@pytest.mark.parametrize(
    ("command", "words", "error"),
    [
        ("trian", [], "command must be one of train, llc, .*, got trian"),
        ("train", ["model.n_feature=5"], "model.n_feature=5: .* did you mean model.n_features?"),
        ("train", ["seed=1,2"], "seed=1,2: a config has one value of each setting"),
        ("train", "seed=1", "overrides must be a list of words, got 'seed=1'"),
        ("train", ["members=0"], "members must be a positive number"),
    ],
)
def test_a_wrong_word_is_one_line(command, words, error):
    with pytest.raises(ValueError, match=error) as refused:
        kgon.compose(command, words)
    assert "\n" not in str(refused.value)


def test_a_config_that_was_made_wrong_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = kgon.compose("train", TINY)
    config.data.n_features = 7
    with pytest.raises(ValueError, match=r"data.n_features must be model.n_features=5, got 7"):
        kgon.train(config)
    with pytest.raises(ValueError, match="must be one of kgon train, got one of kgon llc"):
        kgon.train(kgon.compose("llc"))
    assert not (tmp_path / "multirun").exists()
