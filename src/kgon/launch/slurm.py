"""Slurm: submitting a sweep's jobs, and knowing when they have ended."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

_ENDED = frozenset(
    (
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "REVOKED", "SPECIAL_EXIT", "TIMEOUT",
    )
)  # fmt: skip
_WRITTEN_SECONDS = 10.0
"""How long a result may take to appear on a network file system after its job has ended."""


def submit(
    launcher: Any, params: dict[str, Any], job_overrides: Sequence[Sequence[str]], first: int
) -> list[Any]:
    """Submit `launcher` with each job's overrides; the submitit jobs, in order.

    Args:
        launcher: what a job calls, a submitit launcher of Hydra's.
        params: its settings, as of `hydra/launcher=slurm`.
        first: number of the first job.
    """
    import submitit

    folder = Path(params["submitit_folder"])
    executor = submitit.AutoExecutor(
        folder=folder, cluster="slurm", slurm_max_num_timeout=params["max_num_timeout"]
    )
    shared = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes",
              "name", "stderr_to_stdout")  # fmt: skip
    executor.update_parameters(
        **{
            key if key in shared else f"slurm_{key}": value
            for key, value in params.items()
            if key not in ("submitit_folder", "max_num_timeout")
        }
    )
    arguments = [
        (list(words), "hydra.sweep.dir", first + i, f"{first + i}", Singleton.get_state())
        for i, words in enumerate(job_overrides)
    ]
    most = longest_array()
    jobs: list[Any] = []
    for start in range(0, len(arguments), most):
        jobs += executor.map_array(launcher, *zip(*arguments[start : start + most], strict=True))
    return jobs


def longest_array() -> int:
    """The most jobs that this cluster takes as one array."""
    config = _run("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    # The size is one more than the largest index.
    return max(int(found[1]) - 1, 1) if found else 1000


def wait(job_ids: Sequence[str], poll_seconds: float) -> None:
    """Return when none of the jobs is in the queue any more, nor waits for a new start."""
    while job_ids:
        states = _states(job_ids)
        job_ids = [job for job in job_ids if states.get(job, "COMPLETED") not in _ENDED]
        if job_ids:
            time.sleep(poll_seconds)


def _states(job_ids: Sequence[str]) -> dict[str, str]:
    """The state of each job that the queue knows, by id such as 12_3."""
    arrays = sorted({job.partition("_")[0] for job in job_ids})
    listing = _run(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i %T",
        f"--user={os.getuid()}",
    )  # fmt: skip
    states = {}
    for line in listing.splitlines():
        job, _, state = line.partition(" ")
        if job.partition("_")[0] in arrays:
            states[job] = state.strip()
    return states


def errors_of(jobs: Sequence[Any]) -> list[str | None]:
    """Why each job, all having ended, gave no result; None for one that gave one."""
    patience = time.monotonic() + _WRITTEN_SECONDS
    results = [Path(job.paths.result_pickle) for job in jobs]
    while not all(path.exists() for path in results) and time.monotonic() < patience:
        time.sleep(0.2)
    return [_error_of(job) for job in jobs]


def _error_of(job: Any) -> str | None:
    if not Path(job.paths.result_pickle).exists():
        state = _states([str(job.job_id)]).get(str(job.job_id), "gone")
        return (
            f"Slurm job {job.job_id} ended without a result ({state}); its log: {job.paths.stderr}"
        )
    error = job.exception()
    return None if error is None else str(error).strip().splitlines()[-1]


def _run(*words: str) -> str:
    """What a Slurm command prints. A controller that does not answer is asked for a minute."""
    patience = time.monotonic() + 60
    while True:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if time.monotonic() > patience:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        time.sleep(2)
