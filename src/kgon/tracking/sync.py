"""Sending what is recorded offline, and what an online run could not send, to W&B.

`wandb sync` sends, and this looks before and after, because by itself it calls a run "finished"
when uploads were refused, and sends all rows a second time when it was interrupted (0.31):

- before, rows that the server has are left out of what is sent;
- after, the server is asked whether it has the rows, the files and the artifacts.

So to call it again, after whatever happened, is always right.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from kgon.tracking import files as wandb_files
from kgon.tracking.account import TIMEOUT, OnServer, Server, ServerError
from kgon.tracking.files import Fragment

_RETRIES = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": f"{TIMEOUT:g}",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "5",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": f"{TIMEOUT:g}",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "5",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "5",
}
"""The client's own patience is hours; one who waits at a terminal tries again instead."""

QUIET = 3.0
"""Seconds without a row after which a record that has no end is that of a killed job. The client's
process outlives its job by a moment."""

RESEND = "resend.wandb"
"""What is sent instead of a fragment of which the server has a part."""


# ------------------------------------------------------------------------------------- fragments


@dataclass(frozen=True)
class Outcome:
    """What became of a fragment: sent, already there, running (not sent now), empty, failed, or
    not sent (interrupted before its end)."""

    folder: Path
    state: str
    detail: str = ""


class _Wanted(NamedTuple):
    """What the server should have of a fragment."""

    entity: str
    project: str
    run_id: str
    last_step: int
    files: list[str]
    artifacts: set[str]


def find(folders: Sequence[Path]) -> list[Path]:
    """The folders `wandb` in and below the given ones, in order of name.

    Raises:
        ValueError: there is none.
    """
    found = []
    for folder in folders:
        for at, below, _ in os.walk(folder):
            if Path(at).name == "wandb":
                found.append(Path(at))
                below.clear()
            below.sort()
    if not found:
        raise ValueError(f"no W&B run in {', '.join(map(str, folders))}")
    return list(dict.fromkeys(found))


