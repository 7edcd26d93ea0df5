"""Sending to W&B what it lacks of the records in runs' folders.

Before and after sending, `wandb.Api` is asked what the server has. What it lacks is replayed from
the record through the client, into the W&B run of the same id, which the client resumes at the
server's last step. So it is always safe to call this again.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from kgon.record.metrics_file import MetricsFile, Row
from kgon.record.run_directory import RunDirectory
from kgon.tracking.account import first_line
from kgon.tracking.logger import Tracker
from kgon.tracking.outbox import Outbox, Results

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}
"""The exit code with which a W&B run ends, by the state of the job."""

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


@dataclass(frozen=True)
class Outcome:
    """The outcome for a W&B run of a folder.

    The state is `sent`, `already there`, `running` (and not touched), `failed`, or `not sent`
    (because the command was interrupted).
    """

    folder: Path
    state: str
    detail: str = ""


@dataclass(frozen=True)
class Record:
    """What the server should have of a run; `init` are the arguments of `wandb.init`."""

    outbox: Outbox
    init: dict[str, Any]
    config: dict[str, Any]
    status: dict[str, Any]
    rows: list[Row]
    results: Results

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.status["state"], EXIT_CODES["interrupted"])

    @property
    def summary(self) -> dict[str, float | str]:
        return self.status["metrics"] if self.status["state"] == "finished" else {}


@dataclass
class Lacking:
    """What the server lacks of a record.

    Attributes:
        rows: which rows, in words.
        results: which numbers of the summary, tables, figures or artifacts, in words.
        media: files of earlier attempts, each with the folder to which its name is relative.
        end: a note if the run has not ended there as it should.
    """

    rows: str = ""
    results: str = ""
    media: list[tuple[Path, Path]] = field(default_factory=list)
    end: str = ""

    def __str__(self) -> str:
        media = f"{len(self.media)} pictures or tables" if self.media else ""
        return ", ".join(filter(None, (self.rows, self.results, media, self.end)))


def read(outbox: Outbox, init: dict[str, Any]) -> Record:
    """Read the record in a run's folder.

    Raises:
        ValueError: it is damaged.
    """
    directory = outbox.directory
    try:
        config = yaml.load((directory / "config.yaml").read_text(), Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{directory / 'config.yaml'} is damaged: {first_line(error)}") from error
    return Record(
        outbox=outbox,
        init=init,
        config=config,
        status=RunDirectory(directory).status(),
        rows=MetricsFile(directory).rows(),
        results=outbox.results(),
    )


def lacking(api: Any, record: Record) -> Lacking:
    """Ask the server what it lacks of a record.

    Raises:
        wandb.Error: the server does not answer.
    """
    import wandb
    from wandb.apis.public.runs import RunNotFoundError

    path = f"{entity_of(api, record)}/{record.init['project']}/{record.init['id']}"
    api.flush()
    try:
        run = api.run(path)
    except wandb.errors.CommError as error:
        if not isinstance(error.exc, RunNotFoundError):
            raise
        return Lacking(rows="the run")
    lacks = Lacking()
    last = record.rows[-1].step if record.rows else -1
    there = run.lastHistoryStep
    if there < last or run.historyLineCount < len(record.rows):
        lacks.rows = f"some of {len(record.rows)} rows up to step {last}"
        if run.summary_metrics.get("_step", -1) > there:
            # The client resumes after the later of the two.
            run.summary.update({"_step": there})
    results = record.results
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
    lacks.results = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    if media := record.outbox.sent_before(record.init["id"]):
        files = {file.name for file in run.files(per_page=200) if file.size}
        lacks.media = [(f, root) for f, root in media if str(f.relative_to(root)) not in files]
    if run.state in ("running", "pending") or (run.state == "finished") != (record.exit_code == 0):
        lacks.end = f"the end (its state is {run.state})"
    return lacks


def entity_of(api: Any, record: Record) -> str:
    """The owner of the project of the W&B run."""
    return str(record.init["entity"] or api.default_entity)


def replay(tracker: Tracker, record: Record, lacks: Lacking) -> None:
    """Send what the server lacks."""
    tracker.log_config(record.config)
    tracker.log_rows(record.rows)
    if lacks.results or lacks.rows:
        # The server may have the row of tables and figures of an earlier attempt without the files.
        tracker.next_step = max(tracker.next_step, tracker.first_step)
        tracker.log_results(record.results)
    for file, root in lacks.media:
        tracker.attempt(partial(tracker.experiment.save, file, root, policy="now"))
    tracker.log_summary(record.summary)


# ---------------------------------------------------------------------------------------- sending


@dataclass(frozen=True)
class _Sending:
    record: Record
    tracker: Tracker


def find(folders: Sequence[Path]) -> list[tuple[Outbox, dict[str, Any]]]:
    """The W&B runs that show the run folders in and below the given ones, in order of name.

    Raises:
        ValueError: there is none.
    """
    found = []
    for folder in folders:
        for at, below, _ in os.walk(folder):
            outbox = Outbox(Path(at))
            if outbox.folder.is_dir():
                found += [(outbox, init) for init in outbox.runs()]
                below.clear()
            below.sort()
    if not found:
        raise ValueError(f"no W&B run in {', '.join(map(str, folders))}")
    return found


def sync(
    runs: Sequence[tuple[Outbox, dict[str, Any]]],
    api: Any,
    parallel: int,
    report: Callable[[Outcome], None],
) -> None:
    """Send what the server lacks of W&B runs, `parallel` at a time; report an outcome for each.

    On Ctrl-C it reports the remaining runs as not sent, and raises KeyboardInterrupt.
    """
    import wandb

    waiting, sending = deque(runs), deque[_Sending]()

    def attempt(outbox: Outbox, step: Callable[[], Outcome | _Sending]) -> None:
        try:
            done = step()
        except (wandb.Error, OSError, ValueError) as error:
            done = Outcome(outbox.directory, "failed", first_line(error))
        if isinstance(done, _Sending):
            sending.append(done)
        else:
            report(done)

    try:
        while waiting or sending:
            if waiting and len(sending) < parallel:
                outbox, init = waiting[0]
                attempt(outbox, partial(_begin, outbox, init, api))
                waiting.popleft()
            else:
                one = sending[0]
                attempt(one.record.outbox, partial(_end, one, api))
                sending.popleft()
    except KeyboardInterrupt:
        for one in sending:
            report(Outcome(one.record.outbox.directory, "not sent", "it may be there in part"))
        for outbox, _ in waiting:
            report(Outcome(outbox.directory, "not sent"))
        raise


def _begin(outbox: Outbox, init: dict[str, Any], api: Any) -> Outcome | _Sending:
    """Replay what the server lacks, unless another process is writing the run."""
    import wandb

    with ExitStack() as until_sent:
        lock = outbox.lock()
        if lock is not None:
            until_sent.enter_context(lock)
        if lock is None or RunDirectory(outbox.directory).status()["state"] == "running":
            return Outcome(outbox.directory, "running", "its job or another kgon sync is running")
        record = read(outbox, init)
        lacks = lacking(api, record)
        if not str(lacks):
            return Outcome(outbox.directory, "already there")
        given = init | {"mode": "online", "dir": str(outbox.directory), "reinit": "create_new"}
        given["settings"] = SETTINGS | init["settings"]
        tracker = Tracker(wandb.init(**given), outbox, lock, artifacts=True)
        replay(tracker, record, lacks)
        until_sent.pop_all()
        return _Sending(record, tracker)


def _end(sending: _Sending, api: Any) -> Outcome:
    """Wait until everything is sent, then ask the server whether it has everything."""
    sending.tracker.finish(sending.record.exit_code)
    directory = sending.record.outbox.directory
    lacks = str(lacking(api, sending.record))
    if lacks:
        fault = f" ({sending.tracker.fault})" if sending.tracker.fault else ""
        return Outcome(directory, "failed", f"the server lacks {lacks}{fault}")
    return Outcome(directory, "sent")
