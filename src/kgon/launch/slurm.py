"""Slurm: submitting the jobs of a sweep through submitit, and waiting until they have ended.

submitit reads the state of a job from sacct. Without an accounting database, it waits forever for a
job that died. This module uses squeue, which needs no database.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

from kgon.launch.overrides import first_line

_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "SPECIAL_EXIT", "TIMEOUT",
)  # fmt: skip
_FORGOTTEN = "COMPLETED"
"""The state of a job that squeue no longer lists, because it ended some minutes ago."""

_RESULT_SECONDS = 10.0
"""How long to wait for a result on a network file system after its job has ended."""
_RETRY_SECONDS = 60.0
"""How long to keep asking a Slurm controller that does not answer."""

_OF_AN_ALLOCATION = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
"""Prefixes of variables that Slurm and submitit set in a job."""
_OF_THE_USER = {
    "SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY",
}  # fmt: skip
"""Variables among these that only say which Slurm to use."""

_USUAL_REASONS = {
    "BeginTime", "Cleaning", "Dependency", "JobArrayTaskLimit", "None", "Priority", "Resources",
}  # fmt: skip
"""Reasons for which jobs wait on a cluster that will start them."""


class SubmissionError(Exception):
    """Slurm or submitit refuses the jobs of a sweep; the message says why."""


def submit(
    launcher: Any, params: dict[str, Any], job_overrides: Sequence[Sequence[str]], first: int
) -> list[Any]:
    """Submit jobs in arrays that are no longer than the cluster allows; return submitit's jobs.

    Args:
        launcher: the function that a job calls with its overrides.
        params: the settings of the launcher.
        first: the number of the first job.

    Raises:
        SubmissionError: a setting is wrong, there is no Slurm, or it refuses the jobs.
    """
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder, starts = params["submitit_folder"], params["max_num_timeout"]
    any_cluster = {field.name for field in fields(BaseQueueConf)}
    settings = {
        name if name in any_cluster else f"slurm_{name}": value
        for name, value in params.items()
        if name not in ("submitit_folder", "max_num_timeout")
    }
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=starts)
        executor.update_parameters(**settings)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SubmissionError(f"hydra/launcher=slurm: {first_line(error)}") from error
    arguments = [
        (list(words), "hydra.sweep.dir", first + i, f"{first + i}", Singleton.get_state())
        for i, words in enumerate(job_overrides)
    ]
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"))
    # MaxArraySize is one more than the largest index.
    most = max(int(found[1]) - 1, 1) if found else 1000
    jobs: list[Any] = []
    try:
        with _outside_allocation():
            for start in range(0, len(arguments), most):
                some = zip(*arguments[start : start + most], strict=True)
                jobs += executor.map_array(launcher, *some)
    except (FailedJobError, FailedSubmissionError) as error:
        raise SubmissionError("; ".join(str(error).strip().splitlines())) from error
    return jobs


@contextmanager
def _outside_allocation() -> Iterator[None]:
    """A context without the variables of the Slurm job in which this process runs, if any.

    sbatch would hand them to the new job, and srun there takes them for options: for instance, the
    SLURM_MEM_PER_CPU of an allocation clashes with the SLURM_MEM_PER_NODE of the new job.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if "SLURM_JOB_ID" in os.environ
        and name.startswith(_OF_AN_ALLOCATION)
        and name not in _OF_THE_USER
    }
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)


def wait(job_ids: Sequence[str], poll_seconds: float) -> None:
    """Wait until all jobs have ended and none is queued to start again.

    If jobs wait for an unusual reason, it is printed once.
    """
    told = set(_USUAL_REASONS)
    while job_ids:
        states, reasons = _listed("%T", "all"), _listed("%r", "pending")
        for reason in sorted({reasons.get(job, "None") for job in job_ids} - told):
            print(f"Slurm does not start jobs: {reason} (squeue shows which)", file=sys.stderr)
            told.add(reason)
        job_ids = [job for job in job_ids if states.get(job, _FORGOTTEN) not in _ENDED]
        if job_ids:
            time.sleep(poll_seconds)


def _listed(field: str, states: str) -> dict[str, str]:
    """A field of squeue (%T: state, %r: why it waits) for each of the user's jobs in some states,
    by id such as 12_3."""
    listing = _run(
        "squeue", "--noheader", "--array", f"--states={states}", f"--format=%i {field}",
        f"--user={os.getuid()}",
    )  # fmt: skip
    return dict(line.split(maxsplit=1) for line in listing.splitlines())


def errors_of(jobs: Sequence[Any]) -> list[str | None]:
    """The error of each job, which must have ended; None for a job with a result."""
    results = [Path(job.paths.result_pickle) for job in jobs]
    last_look = time.monotonic() + _RESULT_SECONDS
    while not all(path.exists() for path in results) and time.monotonic() < last_look:
        time.sleep(0.2)
    errors: list[str | None] = []
    for job, result in zip(jobs, results, strict=True):
        if result.exists():
            error = job.exception()
            errors.append(None if error is None else str(error).strip().splitlines()[-1])
        else:
            state = _listed("%T", "all").get(str(job.job_id), "no longer listed")
            errors.append(f"Slurm job {job.job_id} ended without a result ({state}); "
                          f"see its log: {job.paths.stderr}")  # fmt: skip
    return errors


def _run(*words: str) -> str:
    """The output of a Slurm command."""
    last_try = time.monotonic() + _RETRY_SECONDS
    while True:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if time.monotonic() > last_try:
            raise SubmissionError(f"{' '.join(words)}: {done.stderr.strip()}")
        time.sleep(2)
