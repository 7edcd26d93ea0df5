"""What is recorded during training, and what loggers get of it."""

import functools

import lightning as L
import pytest
import torch

from kgon.callbacks import Checkpoints, Loggers, Losses, Phases, Plateaus, Recorder, Snapshots
from kgon.callbacks.recorder import logged_rows
from kgon.data import SingleFeature
from kgon.theory.critical import critical_point
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import train
from kgon.training.init import Normal
from kgon.training.model import TMS

SGD = functools.partial(torch.optim.SGD, lr=0.05)
STEPS = (0, 10, 20, 40, 60)


class Listener(L.pytorch.loggers.logger.Logger):
    """A logger that remembers its rows."""

    name, version = "listener", 0

    def __init__(self):
        self.rows = []

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Fault(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step >= 40:
            raise RuntimeError("a fault")


def fit(folder, *others):
    recorders = [Losses(STEPS), Snapshots((0, 60)), Phases((0, 20, 60)), Plateaus((20, 60))]
    listener = Listener()
    model = TMS(5, 2, (0, 1, 2), 0, Normal(0.7, 0.5), SGD)
    data = EnsembleData(SingleFeature(5), 40, 4, 0, (0, 1, 2), STEPS[1:], 7, torch.float64)
    trainer = L.Trainer(
        max_steps=60,
        max_epochs=1,
        callbacks=[
            *recorders,
            Loggers(recorders),
            Checkpoints(str(folder / "checkpoints"), every_seconds=1e-9),
            *others,
        ],
        logger=listener,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    try:
        train(model, data, trainer, folder)
    except RuntimeError as error:
        assert "a fault" in str(error)
    rows = [(row.step, row.metrics) for row in logged_rows(recorders, model)]
    return listener.rows, rows


def test_loggers_get_a_row_a_step_and_the_record_gives_the_same_rows_again(tmp_path):
    sent, rows = fit(tmp_path)
    assert [step for step, metrics in sent if metrics] == list(STEPS)
    assert sent == [row for row in rows if row[1]]


def test_a_resumed_run_gives_its_loggers_the_whole_record(tmp_path):
    whole, _ = fit(tmp_path / "whole")
    fit(tmp_path / "torn", Fault())
    resumed, _ = fit(tmp_path / "torn")
    assert resumed == whole
    at_the_end, _ = fit(tmp_path / "torn")  # nothing is left to train
    assert at_the_end == whole


class Shown(TMS):
    """Members at critical points."""

    def __init__(self):
        super().__init__(6, 2, (0, 1, 2), 0, Normal(0.7, 0.5), SGD)
        self.step = 0

    @property
    def global_step(self):
        return self.step

    def show(self, labels):
        points = [critical_point(label, 6) for label in labels]
        self.W.data = torch.stack([point.W for point in points])
        self.b.data = torch.stack([point.b for point in points])


def test_members_are_counted_from_a_phases_first_time_on():
    shown = (["4", "4", "4"], ["4", "5", "5"], ["5", "5", "5+"])
    model, phases = Shown(), Phases([])
    live = []
    for model.step, labels in enumerate(shown):
        model.show(labels)
        phases.record(model, None)
        live.append(phases.metrics(model, slice(-1, None)))
    assert [{k: float(v) for k, v in row.items() if not v.isnan()} for row in live] == [
        {"phase/4": 3.0},
        {"phase/4": 1.0, "phase/5": 2.0},
        {"phase/4": 0.0, "phase/5": 2.0, "phase/5+": 1.0},
    ]


@pytest.mark.parametrize("steps", [[-1], [0.5], "abc"])
def test_steps_are_whole_numbers(steps):
    with pytest.raises(ValueError, match="steps must be whole numbers >= 0"):
        Recorder(steps)