def sync(
    folders: Sequence[Path],
    server: Server,
    parallel: int,
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Send what the folders `wandb` hold, `parallel` runs side by side; an outcome a fragment.

    The fragments of one run go one after another, the next only when the one before is there.
    Interrupted by Ctrl-C it says of the rest that it was not sent, and the exception goes on.
    """
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        report(outcome)

    waiting, locks = [], []
    for folder in folders:
        held = wandb_files.lock(folder)
        unsent = []
        for fragment in wandb_files.fragments(folder):
            if outcome := _at_once(fragment, held is not None):
                done(outcome)
            else:
                unsent.append(fragment)
        waiting.append(unsent)
        locks.append(held)
    chosen = [fragment for unsent in waiting for fragment in unsent]
    try:
        while any(waiting):
            # At most one fragment of each run at a time, and not all runs, to report as it goes.
            some = [unsent for unsent in waiting if unsent][: 4 * parallel]
            now = [unsent.pop(0) for unsent in some]
            failed = _send(now, server, parallel, done)
            for unsent in waiting:
                if unsent and unsent[0].file.parents[1] in failed:
                    for fragment in unsent:
                        done(Outcome(fragment.file.parent, "failed", "what comes before it failed"))
                    unsent.clear()
    except KeyboardInterrupt:
        known = {outcome.folder for outcome in outcomes}
        for fragment in chosen:
            if fragment.file.parent not in known:
                begun = "some of it may be there" if fragment.begun else ""
                done(Outcome(fragment.file.parent, "not sent", begun))
        raise
    finally:
        for held in locks:
            if held is not None:
                held.close()
    return outcomes


def _at_once(fragment: Fragment, held: bool) -> Outcome | None:
    """What becomes of a fragment that is not to be sent now; None for others."""
    folder = fragment.file.parent
    try:
        if fragment.sent:
            return Outcome(folder, "already there")
        if not held:
            return Outcome(folder, "running", "its job, or another sync, is at it")
        if fragment.quiet < QUIET:
            return Outcome(folder, "running", "written to a moment ago")
        if fragment.empty:
            return Outcome(folder, "empty", "its job was killed before it recorded anything")
    except ValueError as error:
        return Outcome(folder, "failed", str(error))
    return None


def _send(
    fragments: Sequence[Fragment],
    server: Server,
    parallel: int,
    done: Callable[[Outcome], None],
) -> set[Path]:
    """Send fragments of different runs; the folders of those that failed."""
    failed: set[Path] = set()

    def conclude(fragment: Fragment, state: str, detail: str = "") -> None:
        if state == "failed":
            fragment.marker.unlink(missing_ok=True)
            failed.add(fragment.file.parents[1])
        else:
            fragment.confirmed.touch()
            fragment.marker.touch()
        done(Outcome(fragment.file.parent, state, detail))

    def prepare(fragment: Fragment) -> tuple[_Wanted, Path | None] | str:
        """What the server should have in the end, and the file to send (None: it has it)."""
        try:
            records = list(wandb_files.read(fragment.file))
            want = _wanted(fragment, records)
            there = server.run(want.entity, want.project, want.run_id)
            if fragment.begun and not _missing(server, want, there):
                return want, None
            fragment.marker.unlink(missing_ok=True)  # the client would pass it over
            return want, _prepared(fragment, records, there.last_step)
        except (ServerError, ValueError) as error:
            return str(error)

    def check(sent: tuple[_Wanted, Path]) -> str:
        """What is missing after it was sent."""
        want, path = sent
        try:
            missing = _missing(server, want, server.run(want.entity, want.project, want.run_id))
        except (ServerError, ValueError) as error:
            return str(error)
        finished = path.with_suffix(".wandb.synced").exists()
        return missing or ("" if finished else "wandb sync did not come to its end")

    threads = ThreadPoolExecutor(parallel)
    try:
        sending: dict[Fragment, tuple[_Wanted, Path]] = {}
        for fragment, prepared in zip(fragments, threads.map(prepare, fragments), strict=True):
            if isinstance(prepared, str):
                conclude(fragment, "failed", prepared)
            elif prepared[1] is None:
                conclude(fragment, "already there")
            else:
                sending[fragment] = (prepared[0], prepared[1])
        said = _wandb_sync([path for _, path in sending.values()], parallel)
        for fragment, missing in zip(sending, threads.map(check, sending.values()), strict=True):
            if missing:
                complaints = _complaints(said, sending[fragment][0].run_id)
                conclude(fragment, "failed", "; ".join([missing, *complaints]))
            else:
                conclude(fragment, "sent")
            _remove_resend(fragment)
    finally:
        # Interrupted, it waits for no answer.
        threads.shutdown(wait=False, cancel_futures=True)
    return failed


def _wanted(fragment: Fragment, records: Sequence[Any]) -> _Wanted:
    run = next(record.run for record in records if record.HasField("run"))
    files = [
        item.path for record in records if record.HasField("files") for item in record.files.files
    ]
    present = [name for name in files if (fragment.file.parent / "files" / name).is_file()]
    return _Wanted(
        entity=run.entity,
        project=run.project,
        run_id=run.run_id,
        last_step=wandb_files.last_step(records),
        files=list(dict.fromkeys(present)),
        artifacts={_artifact(r).digest for r in records if _artifact(r) is not None},
    )


def _artifact(record: Any) -> Any:
    """The artifact that a record logs, or None."""
    if record.HasField("artifact"):
        return record.artifact
    if record.HasField("request") and record.request.HasField("log_artifact"):
        return record.request.log_artifact.artifact
    return None


def _missing(server: Server, want: _Wanted, there: OnServer) -> str:
    """What of a fragment the server has not got, in words; empty if nothing."""
    if there.last_step < want.last_step:
        return f"the server has rows up to step {there.last_step} of {want.last_step}"
    where = (want.entity, want.project, want.run_id)
    # A server that does not know these questions cannot be held against its answers.
    with suppress(ValueError):
        if lost := set(want.files) - server.files(*where, want.files):
            return f"the server lacks {len(lost)} files, {min(lost)} among them"
    with suppress(ValueError):
        if want.artifacts and (lost := want.artifacts - server.artifacts(*where)):
            return f"the server lacks {len(lost)} artifacts or tables"
    return ""


def _prepared(fragment: Fragment, records: Sequence[Any], last_step: int) -> Path:
    """What is to be sent: the fragment's own file, or a copy without the rows that are there and
    with the staged files where they are now, if the folder has been moved."""
    _remove_resend(fragment)
    kept = [r for r in records if not (r.HasField("history") and r.history.step.num <= last_step)]
    moved = False
    for record in kept:
        artifact = _artifact(record)
        for entry in artifact.manifest.contents if artifact is not None else ():
            here = _staged(fragment, entry.local_path)
            if here is not None:
                entry.local_path, moved = str(here), True
    if len(kept) == len(records) and not moved:
        return fragment.file
    path = fragment.file.with_name(RESEND)
    wandb_files.write(path, fragment.file, kept)
    return path


def _staged(fragment: Fragment, recorded: str) -> Path | None:
    """Where a staged file is now; None if it is where it was, or nowhere."""
    if not recorded or Path(recorded).exists():
        return None
    _, _, inside = recorded.rpartition(f"/wandb/{wandb_files.STAGING}/")
    here = fragment.file.absolute().parents[1] / wandb_files.STAGING / inside
    return here if inside and here.exists() else None


def _remove_resend(fragment: Fragment) -> None:
    for file in fragment.file.parent.glob(f"{RESEND}*"):
        file.unlink()


def _wandb_sync(paths: Sequence[Path], parallel: int) -> str:
    """Run `wandb sync`; what it said. Its exit status says nothing."""
    if not paths:
        return ""
    # Not in the process that serves the runs of this one, if there are any.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    with TemporaryDirectory() as elsewhere:  # it leaves a log where it is started
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--include-online", "-n", str(parallel)]
            + [str(path.absolute()) for path in paths],
            cwd=elsewhere,
            env={**_RETRIES, **environment, "WANDB_SILENT": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return done.stdout


def _complaints(said: str, run_id: str) -> list[str]:
    """The errors that `wandb sync` printed about a run."""
    return [
        line.partition("ERROR")[2].strip()
        for line in said.splitlines()
        if "ERROR" in line and run_id in line
    ]
