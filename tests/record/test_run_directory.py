"""A run's folder as its readers see it."""

import yaml

from kgon.record import run_directory


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
