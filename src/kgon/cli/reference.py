"""Every setting, docs/configuration.md: `python -m kgon.cli.reference > docs/configuration.md`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kgon.cli import CONFIGURED
from kgon.launch import options
from kgon.launch.options import Group, Setting

_INTRODUCTION = """\
# Configuration

A command is configured by words, `kgon train members=32 optimizer=adam optimizer.lr=0.001`. A word
sets a value (`members=32`) or chooses an option of a group (`optimizer=adam`, which stands for the
file `conf/optimizer/adam.yaml`). `kgon COMMAND --help` prints what this page says of a command, and
`kgon COMMAND ... --cfg job` the config that words make. A wrong word ends the command before any
work starts, with one line that names the word and what is allowed.

- `-m` makes a sweep: each combination of `seed=1,2,3 optimizer.lr=0.005,0.01` is a job
  ([sweeps and clusters](cluster.md)).
- `experiment=NAME` is a named set of changes. Words beside it win over it.
- `+NAME=VALUE` adds a setting that is not listed, for instance an argument of Lightning's Trainer:
  `+trainer.max_time=00:01:00:00`. `~NAME` takes a setting away.
- A list is written `[5,6]`, and nothing `null`. Put quotes around words that the shell would read.
- `--config-dir FOLDER` adds options of your own: `FOLDER/optimizer/mine.yaml` is `optimizer=mine`.

The commands that take no config (`kgon runs`, `sync`, `dashboard`, `figures`, `report`) explain
their flags with `--help`.

`python -m kgon.cli.reference` writes this page from the files in `conf/` and their comments.
"""


def page() -> str:
    """Each command with its settings, then each group with its options and their settings."""
    groups = {command: options.groups(command) for command in CONFIGURED}
    using = {
        name: {command: own[name] for command, own in groups.items() if name in own}
        for name in dict.fromkeys(name for own in groups.values() for name in own)
        if name != "experiment"
    }
    # The settings of a group with one option are shown with the command, unless several share it.
    apart = [name for name, own in using.items() if len(own) > 1 or not own.popitem()[1].fixed]
    lines = [_INTRODUCTION]
    for command, own in groups.items():
        lines += _command(command, own, [name for name in own if name in apart])
    lines.append("## Groups\n")
    for name in apart:
        lines += _group(name, {c: own[name] for c, own in groups.items() if name in own})
    return "\n".join(lines).rstrip() + "\n"


def _command(command: str, groups: Mapping[str, Group], apart: Sequence[str]) -> Iterator[str]:
    yield f"## kgon {command}\n"
    for line in options.comments(options.CONF / f"{command}.yaml"):
        yield f"`{line.strip()}`" if line.startswith("  ") else _escaped(line)
    own = {name: [] if name in apart else [*group.options] for name, group in groups.items()}
    yield "\n| setting | default | meaning |\n|---|---|---|"
    for name, setting in options.settings(command, own).items():
        if setting.text or setting.comment:
            yield f"| {_shown(name, setting)} |"
    if apart:
        yield f"\nGroups: {', '.join(f'[`{name}`](#{_anchor(name)})' for name in apart)}."
    if "experiment" in groups:
        yield f"\n### Experiments of kgon {command}\n"
        yield "| `experiment=` | what it is |\n|---|---|"
        for option, file in groups["experiment"].options.items():
            yield f"| `{option}` | {_text(file)} |"
    yield ""


def _group(name: str, using: Mapping[str, Group]) -> Iterator[str]:
    yield f"### {name}\n"
    alike: dict[str, list[str]] = {}
    for command, group in using.items():
        comment = f": {_escaped(group.comment)}" if group.comment else ""
        default = ", ".join(f"`{option}`" for option in group.chosen) or "none"
        alike.setdefault(f"{comment}. Default: {default}.", []).append(f"`kgon {command}`")
    yield from (f"- {', '.join(commands)}{rest}" for rest, commands in alike.items())
    files = next(iter(using.values())).options
    yield "\n| option | what it is |\n|---|---|"
    if name == "hydra/launcher":
        yield "| `basic` | One job after the other, in this process. |"
    for option, file in files.items():
        yield f"| `{option}` | {_text(file)} |"
    settings = [
        (option, key, setting)
        for option, file in files.items()
        for key, setting in options.settings_of(file).items()
        if setting.text or setting.comment
    ]
    if settings:
        yield "\n| option | setting | default | meaning |\n|---|---|---|---|"
        for option, key, setting in settings:
            yield f"| `{option}` | {_shown(key.replace('/', '.'), setting)} |"
    yield ""


def _shown(name: str, setting: Setting) -> str:
    default = f"`{setting.text}`".replace("|", "\\|") if setting.text else ""
    return f"`{name}` | {default} | {_escaped(setting.comment)}"


def _text(file: Path) -> str:
    return _escaped(" ".join(options.comments(file)))


def _escaped(comment: str) -> str:
    """A comment as Markdown that shows it as it is, in a table too."""
    for character, shown in {"<": "&lt;", "|": "\\|", "*": "\\*"}.items():
        comment = comment.replace(character, shown)
    return comment


def _anchor(heading: str) -> str:
    return heading.replace("/", "")


if __name__ == "__main__":
    print(page(), end="")
