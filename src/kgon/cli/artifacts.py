"""Artifacts named on the command line: downloaded before anything else, and then just folders.

So a job, wherever it runs, needs no network, and its config says which version it was.
"""

from pathlib import Path

from kgon.launch import command_line, options
from kgon.tracking import artifacts


def downloaded(command: str, words: list[str]) -> list[str]:
    """The words of a command line with the artifacts in run=NAME,... as folders in <runs.dir>.

    Bad names end here, with one line and status 2.
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
