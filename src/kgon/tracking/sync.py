"""Sending to W&B what it lacks of the records in the folders of runs.

`wandb.Api` is asked what the server has. What it lacks is replayed from the record through the
client, into the W&B run with the same id, which the client resumes at the server's last step. Then
the server is asked again. It is always safe to repeat this.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from kgon.callbacks.recorder import Row
from kgon.record.metrics_file import MetricsFile
from kgon.record.run_directory import RunDirectory
from kgon.tracking.account import first_line
from kgon.tracking.logger import INTERRUPTED
from kgon.tracking.opening import open_online
from kgon.tracking.outbox import Outbox, Results
from kgon.tracking.tracker import Tracker

EXIT_CODES = {"finished": 0, "failed": 1}
"""The exit code of a W&B run by the state of the job; INTERRUPTED in other states."""

SETTINGS = {
    "x_save_requirements": False,
    "x_disable_stats": True,
    "console": "off",
    "silent": True,
    "init_timeout": 20.0,
    # By default the client retries for hours; a user at a terminal can call the command again.
    "x_graphql_retry_max": 3,
    "x_graphql_retry_wait_max_seconds": 5.0,
    "x_graphql_timeout_seconds": 20.0,
    "x_file_stream_retry_max": 5,
    "x_file_stream_retry_wait_max_seconds": 5.0,
    "x_file_stream_timeout_seconds": 20.0,
    "x_file_transfer_retry_max": 5,
    "x_file_transfer_retry_wait_max_seconds": 5.0,
}

Report = Callable[[Path, str, str], None]
"""Takes a run's folder, its outcome (`sent`, `already there`, `running`, `failed` or `not sent`),
and details."""


@dataclass
class Record:
    """The record of a W&B run in its folder; `init` are the arguments of `wandb.init`."""

    outbox: Outbox
    init: dict[str, Any]
    config: dict[str, Any] = field(init=False)
    rows: list[Row] = field(init=False)
    results: Results = field(init=False)

    @property
    def folder(self) -> Path:
        return self.outbox.directory

    @cached_property
    def status(self) -> dict[str, Any]:
        return RunDirectory(self.folder).status()

    def read(self) -> None:
        """Read `config`, `rows` and `results` from their files; ValueError if one is damaged."""
        file = self.folder / "config.yaml"
        try:
            self.config = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is damaged: {first_line(error)}") from error
        self.rows = MetricsFile(self.folder).rows()
        self.results = self.outbox.results()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.status["state"], INTERRUPTED)

    @property
    def summary(self) -> dict[str, float | str]:
        return self.status["metrics"] if self.status["state"] == "finished" else {}

    def sent_before(self) -> list[tuple[Path, Path]]:
        """The media files that earlier runs of the client have left, each with its folder, to which
        its name on the server is relative."""
        return [
            (file, files)
            for files in sorted(self.outbox.folder.glob(f"run-*-{self.init['id']}/files"))
            for file in sorted(files.glob("media/**/*"))
            if file.is_file()
        ]


@dataclass
class Lacking:
    """What the server lacks of a record: in words, and the `media` files that earlier runs of the
    client have left."""

    rows: str = ""
    results: str = ""
    media: list[tuple[Path, Path]] = field(default_factory=list)
    end: str = ""

    def __str__(self) -> str:
        media = f"{len(self.media)} pictures or tables" if self.media else ""
        return ", ".join(filter(None, (self.rows, self.results, media, self.end)))


def lacking(api: Any, record: Record) -> Lacking:
    """Ask the server what it lacks of a record.

    Raises:
        wandb.Error: the server does not answer.
        ValueError: the id was given, and W&B has another run with it.
    """
    import wandb
    from wandb.apis.public.runs import RunNotFoundError

    init, results = record.init, record.results
    api.flush()
    try:
        run = api.run(f"{init['entity'] or api.default_entity}/{init['project']}/{init['id']}")
    except wandb.errors.CommError as error:
        if not isinstance(error.exc, RunNotFoundError):
            raise
        return Lacking(rows="the run")
    if init["resume"] == "never":
        raise ValueError(f"W&B has another run of the given id {init['id']}")
    lacks = Lacking()
    last = record.rows[-1].step if record.rows else -1
    there = run.lastHistoryStep
    if there < last or run.historyLineCount < len(record.rows):
        lacks.rows = f"some of {len(record.rows)} rows up to step {last}"
        if run.summary_metrics.get("_step", -1) > there:
            # The client would resume after the summary's step.
            run.summary.update({"_step": there})
    keys = [*record.summary, *(f"tables/{name}" for name in results.tables)]
    keys += [f"figures/{name}" for name in results.figures]
    lost = [key for key in keys if key not in run.summary_metrics]
    if results.tables or results.artifacts:
        logged = [a for a in run.logged_artifacts() if a.state == "COMMITTED"]
        names = {artifact.name.partition(":")[0] for artifact in logged}
        lost += [a.name for a in results.artifacts if a.name not in names]
        n_tables = len({a.name.partition(":")[0] for a in logged if a.type == "run_table"})
        if n_tables < len(results.tables):
            lost.append(f"{len(results.tables) - n_tables} tables")
    if results.used:
        used = {artifact.qualified_name for artifact in run.used_artifacts()}
        lost += [name for name in results.used if name not in used and api.artifact_exists(name)]
    lacks.results = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    if media := record.sent_before():
        files = {file.name for file in run.files(per_page=200) if file.size}
        lacks.media = [(f, root) for f, root in media if str(f.relative_to(root)) not in files]
    if run.state in ("running", "pending") or (run.state == "finished") != (record.exit_code == 0):
        lacks.end = f"the end (its state is {run.state})"
    return lacks


def replay(tracker: Tracker, record: Record, lacks: Lacking) -> None:
    """Send what the server lacks."""
    tracker.log_settings(record.config)
    tracker.log_rows(record.rows)
    if lacks.results or lacks.rows:
        # The server may have the row of the tables and figures, but not their files; so that the
        # row is sent again, it comes after the server's last one.
        tracker.next_step = max(tracker.next_step, tracker.first_step)
        tracker.log_results(record.results)
    for file, root in lacks.media:
        tracker.attempt(partial(tracker.experiment.save, file, root, policy="now"))
    tracker.log_summary(record.summary)


def find(folders: Sequence[Path]) -> list[Record]:
    """The records of W&B runs in and below some folders; ValueError if there is none."""
    found = []
    for folder in folders:
        for at, below, _ in os.walk(folder):
            outbox = Outbox(Path(at))
            if outbox.folder.is_dir():
                found += [Record(outbox, init) for init in outbox.runs()]
                below.clear()
            below.sort()
    if not found:
        raise ValueError(f"no W&B run in {', '.join(map(str, folders))}")
    return found


def sync(records: Sequence[Record], api: Any, parallel: int, report: Report) -> None:
    """Send what the server lacks of W&B runs, `parallel` at a time.

    On Ctrl-C it reports the remaining runs as not sent, and raises KeyboardInterrupt.
    """
    import wandb

    waiting, sending = deque(records), deque[tuple[Record, Tracker]]()
    try:
        while waiting or sending:
            begins = bool(waiting) and len(sending) < parallel
            record = waiting[0] if begins else sending[0][0]
            try:
                if not begins:
                    report(record.folder, *_end(*sending[0], api))
                elif isinstance(begun := _begin(record, api), Tracker):
                    sending.append((record, begun))
                else:
                    report(record.folder, *begun)
            except (wandb.Error, OSError, ValueError) as error:
                report(record.folder, "failed", first_line(error))
            (waiting if begins else sending).popleft()
    except KeyboardInterrupt:
        for record, _ in sending:
            report(record.folder, "not sent", "it may be there in part")
        for record in waiting:
            report(record.folder, "not sent", "")
        raise


def _begin(record: Record, api: Any) -> Tracker | tuple[str, str]:
    """Begin to send what the server lacks; or return the outcome and details for `Report`."""
    with ExitStack() as until_sent:
        lock = record.outbox.lock()
        if lock is not None:
            until_sent.enter_context(lock)
        if lock is None or record.status["state"] == "running":
            return "running", "its job or another kgon sync is running"
        record.read()
        lacks = lacking(api, record)
        if not str(lacks):
            return "already there", ""
        given = record.init | {"dir": str(record.folder), "reinit": "create_new"}
        given["settings"] = SETTINGS | record.init["settings"]
        tracker = Tracker(open_online(record.outbox, given), record.outbox, lock, artifacts=True)
        record.init |= {"id": given["id"], "resume": "allow"}
        replay(tracker, record, lacks)
        until_sent.pop_all()
        return tracker


def _end(record: Record, tracker: Tracker, api: Any) -> tuple[str, str]:
    """Wait until all is sent, ask the server again, and return the outcome and details."""
    tracker.finish(record.exit_code)
    if lacks := str(lacking(api, record)):
        fault = f" ({tracker.fault})" if tracker.fault else ""
        return "failed", f"the server lacks {lacks}{fault}"
    return "sent", ""
