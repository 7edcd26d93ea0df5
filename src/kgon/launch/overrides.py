"""Composing configs from overrides, and one-line errors about wrong overrides."""

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from kgon.launch import config as configs
from kgon.launch import options
from kgon.launch.options import CONF
from kgon.launch.own_folders import (
    check_used,
    folders_of,
    make_importable,
    nearest,
    used_files,
    with_source,
)
from kgon.tracking import account
from kgon.tracking.opening import check_keys

_MOST_CHOICES = 50
"""The most values of one override that are checked before a sweep starts."""

_NOT_ONLY_NUMBERS = {
    "train": ("batch_size", "members", "trainer.devices", "data.sparsity"),
    "llc": ("n_samples",),
}
"""Settings whose default is a number but that may also be a word or a list; checked elsewhere."""

_NUMBERS_OR_NULL = {"train": ("n_samples", "init.bias_std")}
"""Settings whose default is a number but that may also be null."""


@dataclass(frozen=True)
class Composed:
    """A config without Hydra's part, and Hydra's part."""

    config: DictConfig
    hydra: DictConfig


class Composer:
    """Composes configs that differ in a few overrides; `load` composes one by Hydra.

    Hydra takes 0.1 s to read a config from its files. This reads the files once for each choice of
    options, and sets values in copies.
    """

    def __init__(self, load: Callable[[Sequence[str]], DictConfig]):
        self._load = load
        self._read: dict[tuple[str, ...], Composed] = {}

    def __call__(self, words: Sequence[str]) -> Composed:
        """The config with these overrides."""
        values = [override for word in words if _sets_value(override := parse(word))]
        files = tuple(word for word in words if not _sets_value(parse(word)))
        if files not in self._read:
            self._read[files] = self._composed(files)
        config = copy.deepcopy(self._read[files].config)
        try:
            for override in values:
                OmegaConf.update(config, override.key_or_group, override.value())
        except (ConfigAttributeError, ConfigKeyError):
            return self._composed(words)  # Hydra's own error
        return Composed(config, self._read[files].hydra)

    def _composed(self, words: Sequence[str]) -> Composed:
        config = self._load(words)
        with open_dict(config):
            return Composed(config, config.pop("hydra"))


@cache
def parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _sets_value(override: Override) -> bool:
    """Whether an override only replaces a value."""
    adds_or_deletes = override.is_add() or override.is_delete() or override.is_force_add()
    chooses = (CONF / override.key_or_group).is_dir() or override.key_or_group == "experiment"
    refers = "${" in str(override.input_line)
    return not (adds_or_deletes or chooses or refers or override.is_hydra_override())


def check_overrides(
    command: str, words: list[str], check: Callable[[DictConfig], None]
) -> tuple[Composed, list[str]]:
    """Check every value of every override: ValueError, in one line, if one is wrong or `check`
    refuses a config.

    Returns:
        The config with the first value of every override, and the overrides with several values.
    """
    with hydra.initialize_config_dir(str(CONF), job_name=command, version_base="1.3"):
        try:
            parsed = [parse(word) for word in words]
        except HydraException as error:
            raise ValueError(f"cannot read the overrides: {first_line(error)}") from error

        own = folders_of(words)
        make_importable(own)

        def load(job: Sequence[str]) -> DictConfig:
            try:
                return hydra.compose(command, list(job), return_hydra_config=True)
            except HydraException as error:
                raise ValueError(_explain(command, job, error, own)) from error
            except yaml.YAMLError as error:  # in a file of the user's own
                raise ValueError(" ".join(str(error).split())) from error

        compose = Composer(load)
        choices = [list(_choices(override)) for override in parsed]
        first = [own[0] for own in choices]
        # One value of a sweep at a time, not every combination; the first values come last.
        jobs = [[*first[:i], w, *first[i + 1 :]] for i, own in enumerate(choices) for w in own[1:]]
        for job in [*jobs, first]:
            composed = compose(job)
            files = used_files(own, composed.hydra.runtime.choices)
            check_used(command, composed.config, files)
            try:
                _check_kinds(command, composed, job)
                check(composed.config)
                check_keys(composed.config.get("logger") or {})
                # After the check, because a list of members may be too long to make.
                configs.resolved(composed.config)
            except (ValueError, OmegaConfBaseException) as error:
                key = getattr(error, "full_key", None)
                message = f"{key}: {first_line(error)}" if key else first_line(error)
                message = _with_full_name(message, command, composed)
                overridden = [parse(word).key_or_group for word in job]
                raise ValueError(with_source(message, files, overridden)) from error
        return composed, [str(o.input_line) for o in parsed if _is_sweep(o)]


