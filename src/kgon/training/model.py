"""The toy model of superposition as a LightningModule: an ensemble of members on one axis."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from kgon import streams
from kgon.data import FullBatches, Minibatches
from kgon.theory.loss import importance_weights
from kgon.training import checkpoints
from kgon.training.history import History
from kgon.training.init import Init
from kgon.training.steps import (
    OptimizerFactory,
    SchedulerFactory,
    check_members_are_independent,
    minibatch_steps,
    next_settings,
    torch_steps,
)

_STEPS_MADE = "epoch_loop.manual_optimization.optim_step_progress"
"""Where a checkpoint has the number of optimizer steps, among the counts of Lightning's loops."""


class TMS(L.LightningModule):
    """f(x, w) = ReLU(W^T W x + b) for every member at once, trained on E ||x - f(x, w)||^2.

    The parameters are W (n_members, n_hidden, n_features) and b (n_members, n_features). One
    `training_step` takes a block of minibatches and makes all of its optimizer steps, because a
    member's step takes half a microsecond and a call through Lightning hundreds of times that.
    Lightning's `global_step` still counts optimizer steps.

    A member has diverged when its loss is not finite. `diverged_at` is the first stop of the data
    module at which this was observed, -1 for other members, which go on training. `resumed_at` is
    the step of the checkpoint that a resumed run started from.

    Args:
        n_features: input dimension n (the paper's c).
        n_hidden: hidden dimension m (the paper's r).
        members: the members' numbers, which name the random streams together with `seed`.
        seed: one for all members, or one for each.
        init: makes the initial parameters.
        optimizer: makes a torch optimizer, which must be elementwise, from parameters.
        scheduler: makes a torch LR scheduler, which advances at every step, or None.
        importance: weight of each output coordinate: an argument of `importance_weights`, or a
            tensor (n_features,) or (n_members, n_features).
        dtype: of parameters and inputs.
        learning_rates: (first step, n_steps) -> (n_members, n_steps), if the members' rates differ;
            for minibatches and optimizers with a compiled loop (`training_steps.has_kernel`).

    Raises:
        ValueError: a size is below 1, or the optimizer or scheduler couples members.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        members: Sequence[int],
        seed: int | Sequence[int],
        init: Init,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        importance: Tensor | float | Sequence[float] | None = None,
        dtype: torch.dtype = torch.float64,
        learning_rates: Callable[[int, int], Tensor] | None = None,
    ):
        super().__init__()
        for name, size in {"n_features": n_features, "n_hidden": n_hidden}.items():
            if size < 1:
                raise ValueError(f"model.{name} must be at least 1, got {size}")
        check_members_are_independent(optimizer, scheduler)
        self.automatic_optimization = False
        self.members = list(members)
        self.seeds = streams.each_seed(seed, len(self.members))
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.learning_rates = learning_rates
        start = init(self.keys("init"), n_hidden, n_features)
        shapes = [(len(self.members), n_hidden, n_features), (len(self.members), n_features)]
        pair = start if isinstance(start, tuple | list) else [start]
        got = [tuple(p.shape) if isinstance(p, Tensor) else p for p in pair]
        if got != shapes:
            raise ValueError(f"init must return tensors W, b of shapes {shapes}, got {got}")
        W, b = start
        self.W = nn.Parameter(W.to(dtype))
        self.b = nn.Parameter(b.to(dtype))
        if not isinstance(importance, Tensor):
            importance = importance_weights(importance, n_features)
        self.importance = importance
        self.diverged_at: Tensor
        self.register_buffer("diverged_at", torch.full((len(self.members),), -1))
        self.history = History()
        self.metrics: dict[str, float] = {}
        self.resumed_at: int | None = None

    def keys(self, purpose: str) -> streams.Keys:
        """See `streams.member_keys`."""
        return streams.member_keys(self.seeds, self.members, purpose)

    def on_cpu(self) -> tuple[Tensor, Tensor]:
        """W and b on the CPU, where data sets and compiled losses are."""
        return self.W.detach().cpu(), self.b.detach().cpu()

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of every member on x (n_members | 1, n, n_features)."""
        return (x @ self.W.mT @ self.W + self.b.unsqueeze(-2)).relu()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer([self.W, self.b])
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def training_step(self, batch: Minibatches | FullBatches) -> None:
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert scheduler is None or isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        rates, settings = next_settings(optimizer, scheduler, batch.n_steps)
        if self.learning_rates is not None:
            if settings is not None:
                raise ValueError("learning_rates needs a scheduler that changes the rate alone")
            rates = self.learning_rates(self.global_step, batch.n_steps)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(batch, FullBatches):
            # On the CPU, where the data sets are.
            def gradients(_: int) -> tuple[Tensor, Tensor]:
                _, dW, db = data.train_loss(self.importance).value_and_grad(*self.on_cpu())
                return dW.to(self.W), db.to(self.b)

            torch_steps(self.W, self.b, optimizer, rates, gradients, settings)
        else:
            minibatch_steps(self.W, self.b, optimizer, rates, batch, self.importance, settings)
        self._count_steps(batch.n_steps)
        if self.global_step in data.stops:
            self._mark_diverged()

    def _count_steps(self, n: int) -> None:
        # Lightning counts calls of its own optimizer wrapper. Its loops, checkpoints and loggers
        # read this progress, and it is saved with them.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += n
            tracker.completed += n
        self._set_log_step()

    def on_train_start(self) -> None:
        self._set_log_step()

    def _set_log_step(self) -> None:
        # Values that callbacks log by `self.log` and Lightning's monitors get this step; by itself
        # Lightning would count blocks.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def _mark_diverged(self) -> None:
        # The loss is a sum of these squares, so it overflows before the parameters do.
        W, b = self.W.detach(), self.b.detach()
        finite = ((W.mT @ W).square().sum((1, 2)) + b.square().sum(1)).isfinite()
        fresh = ~finite & (self.diverged_at < 0)
        self.diverged_at[fresh] = self.global_step
        self.check_alive()

    def check_alive(self) -> None:
        """FloatingPointError if all members have diverged."""
        if bool((self.diverged_at >= 0).all()):
            raise FloatingPointError(
                f"all {len(self.members)} members diverged by step {int(self.diverged_at.max())}: "
                "lower optimizer.lr or the scale of the start"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["writer"] = checkpoints.WRITER
        checkpoint["history"] = self.history.state_dict()
        # A resumed run counts epochs, blocks and time anew. Otherwise a limit on one of them that
        # ended training would end it again at once.
        fit_loop = checkpoint["loops"]["fit_loop"]
        checkpoint["loops"]["fit_loop"] = {k: v for k, v in fit_loop.items() if k == _STEPS_MADE}
        checkpoint.get("callbacks", {}).pop(Timer().state_key, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.check_writer(checkpoint)
        self.history = History(checkpoint["history"])
        self.resumed_at = checkpoint["global_step"]
