"""Grokking: a network learns addition modulo 31 from half of the table, and long after it knows
this half by heart it knows the other, too (Power et al. 2022, arXiv 2201.02177).

python examples/modular_addition.py
"""

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from watching import fit, report

from kgon.callbacks import LLC, LossPlateaus

CHAINS = dict(localization=100.0, n_chains=4, budget=1000)


class Addition(L.LightningModule):
    def __init__(self, p=31, dim=24, width=96):
        super().__init__()
        self.embed = nn.Embedding(p, dim)
        self.net = nn.Sequential(nn.Linear(2 * dim, width), nn.ReLU(), nn.Linear(width, p, False))

    def forward(self, x):
        return self.net(self.embed(x).flatten(1))

    def training_step(self, batch, _):
        return loss(self, batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01, (0.9, 0.98), weight_decay=1.0)


def loss(module, batch):
    x, y = batch
    return cross_entropy(module(x), y)


def data(p=31):
    """The two halves of the table."""
    x = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    return [TensorDataset(x[half], x[half].sum(1) % p) for half in halves]


def trained(steps, *callbacks):
    """The network after so many steps, and its half of the table."""
    train, _ = data()
    torch.manual_seed(0)
    module = Addition()
    fit(module, DataLoader(train, batch_size=len(train)), steps, *callbacks)
    return module, train[:]


def main(steps=2000, every=250, figure=None, **settings):
    train, test = data()
    llc = LLC(loss, train[:], every, **CHAINS | settings)
    plateaus = LossPlateaus(loss, train[:], 10, tolerance=0.02, min_length=0.05, name="train")
    other = LossPlateaus(loss, test[:], 10, tolerance=0.3, min_length=0.05, name="test")
    trained(steps, llc, plateaus, other)
    report(figure, llc, plateaus, other)
    return llc, plateaus, other


if __name__ == "__main__":
    main(figure="modular_addition.png")