def _is_sweep(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_hydra_override()


def _choices(override: Override) -> Iterator[str]:
    """The values of an override in a sweep, each as an override: the ends of a range or an
    interval, or the first values of a list."""
    if not _is_sweep(override):
        yield str(override.input_line)
        return
    swept = override.value()
    values: list[Any]
    if isinstance(swept, IntervalSweep):  # for a sweeper that optimizes
        values = [swept.start, swept.end]
    elif isinstance(swept, RangeSweep):
        first, *others = override.sweep_string_iterator()
        values = [first, *others[-1:]]
    else:
        values = list(itertools.islice(override.sweep_string_iterator(), _MOST_CHOICES))
    yield from (f"{override.get_key_element()}={value}" for value in dict.fromkeys(values))


def _check_kinds(command: str, composed: Composed, words: Sequence[str]) -> None:
    """ValueError if a number is not finite, or a value is not of the same kind as the default."""
    known = options.settings(command, composed.hydra.runtime.choices)
    overridden = [o.key_or_group for o in map(parse, words) if not o.is_delete()]
    required = set(overridden).difference(_NUMBERS_OR_NULL.get(command, ()))
    for key in dict.fromkeys([*overridden, *known]):
        if key.startswith("hydra."):
            own = key.removeprefix("hydra.") if key in known else ""
            value = OmegaConf.select(composed.hydra, own, default=None) if own else None
        else:
            value = OmegaConf.select(composed.config, key, default=None)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} must be finite, got {value}")
        if key not in known or key in _NOT_ONLY_NUMBERS.get(command, ()):
            continue
        default = known[key].default
        is_section = not known[key].text or OmegaConf.is_dict(default)
        if is_section and value is not None and not OmegaConf.is_dict(value):
            raise ValueError(f"{key} has settings of its own ({key}.name=value), got {value}")
        if not _is_number(default) or (value is None and key not in required):
            continue
        if not _is_number(value):
            got = "null" if value is None else value
            raise ValueError(f"{key} must be a number such as {default}; got {got}")
        if isinstance(default, int) and isinstance(value, float):
            raise ValueError(f"{key} must be a whole number such as {default}; got {value}")


def _with_full_name(message: str, command: str, composed: Composed) -> str:
    """A message that begins with a setting's last word (lr) or its section (optimizer), with the
    setting's full name in its place, if it can be only one.

    A message of a section is one of torch or Lightning, which do not say what is allowed: the
    setting's comment in conf/ does.
    """
    word = re.split(r"[^\w.]", message, maxsplit=1)[0]
    rest = message[len(word) :]
    quoted = re.split(r"[\s,;:=()\[\]'`]+", rest)
    # The items of a list have keys of their own, which end in a number.
    leaves = [(re.sub(r"(\.\d+)+$", "", k), v) for k, v in configs.leaves(composed.config)]
    if word in dict(leaves):
        return message
    valued = {key for key, value in leaves if str(value) in quoted}
    full = [key for key in valued if key.endswith(f".{word}")]
    if len(full) == 1:
        return f"{full[0]}{rest}"
    within = [k for k in dict(leaves) if k.startswith(f"{word}.") and "._" not in k]
    named = [key for key in within if key.rpartition(".")[2] in quoted]
    found = named or [key for key in within if key in valued]
    if len(found) != 1 or not rest.startswith(":"):
        return message
    known = options.settings(command, composed.hydra.runtime.choices).get(found[0])
    comment = f" ({known.comment})" if known and known.comment else ""
    return f"{found[0]}={OmegaConf.select(composed.config, found[0])}{rest}{comment}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_WITHOUT_DATA = {
    "llc": ": its critical points are those of single-feature inputs; run=DIR estimates at the "
    "snapshots of kgon train on any data",
    "posterior": ": its exact likelihood is that of single-feature inputs",
}
"""Why a command has no group `data`."""


def _explain(
    command: str, words: Sequence[str], error: HydraException, own_folders: Sequence[Path]
) -> str:
    """What is wrong with the override that Hydra could not apply, and which one may be meant."""
    groups = options.groups(command, own_folders)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group.startswith("experiment/"):
            name = group.removeprefix("experiment/")
            return f"an experiment's defaults must say 'override /{name}: {option}'"
        there = sorted(groups[group].options if group in groups else error.options or ())
        return (
            f"{group}={option}: {group} has no option {option!r}{nearest(option, there)}; "
            f"there are {', '.join(there)}"
        )
    if refused := re.match(r"(In '.*': Could not override ')(.*?)'", str(error)):
        return f"{refused[0]}{nearest(refused[2].rpartition('@')[0] or refused[2], [*groups])}"
    named = re.search(r"'([^']+)'", str(error))
    key = named[1] if named else ""
    word = next((word for word in words if parse(word).key_or_group == key), None)
    if word is None:
        cause = error.__cause__  # of a value that is not of the kind that Hydra's own settings have
        return f"{first_line(error)}{f': {first_line(cause)}' if cause else ''}"
    if (CONF / key).is_dir() and key not in groups:
        own = [name for name, group in groups.items() if not (group.fixed or "/" in name)]
        there_are = ", ".join(own) or "none"
        why = _WITHOUT_DATA.get(command, "") if key == "data" else ""
        return f"{word}: kgon {command} has no group {key!r}; there are {there_are}{why}"
    missing = getattr(error.__cause__, "full_key", "")
    section, _, callback = missing.partition(".")
    if section == "callbacks" and section in groups and callback in groups[section].options:
        return f"{word}: this job has no {missing}; callbacks=[...,{callback}] adds it"
    having = [
        f"{name}={option}"
        for name, group in groups.items()
        for option, file in group.options.items()
        if not group.fixed and key in options.settings_of(file) and name != "experiment"
    ]
    known = options.settings(command, {}, own_folders)
    if having and missing:
        return f"{word}: {key} is an option of {' or '.join(having)} only"
    if key in known:
        return f"{word}: {first_line(error)}"
    return f"{word}: there is no option {key!r}{nearest(key, [*known, *groups])}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without Hydra's introduction."""
    line = account.first_line(error)
    return line.removeprefix("ValueError raised while resolving interpolation: ")
