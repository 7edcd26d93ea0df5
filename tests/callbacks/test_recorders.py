"""What is recorded during training, and what loggers get of it."""

import functools

import lightning as L
import pytest
import torch

from kgon.callbacks import Checkpoints, Loggers, Losses, Phases, Plateaus, Recorder, Snapshots
from kgon.callbacks.recorder import logged_rows
from kgon.data import SingleFeature
from kgon.theory.critical import critical_point
from kgon.theory.plateaus import find_plateaus
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
    recorders = [Losses(STEPS), Snapshots((0, 60)), Phases((0, 20, 60)), Plateaus((20, 60), 0.003)]
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


@pytest.mark.parametrize("scale", [1.0, 0.02, 6.0])
def test_plateaus_do_not_depend_on_the_scale_of_the_loss(scale):
    """Importance weights that are all equal scale every loss, and so the tolerance.

    The curve has steps of 0.01, five times the largest range of a plateau. On the smallest scale
    they are 0.0002, a tenth of that range for single-feature data.
    """
    step = torch.arange(0, 3001, 10)
    curve = 0.15 + 0.01 * (torch.tensor([0.0, -1.0, -2.0])[step.clamp(max=2999) // 1000])
    importance = None if scale == 1 else torch.full((6,), scale, dtype=torch.float64)
    model = TMS(6, 2, (0, 1), 0, Normal(0.7, 0.5), SGD, importance=importance)
    for t, loss in zip(step.tolist(), curve.double(), strict=True):
        model.history.add("loss", t, loss=scale * loss.repeat(2))
    data = EnsembleData(SingleFeature(6), 40, 4, 0, (0, 1), (3000,), 7, torch.float64)
    Plateaus((), 0.003).finish(model, data)
    assert [(p["member"], p["start"], p["end"]) for p in model.history.rows("plateaus")] == [
        (member, start, end)
        for member in (0, 1)
        for start, end in ((0, 990), (1000, 1990), (2000, 3000))
    ]


def test_the_tolerance_is_that_of_find_plateaus_on_the_papers_data():
    step = torch.arange(0, 2001, 10)
    curves = 0.1 + 0.0009 * torch.rand(len(step), 2, generator=torch.Generator().manual_seed(0))
    curves[100:] -= 0.00101 * torch.arange(2)
    model = TMS(6, 2, (0, 1), 0, Normal(0.7, 0.5), SGD)
    for t, loss in zip(step.tolist(), curves.double(), strict=True):
        model.history.add("loss", t, loss=loss)
    data = EnsembleData(SingleFeature(6), 40, 4, 0, (0, 1), (2000,), 7, torch.float64)
    Plateaus((), 0.003).finish(model, data)
    found = [(p["start"], p["end"]) for p in model.history.rows("plateaus")]
    alone = [find_plateaus(step, curve) for curve in curves.double().T]
    assert found == [(p.start, p.end) for plateaus in alone for p in plateaus]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_is_positive(tolerance):
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        Plateaus((1,), tolerance)


@pytest.mark.parametrize("steps", [[-1], [0.5], "abc"])
def test_steps_are_whole_numbers(steps):
    with pytest.raises(ValueError, match="steps must be whole numbers >= 0"):
        Recorder(steps)
