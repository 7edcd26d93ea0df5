"""A job is one process, whatever rank a cluster's environment gives it."""

import os
import subprocess
import sys

import pytest
from zygote import SOURCE

from kgon.record import run_directory

TINY = ("members=2", "trainer.max_steps=20", "callbacks=[losses,checkpoint]", "runs.figures=false")
SRUN = {
    "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "kgon", "SLURM_NODELIST": "localhost",
}  # fmt: skip
LOGGED = {
    "wandb": "wandb/offline-run-*/*.wandb",
    "csv": "**/metrics.csv",
    "tensorboard": "**/events.out.tfevents.*",
}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [{"RANK": "1"}, {"LOCAL_RANK": "1"}, SRUN], ids=str)
@pytest.mark.parametrize("logger", LOGGED)
def test_a_job_logs_on_any_rank(tmp_path, logger, rank):
    """Lightning reads the rank when it is imported, so each job needs an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kgon", "train", *TINY, f"logger={logger}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": SOURCE} | rank,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = run_directory.find([tmp_path / "multirun"])
    assert sum(log.stat().st_size for log in path.glob(LOGGED[logger])) > 0
