"""Learning coefficients and plateaus during the training of any LightningModule."""

import csv
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from test_recorders import Listener
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from kgon.callbacks import LLC, LossPlateaus
from kgon.llc.modules import estimate_module_llc
from kgon.llc.verdict import VERDICTS
from kgon.streams import member_keys
from kgon.theory.plateaus import find_plateaus

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

CHAINS = dict(n_chains=2, n_draws=6, n_burnin=2, nbeta=30.0, localization=20.0)


def loss(module, batch):
    x, y = batch
    return cross_entropy(module(x), y)


def data(n=48):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


class Net(L.LightningModule):
    """Not kgon's."""

    def __init__(self, *layers, lr=0.05):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *layers, nn.Linear(6, 2))
        self.lr = lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return loss(self, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def fit(module, *callbacks, loggers=False, max_steps=12, ckpt_path=None, **options):
    torch.manual_seed(1)
    loader = DataLoader(data(), batch_size=16, shuffle=True)
    trainer = L.Trainer(
        max_steps=max_steps, callbacks=list(callbacks), logger=loggers, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
        **{"enable_checkpointing": False} | options,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def net(*layers):
    torch.manual_seed(0)
    return Net(*layers)


def test_watching_does_not_change_training():
    layers = nn.BatchNorm1d(6), nn.Dropout(0.3)
    alone, watched = net(*layers), net(nn.BatchNorm1d(6), nn.Dropout(0.3))
    fit(alone)
    loader = DataLoader(data(), batch_size=16, shuffle=True)
    llc = LLC(loss, loader, every=5, eval_mode=True, **CHAINS)
    plateaus = LossPlateaus(loss, loader, every=2, eval_mode=True, tolerance=0.1)
    fit(watched, llc, plateaus)
    assert [row["step"] for row in llc.rows] == [0, 5, 10]
    assert [row["step"] for row in plateaus.rows] == [0, 2, 4, 6, 8, 10, 12]
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert watched.net[3].training and watched.net[2].training


def test_a_row_is_the_estimate_at_the_parameters_of_its_step():
    module, batch = net(), data()[:]
    llc = LLC(loss, batch, every=12, **CHAINS, seed=3)
    fit(module, llc)
    keys = member_keys(3, [0], "llc 12").reshape(())
    expected = estimate_module_llc(module, batch, loss, seed=keys, **CHAINS)
    row = llc.rows[-1]
    assert row["mean"] == float(expected.mean) and row["stderr"] == float(expected.stderr)
    assert row["verdict"] == expected.verdicts and row["reason"] == expected.reasons
    assert row["loss"] == pytest.approx(float(loss(module, batch).detach()))


def test_every_logger_gets_the_rows_at_optimizer_steps(tmp_path):
    listener, table = Listener(), CSVLogger(tmp_path)
    llc = LLC(loss, data()[:], every=4, **CHAINS)
    plateaus = LossPlateaus(loss, data()[:], every=6, tolerance=0.1)
    # Two batches make one step.
    fit(net(), llc, plateaus, loggers=[listener, table], accumulate_grad_batches=2)
    rows = {step: row for step, row in listener.rows if "llc/mean" in row}
    assert list(rows) == [0, 4, 8, 12]
    for row in llc.rows:
        assert rows[row["step"]] == {
            "llc/mean": row["mean"],
            "llc/stderr": row["stderr"],
            "llc/verdict": VERDICTS.index(row["verdict"]),
        }
    losses = [(step, row["plateaus/loss"]) for step, row in listener.rows if "plateaus/loss" in row]
    assert losses == [(row["step"], row["loss"]) for row in plateaus.rows]
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        written = {int(r["step"]): r["llc/mean"] for r in csv.DictReader(file) if r["llc/mean"]}
    assert {step: float(mean) for step, mean in written.items()} == {
        row["step"]: pytest.approx(row["mean"]) for row in llc.rows
    }


def test_several_optimizer_steps_a_batch_are_several_steps():
    class Twice(Net):
        automatic_optimization = False

        def training_step(self, batch, _):
            for _ in range(2):
                self.optimizers().zero_grad()
                self.manual_backward(loss(self, batch))
                self.optimizers().step()

    plateaus = LossPlateaus(loss, data()[:], every=3, tolerance=0.1)
    fit(Twice(), plateaus)
    assert [row["step"] for row in plateaus.rows] == [0, 4, 6, 10, 12]


def test_a_resumed_run_goes_on_with_its_rows(tmp_path):
    whole = LossPlateaus(loss, data()[:], every=3, tolerance=0.1)
    fit(net(), whole, max_steps=12)
    first = LossPlateaus(loss, data()[:], every=3, tolerance=0.1)
    trainer = fit(net(), first, max_steps=6)
    trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    second = LossPlateaus(loss, data()[:], every=3, tolerance=0.1)
    fit(
        net(),
        second,
        max_steps=12,
        ckpt_path=tmp_path / "half.ckpt",
    )
    assert [row["step"] for row in second.rows] == [0, 3, 6, 9, 12]
    assert second.rows[:3] == whole.rows[:3]


def test_two_of_a_kind_have_names_in_loggers_and_checkpoints(tmp_path):
    listener = Listener()
    train, test = (
        LossPlateaus(loss, data(n)[:], every=6, tolerance=0.1, name=name)
        for n, name in ((48, "train"), (24, "test"))
    )
    trainer = fit(net(), train, test, loggers=[listener])
    assert train.rows != test.rows
    for each in (train, test):
        logged = [
            row[f"{each.name}/loss"] for _, row in listener.rows if f"{each.name}/loss" in row
        ]
        assert logged == [row["loss"] for row in each.rows]
    trainer.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    states = torch.load(tmp_path / "end.ckpt", weights_only=False)["callbacks"]
    assert states[train.state_key]["rows"] == train.rows
    assert states[test.state_key]["rows"] == test.rows


def test_training_that_diverges_is_recorded_and_goes_on():
    watch = LLC(loss, data()[:], every=6, **CHAINS)
    module = net()
    module.lr = 1e30
    trainer = fit(module, watch)
    assert trainer.global_step == 12
    assert [row["verdict"] for row in watch.rows][1:] == ["diverged"] * 2
    assert math.isnan(watch.rows[-1]["mean"]) and "training" in watch.rows[-1]["reason"]


def test_plateaus_are_those_of_the_recorded_loss():
    plateaus = LossPlateaus(loss, data()[:], every=1, tolerance=0.02, min_length=0.1)
    assert plateaus.plateaus == []
    module = net()
    module.lr = 1e-6  # hardly moves: one plateau
    fit(module, plateaus)
    (only,) = plateaus.plateaus
    assert (only.start, only.end) == (0, 12)
    step = torch.tensor([row["step"] for row in plateaus.rows])
    curve = torch.tensor([row["loss"] for row in plateaus.rows]).double()
    assert plateaus.plateaus == find_plateaus(step, curve, tolerance=0.02, min_length=0.1)
    assert math.isclose(only.loss, float(curve.mean()), rel_tol=1e-3)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: LLC(loss, data()[:], every=0), "every must be a whole number >= 1, got 0"),
        (lambda: LLC(loss, data()[:], every=1.5), "every must be a whole number >= 1, got 1.5"),
        (lambda: LLC(None, data()[:], every=1), "loss must be a function of .*, got None"),
        (lambda: LLC(loss, data()[:], every=1, nbeta=-1.0), "nbeta must be positive, got -1.0"),
        (lambda: LLC(loss, data()[:], every=1, n_chain=3), "no setting 'n_chain'; .* n_chains"),
        (lambda: LossPlateaus(loss, data()[:], every=1, tolerance=0.0), "tolerance must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(callback, message):
    with pytest.raises(ValueError, match=message):
        callback()


@pytest.mark.parametrize("watch", [lambda **k: LLC(**k, **CHAINS),
                                   lambda **k: LossPlateaus(**k, tolerance=0.1)])  # fmt: skip
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (net, {"every": 13}, "every=13 is larger than the run, which makes 12 optimizer steps"),
        (
            lambda: net(nn.Dropout(0.3)),
            {},
            r"net.2 \(Dropout\) is in training mode.*eval_mode=True",
        ),
        (lambda: net(nn.BatchNorm1d(6)), {}, r"net.2 \(BatchNorm1d\) is in training mode"),
        (lambda: net(nn.Linear(6, 6).double()), {}, "must have one dtype, got torch.float32"),
        (net, {"loss": lambda m, b: loss(m, b) + torch.rand(())}, "loss differs from call to call"),
        (net, {"loss": lambda m, b: m(b[0])}, r"must return a scalar tensor, .* got \(48, 2\)"),
        (net, {"loss": lambda m, b: 0.5}, "must return a scalar tensor, .* got float"),
        (net, {"data": DataLoader(data(0))}, "this DataLoader is empty"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_the_first_step(watch, module, options, message):
    module = module()
    before = module.net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        fit(module, watch(**{"loss": loss, "data": data()[:], "every": 3} | options))
    assert torch.equal(module.net[0].weight, before)
