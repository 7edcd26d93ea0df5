"""From words to configs, what is recorded of them, and the identity of a job."""

import hydra
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kgon.launch import config as configs
from kgon.launch import options
from kgon.launch.options import CONF
from kgon.launch.overrides import Composer, _choices, parse
from kgon.record import run_directory
from kgon.tracking.tracker import logged
from kgon.training.schedule import Schedule

RATES = st.floats(1e-6, 1.0).map(lambda x: f"{x!r}")
COUNTS = st.integers(1, 10**6).map(str)
OF_RESULT = {
    "seed": COUNTS,
    "members": st.one_of(COUNTS, st.sets(st.integers(0, 99), min_size=1).map(lambda s: str([*s]))),
    "n_samples": st.one_of(COUNTS, st.just("null")),
    "batch_size": st.one_of(COUNTS, st.just("full")),
    "model.importance": st.one_of(RATES, st.just("null"), st.just("[1,2,3,4,5,6]")),
    "optimizer.lr": RATES,
    "init.label": st.sampled_from(["5+", "'4'", "4++-"]),
    "schedule.n_llc": COUNTS,
    "callbacks.llc.lr": RATES,
    "data": st.sampled_from(["sparse", "correlated_pairs"]),
    "optimizer": st.sampled_from(["adam", "rmsprop"]),
    "callbacks": st.just("[losses,llc]"),
}
WITHOUT_EFFECT = {
    "logger": st.sampled_from(["none", "csv"]),
    "runs.dir": st.sampled_from(["a", "b/c"]),
    "runs.figures": st.just("false"),
    "runs.busy": st.just("wait"),
    "trainer.accelerator": st.just("cpu"),
    "datamodule.block": COUNTS,
    "callbacks.checkpoint.every_seconds": RATES,
    "+callbacks.progress.refresh": COUNTS,
}


def words(choices, *, least=0, most=5):
    """Overrides of different keys."""
    chosen = st.lists(st.sampled_from(sorted(choices)), min_size=least, max_size=most, unique=True)
    return chosen.flatmap(
        lambda keys: st.tuples(*(choices[k].map(f"{k}={{}}".format) for k in keys))
    )


@pytest.fixture(scope="module")
def compose():
    configs.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield Composer(lambda w: hydra.compose("train", list(w), return_hydra_config=True))


def without_callbacks(chosen):
    """A list of callbacks leaves none to set."""
    if any(word.startswith("callbacks=") for word in chosen):
        return [word for word in chosen if "callbacks." not in word]
    return list(chosen)


def identity(compose, chosen):
    written = configs.written(compose(without_callbacks(chosen)).config)
    return run_directory.identity("train", written)


few = settings(max_examples=20, deadline=None)


@few
@given(words(OF_RESULT))
def test_a_config_is_that_of_hydra(compose, chosen):
    chosen = without_callbacks(chosen)
    compose(["seed=1"])
    assert compose(chosen).config == hydra.compose("train", chosen)


@few
@given(words(OF_RESULT | WITHOUT_EFFECT), st.randoms())
def test_the_order_of_overrides_does_not_change_the_identity(compose, chosen, random):
    shuffled = random.sample(chosen, len(chosen))
    assert identity(compose, chosen) == identity(compose, shuffled)


@few
@given(words(OF_RESULT), words(WITHOUT_EFFECT, least=1))
def test_what_does_not_change_the_result_does_not_change_the_identity(compose, chosen, others):
    without = [word for word in chosen if not word.startswith("callbacks=")]
    assert identity(compose, without) == identity(compose, [*without, *others])


@few
@given(words(OF_RESULT, least=1))
def test_what_changes_the_result_changes_the_identity(compose, chosen):
    defaults = compose([]).config
    (*others, last) = without_callbacks(chosen)
    changed = compose([*others, last]).config != compose(others).config
    assert changed == (identity(compose, [*others, last]) != identity(compose, others))
    assert compose([]).config == defaults


@given(st.lists(st.integers(-999, 999).map(str), min_size=2, max_size=9, unique=True))
def test_every_value_of_a_sweep_is_a_choice(values):
    assert list(_choices(parse(f"seed={','.join(values)}"))) == [f"seed={v}" for v in values]


@given(st.integers(0, 99), st.integers(1, 300), st.integers(1, 9))
def test_the_choices_of_a_range_are_its_ends(start, length, step):
    last = range(start, start + length, step)[-1]
    found = list(_choices(parse(f"seed=range({start},{start + length},{step})")))
    assert found == list(dict.fromkeys([f"seed={start}", f"seed={last}"]))


def written(compose, *chosen):
    return configs.written(compose(chosen).config)


def test_a_recorded_config_holds_what_one_would_write(compose, monkeypatch):
    monkeypatch.setenv("KGON_TEST_NOTE", "from outside")
    settings = written(compose, "members=5", "+note=${oc.env:KGON_TEST_NOTE}", "scheduler=cosine")
    assert settings["members"] == 5 and settings["note"] == "from outside"
    assert settings["datamodule"]["seed"] == "${seed}"
    text = yaml.safe_dump(settings)
    assert text.count("scheduler.CosineAnnealingLR") == 1
    assert len(text.splitlines()) < 120
    # Whoever reads the file resolves it.
    read = OmegaConf.create(yaml.safe_load(text))
    assert read.datamodule.members == [0, 1, 2, 3, 4] and read.model.seed == 0
    steps = hydra.utils.instantiate(read.callbacks.losses.steps)
    assert steps == Schedule(read.trainer.max_steps, **read.schedule).losses


def test_a_logger_gets_each_setting_once_and_three_levels_at_most(compose):
    shown = logged(written(compose, "+callbacks.own={_target_: a.B, deep: {deeper: {deepest: 1}}}"))

    def depth(node):
        return 1 + max(map(depth, node.values()), default=0) if isinstance(node, dict) else 0

    assert depth(shown) == 3
    assert "${" not in str(shown)
    assert str(shown).count("'lr': 0.005") == 1
    assert shown["callbacks"]["pictures"]["draw"] == "kgon.figures.weights.weights"
    assert shown["callbacks"]["own"]["deep"] == "{'deeper': \"{'deepest': 1}\"}"
    assert shown["schedule"] == {"n_losses": 450, "n_snapshots": 100, "n_llc": 25}


@pytest.mark.parametrize(
    ("command", "experiment"),
    [
        (command, experiment)
        for command in ("llc", "posterior")
        for experiment in options.groups(command)["experiment"].options
    ],
)
def test_experiments_of_other_commands_compose(compose, command, experiment):
    config = hydra.compose(command, [f"experiment={experiment}"], return_hydra_config=True)
    assert config.hydra.runtime.choices.experiment == experiment
    assert config.command == command
