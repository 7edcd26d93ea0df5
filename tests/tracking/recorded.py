"""Small recorded runs, and what a server has of them."""

from pathlib import Path

from omegaconf import OmegaConf

from kgon.launch.config import CONF
from kgon.record.metrics_file import MetricsFile
from kgon.record.run_directory import RunDirectory
from kgon.tracking.logger import tracked
from kgon.tracking.opening import wandb_logger

SETTINGS = {
    **OmegaConf.to_container(OmegaConf.load(CONF / "logger" / "wandb.yaml").settings),
    # What a lost server costs a test.
    "finish_timeout": 1,
    "x_graphql_retry_wait_min_seconds": 0.1,
    "x_file_stream_retry_wait_min_seconds": 0.1,
    "x_file_transfer_retry_wait_min_seconds": 0.1,
}


def tracker(directory, mode="online", artifacts=False, **init):
    """The W&B logger of a job in this folder."""
    init = {"project": "kgon", "id": directory.name} | init
    settings = SETTINGS | init.pop("settings", {})
    return wandb_logger(str(directory), mode, settings, artifacts, **init)


def record(directory, mode="online", steps=range(3), work=None, **settings):
    """A job that logs its step as the loss at each of `steps`, then does `work(logger, job)`."""
    with RunDirectory(directory).job("train", [], {"seed": 1}) as job:
        log, recording = tracker(directory, mode, **settings), MetricsFile(directory)
        with tracked(log, {"seed": 1}):
            for step in steps:
                for one in (log, recording):
                    one.log_metrics({"loss": float(step)}, step=step)
            if work:
                work(log, job)


def loss_rows(run):
    """The steps and losses that the server has of a run."""
    return [(row["_step"], row["loss"]) for row in run.rows() if "loss" in row]


def states(lines):
    """By name of the run's folder, what `kgon sync` said of it; its last line is left out."""
    return {Path(line[14:].split(": ")[0]).name: line[:14].strip() for line in lines[:-1]}
