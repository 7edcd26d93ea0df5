"""A user's own folders of options, and the modules beside them.

Hydra's `--config-dir FOLDER` and `hydra.searchpath=[file://FOLDER]` add a folder to kgon's conf/.
"""

import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kgon.launch import options
from kgon.launch.options import CONF, GLOBAL
from kgon.record.run_directory import leaves

_KEY = "hydra.searchpath"
_FILE = "file://"


def with_own_folders(command: str, words: Sequence[str]) -> list[str]:
    """A command line with all its own folders in one override, by which every config is composed.

    In Hydra that override would take the place of the folder with the command's experiments.

    Raises:
        ValueError: a folder does not exist.
    """
    kept: list[str] = []
    entries = [f"{_FILE}{CONF / command}"]
    place = None
    rest = iter(words)
    for word in rest:
        name, _, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            entries.append(_FILE + _folder(word, value or next(rest, "")))
        elif name == _KEY:
            entries += [_absolute(word, entry) for entry in _entries(word, value)]
        else:
            kept.append(word)
            continue
        place = len(kept) if place is None else place
    if place is not None:
        quoted = ",".join(f"'{entry}'" for entry in dict.fromkeys(entries))
        kept.insert(place, f"{_KEY}=[{quoted}]")
    return kept


def _entries(word: str, value: str) -> list[str]:
    entries: Any = OmegaConf.create(f"value: {value}").value
    if not OmegaConf.is_list(entries):
        raise ValueError(f"{word}: {_KEY} must be a list such as [file://FOLDER]")
    return [str(entry) for entry in entries]


def _absolute(word: str, entry: str) -> str:
    return _FILE + _folder(word, entry.removeprefix(_FILE)) if entry.startswith(_FILE) else entry


def _folder(word: str, folder: str) -> str:
    path = Path(folder).absolute()
    if not folder or not path.is_dir():
        raise ValueError(f"{word}: {path} is not a folder")
    return str(path)


def own_folders(entries: Sequence[str]) -> list[Path]:
    """The folders in a config's hydra.searchpath that are not kgon's."""
    paths = [Path(entry.removeprefix(_FILE)) for entry in entries if entry.startswith(_FILE)]
    return [path for path in paths if not path.is_relative_to(CONF)]


def folders_of(words: Sequence[str]) -> list[Path]:
    """The own folders in the overrides of `with_own_folders`."""
    pairs = (word.partition("=") for word in words)
    return [
        folder
        for name, _, value in pairs
        if name == _KEY
        for folder in own_folders(_entries(f"{name}={value}", value))
    ]


def make_importable(folders: Sequence[Path]) -> None:
    """Let a `_target_` name modules in the current folder and in a user's own folders."""
    # At the end, so that no file of theirs hides an installed package.
    for path in (Path.cwd(), *folders):
        if str(path) not in sys.path:
            sys.path.append(str(path))


@dataclass(frozen=True)
class OwnFile:
    """An option in a user's own folder; `settings` are its values by dotted name."""

    path: Path
    group: str
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, group: str) -> "OwnFile":
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        above = "" if options.is_global(path) else group.replace("/", ".") + "."
        settings = {f"{above}{k}": v for k, v in leaves(content) if k != "defaults"}
        return cls(path, group, settings)


def used_files(folders: Sequence[Path], choices: Mapping[str, Any]) -> list[OwnFile]:
    """The options of a user's own that a config has; `choices` are its options by group."""
    return [
        OwnFile.read(path, group)
        for group, chosen in choices.items()
        for option in (chosen if isinstance(chosen, Sequence) and not isinstance(chosen, str)
                       else [chosen])
        for folder in folders
        if (path := folder / group / f"{option}.yaml").is_file()
    ]  # fmt: skip


def check_used(command: str, config: DictConfig, files: Sequence[OwnFile]) -> None:
    """ValueError for a key of a user's own files that nothing uses, or a file that is not used."""
    groups, known = options.groups(command), options.settings(command, {})
    text = str(OmegaConf.to_container(config, resolve=False))
    for file in files:
        if file.group in groups and file.path.stem in groups[file.group].options:
            raise ValueError(
                f"{file.path}: kgon has an option {file.group}={file.path.stem}, which hides this "
                "one; give the file another name"
            )
        if file.group == "experiment" and any(
            key.startswith("experiment.") for key in file.settings
        ):
            raise ValueError(f"{file.path}: its first line must be {GLOBAL}")
        for key in file.settings:
            if not _is_used(key, config, known) and f"${{{key}}}" not in text:
                *_, last = key.split(".")
                hint = nearest(last, _HYDRAS) if last.startswith("_") else nearest(key, [*known])
                raise ValueError(f"{file.path}: there is no setting {key}{hint}")


_HYDRAS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
"""Keys by which Hydra builds an object."""


def _is_used(key: str, config: DictConfig, known: Mapping[str, Any]) -> bool:
    """Whether kgon, Hydra or a `_target_` of the config takes a setting."""
    *above, last = key.split(".")
    if last.startswith("_"):
        return last in _HYDRAS
    sections = [".".join(above[:i]) for i in range(1, len(above) + 1)]
    return (
        key in known
        or above[:1] == ["hydra"]
        or any(name in known and known[name].text for name in sections)
        or any(OmegaConf.select(config, f"{name}._target_") is not None for name in sections)
    )


def with_source(message: str, files: Sequence[OwnFile], overridden: Collection[str]) -> str:
    """A message about a config, with the user's own file that sets what it names in front."""
    words = re.findall(r"[\w.]+", message)
    quoted = re.findall(r"'([^']+)'", message)
    for file in files:
        for key, value in file.settings.items():
            inside = re.findall(r"[\w.]+", value) if isinstance(value, str) else []
            named = key in words or {key.rpartition(".")[2], *inside} & {*quoted}
            if named and key not in overridden:
                return f"{file.path}: {message}"
    section = words[0].rpartition(".")[2] if words else ""
    return next((f"{file.path}: {message}" for file in files if file.group == section), message)


def nearest(word: str, known: Sequence[str]) -> str:
    """; did you mean ...?, or nothing."""
    near = difflib.get_close_matches(word, known, 1, 0.5)
    if not near:
        # A key without its section: n_features for model.n_features.
        near = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    return f"; did you mean {near[0]}?" if near else ""
