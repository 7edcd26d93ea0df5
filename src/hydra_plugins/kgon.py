"""kgon's sweeper and launchers, which Hydra finds in this namespace package.

Hydra imports this module at every start, so that heavy imports are inside functions.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins import sweeper as hydra_sweeper
from hydra_plugins.hydra_joblib_launcher import joblib_launcher
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

if TYPE_CHECKING:
    from kgon.launch.points import Point

log = logging.getLogger(__name__)


class Sweeper(BasicSweeper):
    """Hydra's own sweeper (every combination), for points that have directories of their own.

    Points that are done are not launched; the others are `pending` before the first one starts. A
    job that fails raises nothing here: its directory records that, and the command line shows it.
    """

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        from kgon.launch.points import points, waiting

        assert self.hydra_context is not None and self.config is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        words = [f"{key}={value}" for key, value in (self.params or {}).items()]
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*words, *arguments])
        (every,) = self.split_arguments(parsed, None)
        chosen = waiting(points(loader, self.config, every), self.config)
        results: list[JobReturn] = []
        size = self.max_batch_size or max(len(chosen), 1)
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            if isinstance(self.launcher, PackedLauncher):
                returned: Sequence[JobReturn] = self.launcher.launch_points(batch)
            else:
                words_of = [list(point.overrides) for point in batch]
                returned = self.launcher.launch(words_of, initial_job_idx=start)
            for point, result in zip(batch, returned, strict=False):
                if result.status == JobStatus.FAILED:
                    error = result._return_value
                    if point.directory.status()["state"] == "finished":  # without its objective
                        print(f"{point.directory.path}: {error}", file=sys.stderr)
                    point.directory.fail(point.command, point.task, error)
            results += returned
        return results


class OptunaSweeper(hydra_sweeper.Sweeper):
    """The sweeper of hydra-optuna-sweeper, which ends in a traceback if no trial succeeds."""

    def __init__(self, **settings: Any):
        from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl

        self.search = OptunaSweeperImpl(**settings)

    def setup(self, **context: Any) -> None:
        self.search.setup(**context)

    def sweep(self, arguments: list[str]) -> Any:
        from kgon.launch.command_line import refuse

        try:
            return self.search.sweep(arguments)
        except ValueError as error:
            if str(error) != "No trials are completed yet.":
                raise
            refuse("train", "no trial of the search has a result: all jobs failed")


def _failed(error: BaseException) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


class JoblibLauncher(joblib_launcher.JoblibLauncher):
    """Jobs side by side in processes of this machine, by Hydra's joblib launcher.

    A process that dies takes the pool and the other running jobs with it. Each job that was running
    is then run in a process of its own, one after the other: this finds the job that kills its
    process, and the others resume. The rest is launched again, side by side.

    If this process ends in any way, the jobs are stopped as by SIGTERM.
    """

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        from kgon.launch.jobs import PARENT
        from kgon.launch.points import points

        assert self.hydra_context is not None and self.config is not None
        os.environ[PARENT] = str(os.getpid())
        results: dict[int, JobReturn] = {}
        left = list(range(len(job_overrides)))
        while left:
            try:
                launched = super().launch([job_overrides[i] for i in left], initial_job_idx)
                results.update(zip(left, launched, strict=True))
                break
            except TerminatedWorkerError as error:
                log.warning("a process was killed: %s", str(error).splitlines()[0])
            known = points(self.hydra_context.config_loader, self.config, job_overrides)
            for i in list(left):
                state = known[i].directory.status()["state"]
                if state == "interrupted":
                    results[i] = self._alone(job_overrides[i], initial_job_idx + i)
                elif state in ("finished", "failed"):
                    done = JobStatus.COMPLETED if state == "finished" else JobStatus.FAILED
                    results[i] = JobReturn(status=done)
            left = [i for i in left if i not in results]
        return [results[i] for i in range(len(job_overrides))]

    def _alone(self, overrides: Sequence[str], idx: int) -> JobReturn:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        # joblib runs a pool of one in this process.
        n_jobs, self.joblib["n_jobs"] = self.joblib.get("n_jobs"), 2
        try:
            result: JobReturn = super().launch([overrides], idx)[0]
            return result
        except TerminatedWorkerError:
            return _failed(RuntimeError("the job's process was killed"))
        finally:
            self.joblib["n_jobs"] = n_jobs


class PackedLauncher(BasicLauncher):
    """Points of kgon train as members of one ensemble, in this process."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from kgon.launch.points import points

        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        return self.launch_points(points(loader, self.config, job_overrides))

    def launch_points(self, points: "Sequence[Point]") -> Sequence[JobReturn]:
        from kgon.launch import packed

        return packed.launch(points)


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """One Slurm job for each point, by Hydra's submitit launcher.

    Arrays are no longer than the cluster allows; a job that dies is one failed result and does not
    end the sweep; the states of jobs are those of squeue; and with `wait: false` it returns after
    the submission.
    """

    def __init__(self, wait: bool, poll_seconds: float, **params: Any):
        super().__init__(**params)
        self.wait = wait
        self.poll_seconds = poll_seconds

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """On the node: run the job, and raise its error, for Slurm and the log to know."""
        # Hydra's handler of all loggers would write submitit's lines a second time.
        logging.getLogger("submitit").propagate = False
        result: JobReturn = super().__call__(*args, **kwargs)
        if result.status == JobStatus.FAILED:
            raise result._return_value
        return result

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs and, unless `wait` is false, return their results at their ends."""
        from kgon.launch import slurm
        from kgon.launch.command_line import refuse

        assert self.config is not None
        try:
            jobs = slurm.submit(self, self.params, job_overrides, initial_job_idx)
        except slurm.SubmissionError as error:
            refuse(self.config.command, str(error))
        if not self.wait:
            print(f"{len(jobs)} jobs submitted to Slurm; kgon runs --follow shows their states")
            return []
        slurm.wait([str(job.job_id) for job in jobs], self.poll_seconds)
        return [
            _failed(RuntimeError(error)) if error else job.result()
            for job, error in zip(jobs, slurm.errors_of(jobs), strict=True)
        ]
