"""A network with one hidden layer learns scikit-learn's handwritten digits.

python examples/digits.py
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from watching import fit, report

from kgon.callbacks import LLC, LossPlateaus

CHAINS = dict(localization=100.0, n_chains=4, budget=1000)


class Network(L.LightningModule):
    def __init__(self, width=32):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return loss(self, batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def loss(module, batch):
    x, y = batch
    return cross_entropy(module(x), y)


def data():
    """1,400 digits to train on, and the other 397."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float(), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return [TensorDataset(x[some], y[some]) for some in (order[:1400], order[1400:])]


def trained(steps, *callbacks):
    """The network after so many steps, and its training data."""
    train, _ = data()
    torch.manual_seed(0)
    module = Network()
    fit(module, DataLoader(train, batch_size=64, shuffle=True), steps, *callbacks)
    return module, train[:]


def main(steps=800, every=100, figure=None, **settings):
    train, test = data()
    llc = LLC(loss, train[:], every, **CHAINS | settings)
    plateaus = LossPlateaus(loss, train[:], 10, tolerance=0.02, min_length=0.05, name="train")
    other = LossPlateaus(loss, test[:], 10, tolerance=0.02, min_length=0.05, name="test")
    trained(steps, llc, plateaus, other)
    report(figure, llc, plateaus, other)
    return llc, plateaus, other


if __name__ == "__main__":
    main(figure="digits.png")
