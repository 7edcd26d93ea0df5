"""The help text of a command, taken from conf/."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping

from kgon.launch import options
from kgon.launch.options import Group, Setting

_COLUMN = 40
"""The column at which comments begin."""


def help_text(command: str) -> str:
    """The usage, the settings with their defaults, the groups with their options, the flags."""
    groups = options.groups(command)
    own = options.settings(
        command, {n: list(g.options) if g.fixed else [] for n, g in groups.items()}
    )
    words = "[NAME=VALUE ...]" + (" [GROUP=OPTION ...]" if groups else "")
    lines = [f"usage: kgon {command} {words}", ""]
    lines += options.comments(options.CONF / f"{command}.yaml")
    lines += ["", "settings:", *_settings(own)]
    if chosen := {name: group for name, group in groups.items() if not group.fixed}:
        lines += ["", "groups (* marks the default):", *_groups(chosen)]
    lines += ["", "flags:"]
    if "runs" in groups:
        lines += _row("  -m", "a sweep: each combination of values is a job, as in seed=1,2,3")
    lines += _row("  --cfg job", "print the config and do nothing")
    lines += _row("  --hydra-help", "list the other flags of Hydra")
    return "\n".join(lines)


def _settings(settings: Mapping[str, Setting]) -> Iterator[str]:
    for name, setting in settings.items():
        if setting.text:
            yield from _row(f"  {name}={setting.text}", setting.comment)
        elif setting.comment:
            yield from _row(f"  {name}: {setting.comment}", "")


def _groups(groups: Mapping[str, Group]) -> Iterator[str]:
    for name, group in groups.items():
        yield f"  {name}: {group.comment}"
        if name == "hydra/launcher":
            yield from _row("    basic *", "One job after the other, in this process.")
        for option, file in group.options.items():
            mark = " *" if option in group.chosen else ""
            yield from _row(f"    {option}{mark}", options.comments(file)[0])
            values = [f"{k}={s.text}" for k, s in options.settings_of(file).items() if s.text]
            if values and name != "experiment":
                yield from _row("", " ".join(values))


def _row(left: str, right: str) -> list[str]:
    """Lines with `left` in the first column and `right` wrapped in the second; if `left` is long,
    it has a line of its own."""
    width = max(shutil.get_terminal_size().columns, _COLUMN + 40)
    indent = " " * _COLUMN
    rows = textwrap.wrap(right, width, initial_indent=indent, subsequent_indent=indent,
                         break_on_hyphens=False)  # fmt: skip
    if not rows or len(left) >= _COLUMN:
        return [left, *rows] if left else rows
    return [left + rows[0][len(left) :], *rows[1:]]
