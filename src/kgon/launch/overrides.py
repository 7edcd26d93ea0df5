"""What is wrong with an override, in one line, before any job starts."""

import difflib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from kgon.launch.config import CONF


def check_overrides(
    config_name: str, words: list[str], check: Callable[[DictConfig], None]
) -> tuple[DictConfig, list[str]]:
    """Check every choice of every override; return the config of the first ones, with Hydra's own
    part, and the overrides that have several."""
    with hydra.initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        parser = OverridesParser.create()
        try:
            parsed = parser.parse_overrides(words)
        except HydraException as error:
            raise ValueError(f"cannot read the overrides: {first_line(error)}") from error
        choices = [list(_choices(override)) for override in parsed]
        first = [own[0] for own in choices]
        # Every choice of a sweep, one at a time: their sum, not their product.
        jobs = [first]
        jobs += [[*first[:i], w, *first[i + 1 :]] for i, own in enumerate(choices) for w in own[1:]]
        for job in reversed(jobs):
            config = _compose(config_name, job)
            with open_dict(config):
                of_hydra = config.pop("hydra")
            _check_kinds(config_name, config, job, of_hydra.runtime.choices)
            check(config)
        with open_dict(config):
            config.hydra = of_hydra
        return config, [str(o.input_line) for o in parsed if _is_sweep(o)]


_MOST_CHOICES = 50


def _is_sweep(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_hydra_override()


def _choices(override: Override) -> Iterator[str]:
    """The override as it is in each job of a sweep; a range by its ends, of others the first."""
    if not _is_sweep(override):
        yield str(override.input_line)
        return
    key = override.get_key_element()
    if not override.is_discrete_sweep():  # an interval, of an optimising sweeper
        interval = override.value()
        assert isinstance(interval, IntervalSweep)
        yield from (f"{key}={end}" for end in (interval.start, interval.end))
        return
    values = list(itertools.islice(override.sweep_string_iterator(), _MOST_CHOICES))
    if isinstance(override.value(), RangeSweep):
        *_, last = override.sweep_string_iterator()
        values = [values[0], last]
    yield from (f"{key}={value}" for value in dict.fromkeys(values))


_OTHERS_TOO = {"train": ("batch_size", "members", "trainer.devices"), "llc": ("n_samples",)}
"""Numbers in whose place a word or a list may stand; whoever takes them checks them."""


def _check_kinds(
    config_name: str, config: DictConfig, words: list[str], chosen: DictConfig
) -> None:
    """Refuse a number that is not finite, and what is of another kind than the default: no number
    for a number, a fraction for a whole number, one value for settings that have names."""
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        value = OmegaConf.select(config, key, default=None)
        if value is None or (CONF / key).is_dir() or key in _OTHERS_TOO.get(config_name, ()):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} must be finite, got {value}")
        default = _default(config_name, key, chosen)
        if OmegaConf.is_dict(default) and not OmegaConf.is_dict(value):
            raise ValueError(f"{key} has settings of its own ({key}.name=value), got {value}")
        if not _is_number(default):
            continue
        if not _is_number(value):
            raise ValueError(f"{key} must be a number such as {default}; got {value}")
        if isinstance(default, int) and isinstance(value, float):
            raise ValueError(f"{key} must be a whole number such as {default}; got {value}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _default(config_name: str, key: str, chosen: DictConfig) -> Any:
    """What stands in the command's own file, or in the group's file that the job has chosen: in any
    that has the key where a job takes several (Hydra does not say which)."""
    group, _, rest = key.partition(".")
    options = f"{chosen[group]}.yaml" if chosen.get(group) else "*.yaml"
    places = [(CONF / f"{config_name}.yaml", key)]
    places += [(path, rest) for path in sorted((CONF / group).glob(options)) if rest]
    for path, name in places:
        found = OmegaConf.select(OmegaConf.load(path), name, throw_on_resolution_failure=False)
        if found is not None:
            return found
    return None


def _compose(config_name: str, words: list[str]) -> DictConfig:
    try:
        return hydra.compose(config_name, words, return_hydra_config=True)
    except HydraException as error:
        bad = next((w for w in words if not _composes(config_name, w, words)), None)
        if bad is None:
            raise ValueError(first_line(error)) from error
        key, _, value = bad.lstrip("+~").partition("=")
        raise ValueError(_explain(config_name, bad, key, value, error)) from error


def _composes(config_name: str, word: str, words: list[str]) -> bool:
    # A key of a chosen group's option exists only with the choice of that option.
    groups = [w for w in words if (CONF / w.partition("=")[0]).is_dir() and w != word]
    good: list[str] = []
    for group in groups:
        try:
            hydra.compose(config_name, [*good, group])
        except HydraException:
            continue
        good.append(group)
    try:
        hydra.compose(config_name, [*good, word])
    except HydraException:
        return False
    return True


def _explain(config_name: str, word: str, key: str, value: str, error: Exception) -> str:
    if (CONF / key).is_dir():
        defaults = OmegaConf.load(CONF / f"{config_name}.yaml").defaults
        own = [str(group) for entry in defaults if isinstance(entry, DictConfig) for group in entry]
        if key not in own:
            there_are = ", ".join(g for g in own if "hydra/" not in g) or "none"
            return f"{word}: kgon {config_name} has no group {key!r}; there are {there_are}"
        options = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
        wrong = [v.strip() for v in value.strip("[]").split(",") if v.strip() not in options]
        missing = wrong[0] if wrong else value
        return (
            f"{word}: {key} has no option {missing!r}{_nearest(missing, options)}; "
            f"there are {', '.join(options)}"
        )
    known = list(_keys(hydra.compose(config_name)))
    group, _, rest = key.partition(".")
    having = [p.stem for p in sorted((CONF / group).glob("*.yaml")) if _has(p, rest)]
    if having and group == "callbacks":
        return f"{word}: this job has no callbacks.{having[0]}; callbacks=[...,{having[0]}] adds it"
    if key in known:
        return f"{word}: {first_line(error)}"
    if having:
        return f"{word}: {key} is an option of {' or '.join(f'{group}={o}' for o in having)} only"
    groups = [path.name for path in sorted(CONF.iterdir()) if path.is_dir()]
    elsewhere = [
        f"{g}.{k}"
        for g in groups
        for path in sorted((CONF / g).glob("*.yaml"))
        for k in _keys(OmegaConf.load(path))
    ]
    return f"{word}: there is no option {key!r}{_nearest(key, [*known, *elsewhere, *groups])}"


def _has(path: Path, key: str) -> bool:
    """Whether a file's config has a key; what it interpolates is elsewhere."""
    above, _, name = f".{key}".rpartition(".")
    node: Any = OmegaConf.load(path)
    if above:
        node = OmegaConf.select(node, above[1:], throw_on_resolution_failure=False)
    return isinstance(node, DictConfig) and name in list(node)


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names that one may set: neither targets nor what is taken from elsewhere."""
    for key in config:
        if OmegaConf.is_interpolation(config, key) or str(key).startswith("_"):
            continue
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(config) and isinstance(config[key], DictConfig):
            yield from _keys(config[key], f"{prefix}{key}.")


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.5)
    if not near:
        # A misplaced key: n_features for model.n_features.
        near = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.removeprefix("ValueError raised while resolving interpolation: ")
