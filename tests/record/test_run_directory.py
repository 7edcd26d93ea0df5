"""A run's folder as its readers see it."""

import json
import sys

import pytest
import yaml

from kgon.cli import main
from kgon.record import run_directory, sweeps


def test_references_in_a_recorded_config_are_read_as_the_settings_that_they_mean(tmp_path):
    written = {
        "model": {"n_features": 6},
        "data": {"_target_": "kgon.data.SingleFeature", "n_features": "${model.n_features}"},
        "members": 3,
        "datamodule": {"distribution": "${data}", "members": "${kgon.members:${members}}"},
        "words": ["${model.n_features}", "five"],
    }
    directory = run_directory.RunDirectory(tmp_path / "run")
    with directory.job("train", [], written):
        pass
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == written
    config = run_directory.load(tmp_path / "run").config
    assert config["datamodule"]["distribution"] == config["data"] | {"n_features": 6}
    assert config["words"] == [6, "five"]
    assert config["datamodule"]["members"] == "${kgon.members:${members}}"


@pytest.fixture
def runs(tmp_path):
    """Two finished runs."""
    for name in ("one", "two"):
        with run_directory.RunDirectory(tmp_path / name).job("train", ["seed=1"], {}) as job:
            job.report(0.5, {"loss/mean": 1.0})
    return tmp_path


DAMAGED = ["", "{", '{"state": "fin', "null", "[]", "{}", "\0\0\0\0"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_status_is_named_and_costs_only_itself(runs, text, monkeypatch, capsys):
    file = runs / "one" / "status.json"
    file.write_text(text)
    one, two = (sweeps.standing(runs / name) for name in ("one", "two"))
    assert (one.state, two.state) == ("interrupted", "finished")
    assert one.error == "status.json is damaged"
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("runs", "report"):
        monkeypatch.setattr(sys, "argv", ["kgon", command, str(runs)])
        try:
            main()
        except SystemExit as end:
            assert not end.code
    printed = capsys.readouterr().out
    assert "status.json is damaged" in printed
    assert "2 runs:" in printed
    # The job can be run again.
    with run_directory.RunDirectory(runs / "one").job("train", ["seed=1"], {}):
        pass
    assert json.loads(file.read_text())["state"] == "finished"


def test_a_report_leaves_out_what_is_damaged_and_names_it(runs, monkeypatch, capsys):
    (runs / "one" / "config.yaml").write_text("a: [")
    run_directory.RunDirectory(runs / "three").announce("train", ["seed=2"])
    monkeypatch.setattr(sys, "argv", ["kgon", "report", str(runs)])
    main()
    printed = capsys.readouterr()
    assert f"{runs / 'one'} is left out: {runs / 'one' / 'config.yaml'} is damaged" in printed.err
    assert "2 runs:" in printed.out
    (runs / "two" / "loss.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"loss\.parquet is damaged"):
        run_directory.load(runs / "two")
