"""The settings, groups and options of a command with their comments, read from files in conf/."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_PACKAGED = Path(__file__).parents[1] / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
"""The config folder: in the installed package, or at the top of a checkout."""

GLOBAL = "# @package _global_"
"""The first line of a config file that can set settings of any group."""

_LINE = re.compile(r"( *)(?:- )?([^\s:#]+):(?: ([^#].*?))?(?: # (.*))?")
"""A line of a config file: indentation, key, value, comment."""


@dataclass(frozen=True)
class Setting:
    """A setting in a config file: the text of its default, and the comment on its line.

    The text of a section, which contains settings, is empty.
    """

    text: str
    comment: str

    @property
    def default(self) -> Any:
        """The default value; None for a section."""
        return _value(self.text) if self.text else None


@dataclass(frozen=True)
class Group:
    """A config group of a command: its comment, its default options, the file of each option."""

    comment: str
    chosen: Collection[str]
    options: Mapping[str, Path]

    @property
    def fixed(self) -> bool:
        """Whether there is a single option, whose settings then count as the command's own."""
        return len(self.options) == 1


def comments(file: Path) -> list[str]:
    """The lines of the comment at the top of a config file; the first one is a summary."""
    lines = file.read_text().splitlines()
    top = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), None)]
    return [line[2:] for line in top if not line.startswith("# @package")]


def is_global(file: Path) -> bool:
    """Whether a config file begins with GLOBAL."""
    return " ".join(file.read_text().split()[:3]) == GLOBAL


def groups(command: str, own: Sequence[Path] = ()) -> dict[str, Group]:
    """The groups of a command by name, in the order of its file; the `own` folders of a user may
    have more options."""
    found = {}
    for path, text, comment in _lines(CONF / f"{command}.yaml"):
        if path[0] == "defaults" and len(path) == 2:
            found[path[1]] = Group(comment, _as_list(_value(text)), _options(command, path[1], own))
    if "runs" in found:
        comment = "how the jobs of a sweep (-m) are run"
        found["hydra/launcher"] = Group(
            comment, ["basic"], _options(command, "hydra/launcher", own)
        )
    return found


def _options(command: str, group: str, own: Sequence[Path]) -> dict[str, Path]:
    folders = (*(folder / group for folder in own), CONF / group, CONF / command / group)
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def settings(
    command: str, choices: Mapping[str, Any], own: Sequence[Path] = ()
) -> dict[str, Setting]:
    """The settings of a command by dotted name: of its own file, then those of its groups' options.

    `choices` has the options chosen in each group. If it lacks a group, or chooses an option that
    has no file, all options of the group count.
    """
    found = dict(settings_of(CONF / f"{command}.yaml"))
    for name, group in groups(command, own).items():
        chosen = _as_list(choices.get(name, [*group.options]))
        unknown = any(option not in group.options for option in chosen)
        # An experiment changes settings; it has none of its own.
        for option, file in group.options.items() if name != "experiment" else ():
            if unknown or option in chosen:
                found |= {k: v for k, v in settings_of(file).items() if k not in found}
    return found


@cache
def settings_of(file: Path) -> dict[str, Setting]:
    """The settings of a config file by dotted name, without those computed from others."""
    # In a user's own folder, the folder of the file is the group.
    group = file.parent.relative_to(CONF if file.is_relative_to(CONF) else file.parents[1]).parts
    above = () if is_global(file) else group
    return {
        ".".join((*above, *path)): Setting(text, comment)
        for path, text, comment in _lines(file)
        if path[0] not in ("defaults", "hydra", "command") and not path[-1].startswith("_")
        and "${" not in text and "_target_" not in text
    }  # fmt: skip


def _lines(file: Path) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The path of keys, the text of the value and the comment of each line that has a key."""
    above: list[tuple[int, str]] = []
    for line in file.read_text().splitlines():
        if match := _LINE.fullmatch(line):
            indent, key, text, comment = match.groups(default="")
            above = [one for one in above if one[0] < len(indent)] + [(len(indent), key)]
            yield tuple(name for _, name in above), text, comment


def _value(text: str) -> Any:
    return OmegaConf.create(f"value: {text}").value


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if OmegaConf.is_list(value) or isinstance(value, list) else [value]
