"""The part of a run's record that is only for W&B, stored in the run's folder before it is sent.

W&B gets the rows of metrics.jsonl, and what is in the folder `wandb` of the run's folder:

    attempt         a random word, part of the W&B run's id
    run-<id>.json   a W&B run of this record: the arguments of `wandb.init`
    results.json    tables, figures and artifacts from the end of the job
    .lock           held by the process that writes the W&B run: the job, or `kgon sync`
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from kgon.files import try_lock, write_text

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ArtifactFiles:
    """An artifact: its name and type, its files (paths in the run's folder), metadata."""

    name: str
    type: str
    files: list[str]
    metadata: dict[str, Any]


@dataclass
class Results:
    """The results that a job logs at its end, without the summary, which is in status.json.

    Attributes:
        tables: the rows of each table.
        figures: the PNG file of each figure, relative to the run's folder.
        artifacts: the artifacts that logger.artifacts=true asks for.
        used: the names of artifacts that the job used.
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
        """Lock the folder until the returned file is closed; None if another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / ".lock").open("w")
        if try_lock(file):
            return file
        file.close()
        return None

    def own_id(self) -> str:
        """The id of the W&B run of this attempt at the job.

        Another attempt (runs.overwrite=true, another runs.dir) has another id, because W&B takes
        rows under a known id for more rows of the same run.
        """
        file = self.folder / "attempt"
        if not file.exists():
            self.renew_id()
        return f"{self.directory.name}-{file.read_text()}"

    def renew_id(self) -> None:
        """Choose another id, because W&B refuses the id of a deleted run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "attempt", secrets.token_hex(4))

    def add_run(self, init: Mapping[str, Any]) -> None:
        """Note a W&B run of this record, by the arguments of `wandb.init` that identify and show
        it."""
        settings = {name: init["settings"].get(name) for name in ("disable_git", "git_commit")}
        settings["sweep_id"] = init["settings"].get("sweep_id") or os.environ.get("WANDB_SWEEP_ID")
        kept = {k: v for k, v in init.items() if k not in ("dir", "reinit")} | {
            "settings": settings
        }
        write_text(self.folder / f"run-{init['id']}.json", json.dumps(kept, indent=1))

    def remove_run(self, run_id: str) -> None:
        """Forget a W&B run."""
        (self.folder / f"run-{run_id}.json").unlink(missing_ok=True)

    def has_run(self, run_id: str) -> bool:
        """Whether this record has a W&B run with this id."""
        return (self.folder / f"run-{run_id}.json").exists()

    def runs(self) -> list[dict[str, Any]]:
        """The arguments of `wandb.init` for each W&B run of this record."""
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("run-*.json"))]

    def save_results(self, results: Results) -> None:
        write_text(self.folder / "results.json", json.dumps(asdict(results)))

    def results(self) -> Results:
        """Read results.json; the results are empty if the job has not reached its end."""
        file = self.folder / "results.json"
        if not file.exists():
            return Results()
        read = json.loads(file.read_text())
        read["artifacts"] = [ArtifactFiles(**artifact) for artifact in read["artifacts"]]
        return Results(**read)
