"""The training data of an ensemble: data sets and batch orders, in blocks of many steps."""

from collections.abc import Iterator, Sequence
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.direct_loss import CompiledDirectLoss
from kgon.compiled.exact_loss import CompiledLoss
from kgon.data import Distribution, FullBatches, Minibatches, draw
from kgon.theory.critical import CriticalPoint
from kgon.theory.loss import DirectLoss, EmpiricalLoss, Loss, SplitLoss

_BLOCK_BYTES = 2**26
"""Most memory for the inputs of a block; large ensembles get shorter blocks."""


class EnsembleData(L.LightningDataModule):
    """The training data of an ensemble: a data set or a stream of inputs for each member.

    Args:
        distribution: of the inputs.
        n_samples: size of each member's data set, or None for fresh inputs at every step.
        batch_size: inputs per step, or "full" for gradient descent on the whole data set. A finite
            data set is visited in epochs of floor(n_samples / batch_size) batches, in an order that
            is a function of (seed, member, epoch).
        seed: one for all members, or one for each.
        members: the members' numbers; each stream is a function of (seed, number).
        stops: steps at which a block must end, because a callback records there.
        block: the most steps in one block.
        dtype: of the inputs.
    """

    def __init__(
        self,
        distribution: Distribution,
        n_samples: int | None,
        batch_size: int | Literal["full"],
        seed: int | Sequence[int],
        members: Sequence[int],
        stops: Sequence[int],
        block: int,
        dtype: torch.dtype,
    ):
        super().__init__()
        if n_samples is not None and n_samples < 1:
            raise ValueError(f"n_samples must be at least 1 or null, got {n_samples}")
        self.full_batch = batch_size == "full"
        if batch_size == "full":
            if n_samples is None:
                raise ValueError("batch_size=full needs a data set, got n_samples=null")
            batch_size = n_samples
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, or full, got {batch_size}")
        if n_samples is not None and batch_size > n_samples:
            raise ValueError(
                f"batch_size={batch_size} is larger than the data set, n_samples={n_samples}"
            )
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.distribution = distribution
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.members = list(members)
        self.seeds = streams.each_seed(seed, len(self.members))
        self.stops = sorted(set(stops))
        self.block = block
        self.dtype = dtype
        self._train_loss: Loss | None = None
        self._expected_loss: Loss | None = None
        self.x = None if n_samples is None else self._draw("data", 0, n_samples)

    def keys(self, purpose: str) -> streams.Keys:
        """See `streams.member_keys`."""
        return streams.member_keys(self.seeds, self.members, purpose)

    def _draw(self, purpose: str, start: int, count: int) -> Tensor:
        return draw(self.distribution, self.keys(purpose), start, count).to(self.dtype)

    def expected_loss(self, importance: Tensor | None) -> Loss:
        """See `Distribution.expected_loss`."""
        if self._expected_loss is None:
            self._expected_loss = self._compiled(self.distribution.expected_loss(importance))
        return self._expected_loss

    def train_loss(self, importance: Tensor | None) -> Loss | None:
        """Each member's loss on its own data set; None if inputs are fresh at every step."""
        if self._train_loss is None and self.x is not None:
            self._train_loss = self._compiled(self.distribution.sample_loss(self.x, importance))
        return self._train_loss

    def _compiled(self, loss: Loss) -> Loss:
        """The loss in compiled code if it has such a form; an exact loss only for float64 data."""
        if isinstance(loss, DirectLoss):
            return CompiledDirectLoss(loss)
        if self.dtype != torch.float64:
            return loss
        if isinstance(loss, SplitLoss):
            return SplitLoss([(part, self._compiled(own)) for part, own in loss.losses])
        if isinstance(loss, EmpiricalLoss):
            return CompiledLoss(loss, self.distribution.n_features)
        return loss

    def critical_points(self, n_hidden: int, importance: Tensor | None) -> list[CriticalPoint]:
        """See `Distribution.critical_points`."""
        return self.distribution.critical_points(n_hidden, importance)

    def minibatches(self, start: int, end: int) -> Minibatches:
        """The inputs of steps start, ..., end - 1."""
        n_members, n_steps = len(self.members), end - start
        if self.x is None:
            x = self._draw("fresh", start * self.batch_size, n_steps * self.batch_size)
            rows = torch.arange(n_steps * self.batch_size, dtype=torch.int32)
            return Minibatches(x, rows.view(1, n_steps, -1).expand(n_members, -1, -1))
        per_epoch = self.x.shape[1] // self.batch_size
        epochs = np.arange(start // per_epoch, (end - 1) // per_epoch + 1)
        order = torch.from_numpy(streams.shuffles(self.keys("order"), epochs, self.x.shape[1]))
        order = order[..., : per_epoch * self.batch_size].reshape(n_members, -1, self.batch_size)
        offset = start - int(epochs[0]) * per_epoch
        return Minibatches(self.x, order[:, offset : offset + n_steps].contiguous())

    def blocks(self, start: int) -> Iterator[Minibatches | FullBatches]:
        """The blocks from step `start` to the last stop."""
        inputs = len(self.members) * self.batch_size
        fresh = 8 * (self.distribution.n_uniforms + 2 * self.distribution.n_features)
        a_step = inputs * (4 if self.x is not None else fresh)
        longest = max(1, min(self.block, _BLOCK_BYTES // a_step))
        for stop in self.stops:
            while start < stop:
                end = min(start + longest, stop)
                yield FullBatches(end - start) if self.full_batch else self.minibatches(start, end)
                start = end

    def train_dataloader(self) -> Iterator[Minibatches | FullBatches]:
        """The blocks from the trainer's step on."""
        assert self.trainer is not None
        return self.blocks(self.trainer.global_step)
