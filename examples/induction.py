"""Induction: a transformer of two attention layers learns to go on with a sequence that repeats.

Random tokens repeat with a period that differs from sequence to sequence, so that no fixed look
back tells the next token: a head must find the last time that the present token was there (Olsson
et al. 2022, arXiv 2209.11895).

python examples/induction.py
"""

import math

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from watching import fit, report

from kgon.callbacks import LLC, LossPlateaus

TOKENS, LENGTH, PERIODS = 32, 24, (4, 8)
N_WATCHED = 64
N_LOSSES = N_WATCHED * (LENGTH - 1 - PERIODS[1])  # of tokens, over which the loss is the mean
CHAINS = dict(nbeta=N_LOSSES / math.log(N_LOSSES), localization=100.0, n_chains=4, budget=400)


class Attention(nn.Module):
    """One head."""

    def __init__(self, dim):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim, False), nn.Linear(dim, dim, False)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
        return x + self.out(scores.softmax(-1) @ v)


class Transformer(L.LightningModule):
    def __init__(self, dim=32):
        super().__init__()
        self.token, self.place = nn.Embedding(TOKENS, dim), nn.Embedding(LENGTH, dim)
        self.net = nn.Sequential(Attention(dim), Attention(dim), nn.Linear(dim, TOKENS, False))
        for p in self.parameters():
            nn.init.normal_(p, 0, 0.02)

    def forward(self, tokens):
        return self.net(self.token(tokens) + self.place.weight[: tokens.shape[-1]])

    def training_step(self, batch, _):
        return loss(self, batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def loss(module, batch):
    """Of the tokens that the first period determines."""
    (tokens,) = batch
    logits = module(tokens[:, :-1])[:, PERIODS[1] :]
    return cross_entropy(logits.flatten(0, 1), tokens[:, PERIODS[1] + 1 :].flatten())


def data(n, seed):
    g = torch.Generator().manual_seed(seed)
    period = torch.randint(PERIODS[0], PERIODS[1] + 1, (n, 1), generator=g)
    first = torch.randint(TOKENS, (n, PERIODS[1]), generator=g)
    return TensorDataset(first.gather(1, torch.arange(LENGTH) % period))


def trained(steps, *callbacks):
    """The transformer after so many steps, and the sequences whose loss is watched."""
    train = data(20_000, 0)
    torch.manual_seed(0)
    module = Transformer()
    fit(module, DataLoader(train, batch_size=32, shuffle=True), steps, *callbacks)
    return module, train[:N_WATCHED]


def main(steps=1600, every=200, figure=None, **settings):
    watched, fresh = data(20_000, 0)[:N_WATCHED], data(N_WATCHED, 1)
    llc = LLC(loss, watched, every, **CHAINS | settings)
    plateaus = LossPlateaus(loss, watched, 10, tolerance=0.05, min_length=0.05, name="train")
    other = LossPlateaus(loss, fresh[:], 10, tolerance=0.05, min_length=0.05, name="test")
    trained(steps, llc, plateaus, other)
    report(figure, llc, plateaus, other)
    return llc, plateaus, other


if __name__ == "__main__":
    main(figure="induction.png")
