"""A finished run goes on from its last step, and ends as if it had made all steps at once."""

import numpy as np
import pytest
from small_job import JOB

from kgon.record import run_directory

SHORT = [word for word in JOB if "max_steps" not in word]


@pytest.fixture(scope="module")
def short(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    done = zygote.run(folder, "train", *SHORT, "trainer.max_steps=1000")
    assert done.status == 0, done.output
    (path,) = run_directory.find([folder / "multirun"])
    return path


def extension(zygote, short, folder, *words):
    words = sorted([*SHORT, f"extends={short}", *words], key=lambda word: word != "-m")
    return zygote.run(folder, "train", *words)


def test_an_extended_run_ends_where_a_long_one_does(zygote, short, tmp_path):
    done = extension(zygote, short, tmp_path / "a", "trainer.max_steps=1500")
    assert done.status == 0, done.output
    assert zygote.run(tmp_path / "b", "train", *SHORT, "trainer.max_steps=1500").status == 0
    (path,), (whole,) = (run_directory.find([tmp_path / x / "multirun"]) for x in "ab")
    found, expected = (run_directory.load(each).weights() for each in (path, whole))
    for name in ("W", "b"):
        np.testing.assert_array_equal(found[name][-1], expected[name][-1])
    steps = run_directory.load(short).weights()["step"]
    np.testing.assert_array_equal(found["step"][: len(steps)], steps)
    assert found["step"][len(steps)] > 1000
    estimates = run_directory.load(path).llc
    assert set(estimates["step"].to_pylist()) == {250, 500, 750, 1000, 1125, 1500}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_steps=1000"], "trainer.max_steps must be larger than the 1000 of extends="),
        (["trainer.max_steps=1500", "optimizer.lr=0.1"], "optimizer.lr must be 0.005 (got 0.1)"),
        (["trainer.max_steps=1500", "scheduler=cosine"], "depend on trainer.max_steps"),
        (["trainer.max_steps=1500", "extends=nowhere"], "extends: nowhere is not a run directory"),
        (["-m", "trainer.max_steps=1500", "hydra/launcher=packed"], "extends must be null"),
    ],
)
def test_what_cannot_be_extended_is_refused_by_name(zygote, short, tmp_path, words, message):
    done = extension(zygote, short, tmp_path, *words)
    assert done.status != 0
    assert message in done.output
    assert not list(tmp_path.glob("multirun/train-*/weights.safetensors"))
