"""Slurm: submitting the jobs of a sweep through submitit, and waiting until they have ended.

submitit reads the state of a job from sacct, which needs an accounting database. Without one, it
waits forever for a job that died. This module uses squeue, which needs no database.
"""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "SPECIAL_EXIT", "TIMEOUT",
)  # fmt: skip
_FORGOTTEN = "COMPLETED"
"""The state assumed for a job that squeue no longer lists, because it ended minutes ago."""

_RESULT_SECONDS = 10.0
"""How long to wait for a result on a network file system after its job has ended."""
_RETRY_SECONDS = 60.0
"""How long to keep asking a Slurm controller that does not answer."""


def submit(
    launcher: Any, params: dict[str, Any], job_overrides: Sequence[Sequence[str]], first: int
) -> list[Any]:
    """Submit jobs in arrays that are no longer than the cluster allows; return submitit's jobs.

    A job calls `launcher`, which has the settings `params`, with its overrides. `first` is the
    number of the first job.
    """
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    folder, starts = params["submitit_folder"], params["max_num_timeout"]
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=starts)
    any_cluster = {field.name for field in fields(BaseQueueConf)}
    executor.update_parameters(
        **{
            name if name in any_cluster else f"slurm_{name}": value
            for name, value in params.items()
            if name not in ("submitit_folder", "max_num_timeout")
        }
    )
    arguments = [
        (list(words), "hydra.sweep.dir", first + i, f"{first + i}", Singleton.get_state())
        for i, words in enumerate(job_overrides)
    ]
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"))
    # MaxArraySize is one more than the largest index.
    most = max(int(found[1]) - 1, 1) if found else 1000
    jobs: list[Any] = []
    for start in range(0, len(arguments), most):
        jobs += executor.map_array(launcher, *zip(*arguments[start : start + most], strict=True))
    return jobs


def wait(job_ids: Sequence[str], poll_seconds: float) -> None:
    """Wait until all jobs have ended and none is queued to start again."""
    while job_ids:
        states = _states()
        job_ids = [job for job in job_ids if states.get(job, _FORGOTTEN) not in _ENDED]
        if job_ids:
            time.sleep(poll_seconds)


def _states() -> dict[str, str]:
    """The state of each of the user's jobs that squeue lists, by id such as 12_3."""
    listing = _run(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i %T",
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
            state = _states().get(str(job.job_id), "no longer listed")
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
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        time.sleep(2)
