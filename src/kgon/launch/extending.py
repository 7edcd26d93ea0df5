"""A run that goes on from the end of another one: the setting `extends`.

It has the records of the other run up to that run's last step, then its own, in a folder of its
own. It ends with the parameters of a run that made all steps at once.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from kgon.launch import config as configs
from kgon.record import run_directory
from kgon.training import checkpoints

_MAY_DIFFER = (*run_directory.WITHOUT_EFFECT, "extends", "trainer.max_steps")


def extended(config: DictConfig) -> Path | None:
    """The folder of the run that this one extends."""
    return None if config.extends is None else Path(str(config.extends))


def check(config: DictConfig) -> None:
    """ValueError, naming the setting, if the run cannot go on from the end of `extends`."""
    path = extended(config)
    if path is None:
        return
    try:
        run = run_directory.load(path)
    except ValueError as error:
        raise ValueError(f"extends: {error}") from None
    if run.status["state"] != "finished" or checkpoints.newest(path / checkpoints.FOLDER) is None:
        raise ValueError(
            "extends must be a finished training run with a checkpoint, and the state of "
            f"{path} is {run.status['state']}"
        )
    longer, shorter = config.trainer.max_steps, run.config["trainer"]["max_steps"]
    if longer <= shorter:
        raise ValueError(
            f"trainer.max_steps must be larger than the {shorter} of extends={path}, got {longer}"
        )
    if "trainer.max_steps" in OmegaConf.to_yaml(OmegaConf.create({"_": config.get("scheduler")})):
        raise ValueError(
            "extends: the scheduler's learning rates depend on trainer.max_steps, so a longer run "
            "is another run from its start"
        )
    own, theirs = (
        dict(run_directory.leaves(run_directory.without(settings, _MAY_DIFFER)))
        for settings in (configs.written(config), run_directory.read_config(path))
    )
    differ = [k for k in sorted(own.keys() | theirs.keys()) if own.get(k) != theirs.get(k)]
    if differ:
        wrong = ", ".join(f"{k} must be {theirs.get(k)} (got {own.get(k)})" for k in differ)
        words = " ".join(run.status["overrides"])
        raise ValueError(
            f"extends={path}: {wrong}; repeat the words of that run: kgon train {words}"
        )
