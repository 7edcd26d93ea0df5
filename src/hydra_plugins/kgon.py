"""What Hydra finds by itself: kgon's sweeper and launchers.

Hydra takes plugins from this namespace only, and imports the module at every start: whatever is
heavy is imported where it is used.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_joblib_launcher import joblib_launcher
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

if TYPE_CHECKING:
    from kgon.launch.points import Point

log = logging.getLogger(__name__)


class Sweeper(BasicSweeper):
    """Hydra's own sweeper (every combination), for points that live in directories of their own.

    Points that are finished, or failed and are not to be tried again, are not launched; the others
    say `pending` before the first one starts. A job that fails does not raise here: the points'
    directories say what failed, and the command line shows it.
    """

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Launch what is not done yet of every combination of `arguments`."""
        from kgon.launch.points import announce, points, waiting

        assert self.hydra_context is not None and self.config is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        words = [f"{key}={value}" for key, value in (self.params or {}).items()]
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*words, *arguments])
        (every,) = self.split_arguments(parsed, None)
        known = points(loader, self.config, every)
        announce(known, self.config)
        chosen = waiting(known, self.config)
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
                _record(point, result)
            results += returned
        return results


def _record(point: "Point", result: JobReturn) -> None:
    """Make sure that the directory of a job that failed says so."""
    failed = result.status == JobStatus.FAILED
    if failed and point.directory.status()["state"] not in ("failed", "finished"):
        error = result._return_value
        point.directory.fail(point.command, point.task, f"{type(error).__name__}: {error}")


def _failed(error: BaseException) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


class JoblibLauncher(joblib_launcher.JoblibLauncher):
    """Jobs side by side in processes of this machine, by Hydra's joblib launcher.

    A process that dies takes its pool and the jobs beside it along. Those that were at work then
    get a process of their own, one after the other, so that the one which kills its process is
    found and the others go on from their checkpoints; the rest is launched again, side by side.
    """

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; one that dies is a failed one."""
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        from kgon.launch.points import points

        assert self.hydra_context is not None and self.config is not None
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
                    left.remove(i)
                elif state in ("finished", "failed"):
                    done = JobStatus.COMPLETED if state == "finished" else JobStatus.FAILED
                    results[i] = JobReturn(status=done)
                    left.remove(i)
        return [results[i] for i in range(len(job_overrides))]

    def _alone(self, overrides: Sequence[str], idx: int) -> JobReturn:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            # A pool of one would run the job in this process.
            n_jobs, self.joblib["n_jobs"] = self.joblib.get("n_jobs"), 2
            return super().launch([overrides], idx)[0]
        except TerminatedWorkerError:
            return _failed(RuntimeError("the job's process was killed"))
        finally:
            self.joblib["n_jobs"] = n_jobs


class PackedLauncher(BasicLauncher):
    """Points of kgon train that a tensor axis can carry, as one ensemble in this process."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs with these overrides."""
        from kgon.launch.points import points

        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        return self.launch_points(points(loader, self.config, job_overrides))

    def launch_points(self, points: "Sequence[Point]") -> Sequence[JobReturn]:
        """Run the jobs of these points."""
        from kgon.launch import packed

        return packed.launch(points)


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """One Slurm job a point, by submitit's launcher.

    Differs from it in what a sweep of many points needs: arrays no longer than the cluster takes;
    a job that died is one failed result, not the end of the sweep; whether a job has ended is asked
    of squeue, which works without an accounting database; and `wait: false` hands the sweep over
    and returns.
    """

    def __init__(self, wait: bool, poll_seconds: float, **params: Any):
        super().__init__(**params)
        self.wait = wait
        self.poll_seconds = poll_seconds

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """On the node: run the job; what it raises is Slurm's to know, and stands in its log."""
        # Hydra's handler of all loggers would write its lines again.
        logging.getLogger("submitit").propagate = False
        result = super().__call__(*args, **kwargs)
        if result.status == JobStatus.FAILED:
            raise result._return_value
        return result

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs; wait for their ends and collect their results, if so configured."""
        from kgon.launch import slurm

        jobs = slurm.submit(self, self.params, job_overrides, initial_job_idx)
        if not self.wait:
            print(f"{len(jobs)} jobs handed to Slurm; kgon runs --follow shows how they stand")
            return []
        slurm.wait([str(job.job_id) for job in jobs], self.poll_seconds)
        return [
            _failed(RuntimeError(error)) if error else job.result()
            for job, error in zip(jobs, slurm.errors_of(jobs), strict=True)
        ]
