"""A small training job, what jobs leave, and waiting for it."""

import time

import pyarrow.parquet as pq

from kgon.record.tables import schema

JOB = (
    "members=3", "trainer.max_steps=4000", "schedule.n_losses=40", "schedule.n_snapshots=20",
    "schedule.n_llc=4", "callbacks.llc.n_draws=60", "callbacks.llc.n_burnin=10",
    "callbacks=[losses,snapshots,phases,plateaus,llc,checkpoint]", "logger=none",
    "runs.figures=false",
    "callbacks.checkpoint.every_seconds=0.05",
)  # fmt: skip
RESULTS = ("loss", "llc", "members", "plateaus", "snapshots", "transitions")


def results(path):
    """The bytes of everything that a run found."""
    files = [f"{name}.parquet" for name in RESULTS] + ["weights.safetensors"]
    return {name: (path / name).read_bytes() for name in files}


def read(path, kinds):
    """The rows of a run's tables by name; their columns do not depend on what was found."""
    for file in path.glob("*.parquet"):
        assert pq.read_schema(file) == schema(kinds[file.stem])
    return {file.stem: pq.read_table(file).to_pylist() for file in path.glob("*.parquet")}


def until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.002)
