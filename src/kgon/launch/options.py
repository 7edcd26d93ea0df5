"""What the files in conf/ offer a command: settings, groups, options, and the comments on them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

_PACKAGED = Path(__file__).parents[1] / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
"""The config folder: inside the installed package, or at the top of a checkout."""


@dataclass(frozen=True)
class Setting:
    """A value that a config file sets.

    Attributes:
        text: the default as it is written; empty for a section, which has settings of its own.
        comment: the comment on the same line.
    """

    text: str
    comment: str

    @property
    def default(self) -> Any:
        """The default value, None for a section."""
        return OmegaConf.create(f"value: {self.text}").value if self.text else None


@dataclass(frozen=True)
class Group:
    """A config group of a command.

    Attributes:
        comment: what it chooses.
        chosen: the options that are chosen by default.
        options: the file of each option.
    """

    comment: str
    chosen: Collection[str]
    options: Mapping[str, Path]

    @property
    def fixed(self) -> bool:
        """Whether there is a single option: its settings are then the command's own."""
        return len(self.options) == 1


def comments(file: Path) -> list[str]:
    """The comment at the top of a config file. Its first line says in short what the file is."""
    lines = file.read_text().splitlines()
    top = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), None)]
    return [line[2:] for line in top if not line.startswith("# @package")]


def groups(command: str) -> dict[str, Group]:
    """The groups of a command by name, in the order of its file."""
    found = {}
    for name, chosen, comment in _defaults_list(CONF / f"{command}.yaml"):
        found[name] = Group(comment, chosen, _options(command, name))
    if "runs" in found:
        comment = "how the jobs of a sweep (-m) are run"
        found["hydra/launcher"] = Group(comment, ["basic"], _options(command, "hydra/launcher"))
    return found


def _options(command: str, group: str) -> dict[str, Path]:
    return {file.stem: file for folder in (CONF, CONF / command)
            for file in sorted((folder / group).glob("*.yaml"))}  # fmt: skip


def settings(command: str, choices: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings of a command by dotted name: of its own file, then those of its groups' options.

    Args:
        command: the command.
        choices: the option or options chosen of each group; every option of a group that is not
            in it.
    """
    found = dict(_settings(CONF / f"{command}.yaml"))
    for name, group in groups(command).items():
        # An experiment changes settings; it has none of its own.
        for option, file in group.options.items() if name != "experiment" else ():
            if option in _as_list(choices.get(name, option)):
                found |= {k: v for k, v in _settings(file) if k not in found}
    return found


def settings_of(file: Path) -> dict[str, Setting]:
    """The settings of an option of a group, by dotted name."""
    return dict(_settings(file))


@cache
def _settings(file: Path) -> tuple[tuple[str, Setting], ...]:
    text = file.read_text()
    group = file.parent.relative_to(CONF).parts
    prefix = () if not group or text.startswith("# @package _global_") else group
    document = yaml.compose(text, yaml.CSafeLoader)
    return tuple(_walk(document, ".".join(prefix), text.splitlines()))


def _walk(node: yaml.Node, prefix: str, lines: list[str]) -> Iterator[tuple[str, Setting]]:
    for key, value in node.value:
        name = f"{prefix}.{key.value}" if prefix else key.value
        section = isinstance(value, yaml.MappingNode) and not value.flow_style
        last = key if section else value
        rest = lines[last.end_mark.line][last.end_mark.column :]
        text = "" if section else _source(value, lines)
        computed = "${" in text or "_target_" in text
        if not (key.value.startswith("_") or name in ("defaults", "hydra", "command") or computed):
            yield name, Setting(text, rest.partition("# ")[2])
            if section:
                yield from _walk(value, name, lines)


def _source(node: yaml.Node, lines: list[str]) -> str:
    line: str = lines[node.start_mark.line]
    return line[node.start_mark.column : node.end_mark.column]


def _defaults_list(file: Path) -> Iterator[tuple[str, list[str], str]]:
    """Group, chosen options and comment of each entry of a config file's defaults list."""
    text = file.read_text()
    lines = text.splitlines()
    for key, value in yaml.compose(text, yaml.CSafeLoader).value:
        for entry in value.value if key.value == "defaults" else ():
            if isinstance(entry, yaml.MappingNode):
                ((group, chosen),) = entry.value
                comment = lines[entry.start_mark.line].partition("# ")[2]
                names = _as_list(OmegaConf.create(f"v: {_source(chosen, lines)}").v)
                if not group.value.startswith("override "):
                    yield group.value, names, comment


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if OmegaConf.is_list(value) or isinstance(value, list) else [value]
