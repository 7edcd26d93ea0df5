"""The part of a run's record that is only for W&B, stored in the run's folder before it is sent.

Beside the rows of metrics.jsonl, the folder `wandb` in a run's folder holds

    attempt         a random word, part of the W&B run's id
    run-<id>.json   a W&B run that shows this folder: arguments of `wandb.init`
    results.json    tables, figures and artifacts from the end of the job
    .lock           held by the process that writes the W&B run: the job, or `kgon sync`
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from kgon.files import try_lock, write_text

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ArtifactFiles:
    """An artifact: its name and type, the files in the run's folder that it holds, metadata."""

    name: str
    type: str
    files: list[str]
    metadata: dict[str, Any]


@dataclass
class Results:
    """What a job logs at its end, except the summary, which is in status.json.

    Rows by the table's name, paths of PNG files by the figure's name, relative to the run's folder,
    the artifacts that were asked for, and the names of those that the job used.
    """

    tables: dict[str, Rows] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    artifacts: list[ArtifactFiles] = field(default_factory=list)
    used: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outbox:
    """The folder `wandb` of the run in `directory`."""

    directory: Path

    @property
    def folder(self) -> Path:
        return self.directory / "wandb"

    def lock(self) -> IO[str] | None:
        """Lock the folder until the returned file is closed; None if another process has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / ".lock").open("w")
        if try_lock(file):
            return file
        file.close()
        return None

    def own_id(self) -> str:
        """The id of the W&B run of this attempt at this folder's content.

        Another attempt (runs.overwrite=true, another runs.dir) has another id, because W&B would
        take rows under a known id for more of the same run.
        """
        file = self.folder / "attempt"
        if not file.exists():
            self.renew_id()
        return f"{self.directory.name}-{file.read_text()}"

    def renew_id(self) -> None:
        """Choose another id, because W&B refuses that of a run that was deleted there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "attempt", secrets.token_hex(4))

    def add_run(self, init: Mapping[str, Any]) -> None:
        """Record a W&B run that shows this folder, by the arguments of `wandb.init`."""
        write_text(self.folder / f"run-{init['id']}.json", json.dumps(init, indent=1))

    def remove_run(self, run_id: str) -> None:
        """Forget a W&B run."""
        (self.folder / f"run-{run_id}.json").unlink(missing_ok=True)

    def has_run(self, run_id: str) -> bool:
        """Whether a W&B run of this id shows this folder."""
        return (self.folder / f"run-{run_id}.json").exists()

    def runs(self) -> list[dict[str, Any]]:
        """The W&B runs that show this folder, by the arguments of `wandb.init`."""
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("run-*.json"))]

    def save_results(self, results: Results) -> None:
        write_text(self.folder / "results.json", json.dumps(asdict(results)))

    def results(self) -> Results:
        """Read results.json; empty results if the job has not reached its end."""
        file = self.folder / "results.json"
        if not file.exists():
            return Results()
        read = json.loads(file.read_text())
        read["artifacts"] = [ArtifactFiles(**artifact) for artifact in read["artifacts"]]
        return Results(**read)
