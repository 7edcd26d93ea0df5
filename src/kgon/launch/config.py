"""Configs: where they are, what their resolvers mean, and what of them a job is."""

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kgon.record import run_directory
from kgon.training.schedule import Schedule

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
    return run_directory.identity(config["command"], config)


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
