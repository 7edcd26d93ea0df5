"""Configs: their resolvers, the form in which they are recorded, and the folder of a job's run."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kgon.launch.options import CONF
from kgon.record import run_directory

_RESOLVER = re.compile(r"\$\{([\w.]+):")
_OWN_SETTINGS = {"kgon.members", "kgon.schedule", "kgon.dtype", "oc.select"}
"""Resolvers that read only the config itself."""
_FROM_IDENTITY = {"kgon.identity", "kgon.directory"}
"""Resolvers that need the identity, which is a function of the recorded config."""


def count_members(members: Any) -> int:
    """The number of members that the setting `members` asks for, by a number or a list."""
    if isinstance(members, int) and not isinstance(members, bool) and members > 0:
        return members
    if isinstance(members, Sequence) and not isinstance(members, str) and members:
        numbers = {m for m in members if isinstance(m, int) and m >= 0}
        if len(numbers) == len(members):
            return len(members)
    raise ValueError(
        "members must be a positive number, or a list of different member numbers >= 0, "
        f"got {members}"
    )


def _members(members: Any) -> list[int]:
    count = count_members(members)
    return list(range(count)) if isinstance(members, int) else list(members)


def _schedule(kind: str, _root_: DictConfig) -> DictConfig:
    # A function of the steps, because a config of thousands of steps is slow to resolve.
    settings = {"max_steps": _root_.trainer.max_steps, **_root_.schedule}
    return OmegaConf.create({"_target_": "kgon.training.schedule.steps", "kind": kind, **settings})


def _dtype(name: str) -> DictConfig:
    return OmegaConf.create({"_target_": "hydra.utils.get_object", "path": f"torch.{name}"})


def _identity(_root_: DictConfig) -> str:
    return run_directory.identity(_root_.command, written(_root_))


def directory(config: DictConfig) -> Path:
    """The folder of a job's run."""
    return Path(config.runs.dir) / _identity(config)


def register_resolvers() -> None:
    """Make the resolvers of conf/ known."""
    for name, resolver in (
        ("conf", lambda: str(CONF)),
        ("members", _members),
        ("schedule", _schedule),
        ("dtype", _dtype),
        ("identity", _identity),
        ("directory", lambda _root_: str(directory(_root_))),
    ):
        OmegaConf.register_new_resolver(f"kgon.{name}", resolver, replace=True)


def written(config: DictConfig) -> dict[str, Any]:
    """The config as it is recorded: in plain containers, without Hydra's part and the logger.

    References to other settings, such as ${members}, stay, so each value appears once, as a person
    would write it. References to anything else, such as ${oc.env:NAME}, are replaced by values.
    """
    tree: Any = OmegaConf.to_container(config, resolve=False)
    own = {k: v for k, v in tree.items() if k not in ("hydra", "logger")}
    return {k: _written(config, k, v) for k, v in own.items()}


def _written(config: DictConfig, path: str, node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _written(config, f"{path}.{k}", v) for k, v in node.items()}
    if isinstance(node, list):
        return [_written(config, f"{path}[{i}]", v) for i, v in enumerate(node)]
    used = set(_RESOLVER.findall(node)) if isinstance(node, str) else set()
    if used <= _OWN_SETTINGS or used & _FROM_IDENTITY:
        return node
    value = OmegaConf.select(config, path)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """The dotted name and value of every setting, as written."""

    def below(name: str, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict | list):
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                yield from below(f"{name}.{key}" if name else str(key), value)
        else:
            yield name, node

    return below("", OmegaConf.to_container(config, resolve=False))


def resolved(config: DictConfig) -> dict[str, Any]:
    """A config as plain containers, every interpolation replaced by its value."""
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return dict(settings)
