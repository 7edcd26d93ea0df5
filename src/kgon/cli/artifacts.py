"""Artifacts named on the command line: downloaded first, then used as folders.

So a job needs no network wherever it runs, and its config records the artifact's version.
"""

from pathlib import Path

from kgon.launch import command_line, options
from kgon.tracking import artifacts


def downloaded(command: str, words: list[str]) -> list[str]:
    """Replace the artifacts in run=NAME,... by folders in <runs.dir>/artifacts.

    A name that cannot be downloaded ends the command, with one line and status 2.
    """
    values = dict(word.split("=", 1) for word in words if "=" in word)
    default = options.settings(command, {})["runs.dir"].default
    folder = Path(values.get("runs.dir", default)) / "artifacts"

    def here(name: str) -> str:
        if ":" not in name or Path(name).exists():
            return name
        try:
            return str(artifacts.download(name, folder))
        except ValueError as error:
            command_line.refuse(command, f"run={name}: {error}")

    return [
        "run=" + ",".join(map(here, word.removeprefix("run=").split(",")))
        if word.startswith("run=")
        else word
        for word in words
    ]
