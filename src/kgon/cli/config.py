"""Configs: where they are, what their resolvers mean, and what is wrong with an override."""

import copy
import difflib
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import run_and_report
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kgon import runs, sweeps, tracking
from kgon.cli.standing import print_standing
from kgon.schedule import Schedule

_PACKAGED = Path(__file__).parents[1] / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
"""The config folder: inside the installed package, or at the top of a checkout."""


def count_members(members: Any) -> int:
    """How many members a config's `members` stands for, a number or a list."""
    if isinstance(members, int) and not isinstance(members, bool) and members > 0:
        return members
    if isinstance(members, Sequence) and not isinstance(members, str) and members:
        return len(members)
    raise ValueError(
        "members must be a positive number, or a list of different member numbers >= 0, "
        f"got {members}"
    )


def _members(members: Any) -> list[int]:
    count = count_members(members)
    if isinstance(members, int):
        return list(range(count))
    chosen = list(members)
    if any(not isinstance(m, int) or m < 0 for m in chosen) or len(set(chosen)) < count:
        raise ValueError(f"members must be different member numbers >= 0, got {chosen}")
    return chosen


def _schedule(name: str, _root_: DictConfig) -> list[int]:
    schedule = Schedule(max_steps=_root_.trainer.max_steps, **_root_.schedule)
    return getattr(schedule, name)


def _identity(_root_: DictConfig) -> str:
    config = _plain(json.dumps(_pruned(_root_)))
    return runs.identity(config["command"], config)


def _directory(_root_: DictConfig) -> str:
    return str(Path(_root_.runs.dir) / _identity(_root_))


def plain(config: DictConfig) -> dict[str, Any]:
    """The config resolved to plain containers, without Hydra's own part and without what follows
    from the identity (the identity is computed from this)."""
    return copy.deepcopy(_plain(json.dumps(_pruned(config))))


# To resolve a config takes a while, and it refers to its identity in many places.
@functools.lru_cache
def _plain(pruned: str) -> dict[str, Any]:
    return resolved(OmegaConf.create(json.loads(pruned)))


def before_identity(config: DictConfig) -> DictConfig:
    """The config without Hydra's own part, the logger and what follows from the identity."""
    return OmegaConf.create(_pruned(config))


def _pruned(config: DictConfig) -> dict[str, Any]:
    def pruned(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: pruned(v) for k, v in node.items() if not _follows_from_identity(v)}
        return [pruned(v) for v in node] if isinstance(node, list) else node

    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return {str(k): pruned(v) for k, v in tree.items() if k not in ("hydra", "logger")}


def resolved(config: DictConfig) -> dict[str, Any]:
    """A config as plain containers, every interpolation replaced by what it stands for."""
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    return {str(k): v for k, v in settings.items()}


def _follows_from_identity(value: Any) -> bool:
    return isinstance(value, str) and ("${kgon.directory:" in value or "${kgon.identity:" in value)


def register_resolvers() -> None:
    """Make ${kgon.members:..}, ${kgon.schedule:..}, ${kgon.identity:}, ${kgon.directory:} known."""
    for name, resolver in (
        ("members", _members),
        ("schedule", _schedule),
        ("identity", _identity),
        ("directory", _directory),
    ):
        OmegaConf.register_new_resolver(f"kgon.{name}", resolver, replace=True)


def run(
    config_name: str,
    task: Callable[[DictConfig], float | None],
    check: Callable[[DictConfig], None],
) -> None:
    """Hand the command line to Hydra, after every override of it has been checked.

    Bad input ends here, with one line and status 2, before any job has started.
    """
    register_resolvers()
    overrides = [word for word in sys.argv[1:] if _is_override(word)]
    if not {"--help", "-h", "--hydra-help", "--info", "-i", "--cfg", "-c"} & set(sys.argv):
        try:
            config, swept = _check_overrides(config_name, overrides, check)
        except (ValueError, OmegaConfBaseException) as error:
            refuse(config_name, _first_line(error))
        if {"-m", "--multirun"} & set(sys.argv) or config.hydra.mode == RunMode.MULTIRUN:
            if tracking.awaited():
                refuse(config_name, "-m: the agent of a W&B sweep waits for one run; leave out -m")
            # An experiment may choose another sweeper, which it could not if ours were a default.
            if config.hydra.runtime.choices["hydra/sweeper"] == "basic":
                sys.argv.append("hydra/sweeper=kgon")
            name = sweeps.name(config_name, overrides)
            sys.exit(_sweep(config_name, task, sweeps.Sweep(Path(config.runs.dir), name)))
        if swept:
            refuse(config_name, f"{swept[0]}: several values are a job each, with -m")
        if overrides == sys.argv[1:]:
            run_and_report(lambda: _run_one(config_name, task, config))
            return
    _start(config_name, task)


def _run_one(
    config_name: str, task: Callable[[DictConfig], float | None], config: DictConfig
) -> None:
    """What Hydra's main does with one job and no flags, with the config that was checked: composing
    takes longer than anything else on the way to a job's first step, and Hydra would do it twice
    more."""
    with hydra.initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        config.hydra.mode = config.hydra.mode or RunMode.RUN
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=config_name)
        done = run_job(
            task_function=task,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(GlobalHydra.instance().config_loader(), callbacks),
        )
        callbacks.on_run_end(config=config, config_name=config_name, job_return=done)
        _ = done.return_value  # raises what the job has raised


def _start(config_name: str, task: Callable[[DictConfig], float | None]) -> None:
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()


def _sweep(
    config_name: str, task: Callable[[DictConfig], float | None], sweep: sweeps.Sweep
) -> int:
    """Run a sweep, show how its points stand whatever ends it, and return the exit status."""
    os.environ[sweeps.VARIABLE] = sweep.name
    status = 0
    try:
        _start(config_name, task)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        rows = sweeps.standing(sweep.points())
        print_standing(rows, sweep.name)
    return status or int(any(row["state"] == "failed" for row in rows))


def refuse(command: str, message: str) -> NoReturn:
    """End the process with one line about bad input."""
    print(f"kgon {command}: error: {message}", file=sys.stderr)
    sys.exit(2)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _check_overrides(
    config_name: str, words: list[str], check: Callable[[DictConfig], None]
) -> tuple[DictConfig, list[str]]:
    """Check every choice of every override; return the config of the first ones, with Hydra's own
    part, and the overrides that have several."""
    with hydra.initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        parser = OverridesParser.create()
        try:
            parsed = parser.parse_overrides(words)
        except HydraException as error:
            raise ValueError(f"cannot read the overrides: {_first_line(error)}") from error
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
            raise ValueError(_first_line(error)) from error
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
        return f"{word}: {_first_line(error)}"
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
    above, _, name = f".{key}".rpartition(".")
    """Whether a file's config has a key; what it interpolates is elsewhere."""
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


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.removeprefix("ValueError raised while resolving interpolation: ")
