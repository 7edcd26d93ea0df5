"""The toy model of superposition as a LightningModule: an ensemble of members on one axis."""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from kgon import streams
from kgon.compiled import training_steps
from kgon.data import FullBatches, Minibatches
from kgon.theory.loss import DirectLoss, Loss, importance_weights
from kgon.training.history import History, numbers_of
from kgon.training.init import Init

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class TMS(L.LightningModule):
    """f(x, w) = ReLU(W^T W x + b) for every member at once, trained on E ||x - f(x, w)||^2.

    The parameters are W (n_members, n_hidden, n_features) and b (n_members, n_features). A
    `training_step` takes a block of minibatches and makes all of its optimizer steps, because a
    step costs half a microsecond a member, a framework's call hundreds of times that; Lightning's
    `global_step` counts optimizer steps all the same. Members never meet: a member's parameters
    depend on its own seed, data and start only.

    A member whose loss stops being finite has diverged: `diverged_at` keeps the first of the data's
    stops at which that is seen (-1 for the others), and training goes on without it.

    Args:
        n_features: input dimension n (the paper's c).
        n_hidden: hidden dimension m (the paper's r).
        members: numbers of the members; with `seed` they name the random streams.
        seed: of the job; in an ensemble of several jobs (`packing`) one for each member.
        init: the start.
        optimizer: makes a torch optimizer, elementwise, from parameters.
        scheduler: makes a torch LR scheduler, advanced every step, or None.
        importance: weight of each output coordinate, as of `importance_weights`; or a tensor
            (n_features,), or (n_members, n_features).
        dtype: of parameters and inputs.
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
    ):
        super().__init__()
        if n_features < 1:
            raise ValueError(f"model.n_features must be at least 1, got {n_features}")
        if n_hidden < 1:
            raise ValueError(f"model.n_hidden must be at least 1, got {n_hidden}")
        check_members_stay_apart(optimizer, scheduler)
        self.automatic_optimization = False
        self.members = list(members)
        self.seeds = [seed] * len(self.members) if isinstance(seed, int) else list(seed)
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.history = History()
        W, b = init(self.keys("init"), n_hidden, n_features)
        self.W = nn.Parameter(W.to(dtype))
        self.b = nn.Parameter(b.to(dtype))
        if not isinstance(importance, Tensor):
            importance = importance_weights(importance, n_features)
        self.importance = importance
        self.diverged_at: Tensor
        self.register_buffer("diverged_at", torch.full((len(self.members),), -1))
        self.noted: dict[str, Tensor] = {}
        self._n_loaded = self._n_sent = 0
        self.parts: list[tuple[slice, TMS]] = [(slice(0, len(self.members)), self)]
        """The jobs whose members these are, each with its place on the axis: this one alone, or
        those of a pack. What is said of an ensemble as a whole is said of each part."""
        self.clocks: list[Clock] = []
        """Where parts have learning rates of their own: one for each part."""

    def keys(self, purpose: str) -> streams.Keys:
        """The members' streams for a purpose, (n_members,)."""
        return streams.member_keys(self.seeds, self.members, purpose)

    def on_cpu(self) -> tuple[Tensor, Tensor]:
        """W and b where the data sets and the compiled losses are."""
        return self.W.detach().cpu(), self.b.detach().cpu()

    def forward(self, x: Tensor) -> Tensor:
        """ReLU(W^T W x + b) of every member, x (n_members | 1, n, n_features)."""
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
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        rates = coming_rates(optimizer, self.lr_schedulers(), batch.n_steps)
        if self.clocks:
            own = [clock.rates(self.global_step, batch.n_steps) for clock in self.clocks]
            sizes = torch.tensor([where.stop - where.start for where, _ in self.parts])
            rates = torch.stack(own).repeat_interleave(sizes, 0)
        if isinstance(batch, FullBatches):
            loss = self.trainer.datamodule.train_loss(self.importance)  # type: ignore[attr-defined]
            descend(self.W, self.b, optimizer, rates, lambda _: _OnCPU(loss))
        else:
            advance(self.W, self.b, optimizer, rates, batch, self.importance)
        self._count_steps(batch.n_steps)
        if self.global_step in self.trainer.datamodule.stops:  # type: ignore[attr-defined]
            self._note_divergence()

    def _count_steps(self, n: int) -> None:
        # Lightning counts calls of its own optimizer wrapper. Its loops, checkpoints and loggers
        # read this progress, and it is saved with them.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += n
            tracker.completed += n

    def _note_divergence(self) -> None:
        # The loss is made of these squares: it overflows before the parameters do.
        W, b = self.W.detach(), self.b.detach()
        finite = ((W.mT @ W).square().sum((1, 2)) + b.square().sum(1)).isfinite()
        fresh = ~finite & (self.diverged_at < 0)
        self.diverged_at[fresh] = self.global_step
        if not finite.any():
            self.check_alive()

    def check_alive(self) -> None:
        """FloatingPointError if all members have diverged."""
        if bool((self.diverged_at >= 0).all()):
            raise FloatingPointError(
                f"all {len(self.members)} members diverged by step {int(self.diverged_at.max())}: "
                "lower optimizer.lr or the scale of the start"
            )

    def note(self, metrics: Callable[[Tensor], dict[str, Tensor]]) -> None:
        """Collect metrics of this step for the loggers (one call, one row) and for the bar.

        `metrics` gives them, (n_jobs,) each, for jobs of equally many members whose places on the
        axis it gets, (n_jobs, n_members); NaN where a job has no such number. They are part of the
        record, and so of every checkpoint: a run that goes on gives its loggers the whole of it.
        """
        own: dict[str, Tensor] = {}
        for jobs, places in _jobs_by_size(tuple(where.stop for where, _ in self.parts)):
            for name, values in metrics(places).items():
                empty = torch.full((len(self.parts),), torch.nan, dtype=torch.float64)
                own.setdefault(name, empty)[jobs] = values.double()
        self.noted |= own
        self.history.log(self.global_step, own)

    def noted_of(self, job: int) -> dict[str, float]:
        """The last value of every metric of a job."""
        return numbers_of(self.noted, job)

    def note_picture(self, name: str, path: Path) -> None:
        """Collect a picture of this step, a file, for the loggers that show pictures."""
        self.history.log(self.global_step, pictures={name: str(path)})

    def on_train_start(self) -> None:
        self.on_train_batch_end()

    def on_train_batch_end(self, *_: Any) -> None:
        self.send(self.loggers)

    def on_fit_end(self) -> None:
        # Neither of the two above is called where a run goes on from its last step.
        self.send(self.loggers)

    def send(self, loggers: Iterable[Any]) -> None:
        """Give loggers what was noted since the last time."""
        for i in range(self._n_sent, len(self.history.logged)):
            row = self.history.logged[i]
            for logger in loggers:
                # TensorBoard's earlier files stay; those of W&B and CSV are written anew.
                if i < self._n_loaded and isinstance(logger, TensorBoardLogger):
                    continue
                logger.log_metrics(numbers_of(row["metrics"], 0), step=row["step"])
                if isinstance(logger, WandbLogger):
                    for name, path in row["pictures"].get(0, {}).items():
                        logger.log_image(name, [path], step=row["step"])
        self._n_sent = len(self.history.logged)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history.state_dict()
        checkpoint["sizes"] = [where.stop - where.start for where, _ in self.parts]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, mine in (("W", self.W), ("b", self.b)):
            saved = checkpoint["state_dict"][name]
            if saved.shape != mine.shape:
                raise ValueError(
                    f"the checkpoint's {name} has shape {tuple(saved.shape)}, this model's "
                    f"{tuple(mine.shape)}: (members, n_hidden, n_features) must be the same"
                )
        self.history.load_state_dict(checkpoint["history"])
        self._n_loaded = len(self.history.logged)


@functools.lru_cache(maxsize=1)
def _jobs_by_size(ends: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """For each number of members the jobs that have it, (n_jobs,), and their members' places,
    (n_jobs, n_members). `ends`: where each job's members end on the axis."""
    end = torch.tensor(ends)
    start = torch.tensor([0, *ends[:-1]])
    sizes = end - start
    return [
        (jobs, start[jobs][:, None] + torch.arange(size))
        for size in sizes.unique().tolist()
        for jobs in [(sizes == size).nonzero().flatten()]
    ]


def coming_rates(optimizer: torch.optim.Optimizer, scheduler: Any, n_steps: int) -> Tensor:
    """The learning rates of the next n_steps, (n_steps,) float64; it leaves the scheduler behind
    them."""
    if scheduler is None:
        rate = float(optimizer.param_groups[0]["lr"])
        return torch.full((n_steps,), rate, dtype=torch.float64)
    rates = []
    with warnings.catch_warnings():
        # The rates are read ahead of the steps that use them; torch objects to the order.
        warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
        for _ in range(n_steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


class Clock:
    """The learning rate of a job as a function of the step, without its training."""

    def __init__(self, model: "TMS"):
        self.optimizer = model.make_optimizer([nn.Parameter(torch.zeros(1))])
        make = model.make_scheduler
        self.scheduler = None if make is None else make(self.optimizer)
        self.step = 0

    def rates(self, start: int, n_steps: int) -> Tensor:
        """The learning rates of steps start, ..., start + n_steps - 1, (n_steps,); `start` may not
        lie before the end of an earlier call."""
        if self.scheduler is not None and start > self.step:
            coming_rates(self.optimizer, self.scheduler, start - self.step)
        self.step = start + n_steps
        return coming_rates(self.optimizer, self.scheduler, n_steps)


def advance(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: Tensor,
    batches: Minibatches,
    importance: Tensor | None,
) -> None:
    """Make one optimizer step of every member for each of `rates` (n_steps,), in place.

    In a compiled kernel where there is one for the optimizer and the device, else by torch.
    """
    if training_steps.has_kernel(optimizer):
        training_steps.advance(W, b, optimizer, rates, batches, importance)
    else:
        weights = None if importance is None else importance.to(W)

        def loss_at(t: int) -> Loss:
            return DirectLoss(batches.step(t), weights)

        descend(W, b, optimizer, rates, loss_at)


def descend(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: Tensor,
    loss_at: Callable[[int], Loss],
) -> None:
    """Make one optimizer step on `loss_at(t)` for each of `rates`, in place, by torch."""
    # A scheduler that has run ahead goes on from the rate where it stands.
    ahead = [group["lr"] for group in optimizer.param_groups]
    for t, rate in enumerate(rates.tolist()):
        _, W.grad, b.grad = loss_at(t).value_and_grad(W.detach(), b.detach())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, ahead, strict=True):
        group["lr"] = rate


class _OnCPU:
    """A loss whose data set is on the CPU, for parameters that may be elsewhere."""

    def __init__(self, loss: Loss):
        self.loss = loss

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        return self.loss(W.cpu(), b.cpu()).to(W)

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, dW, db = self.loss.value_and_grad(W.cpu(), b.cpu())
        return value.to(W), dW.to(W), db.to(W)


def check_members_stay_apart(
    make_optimizer: OptimizerFactory, make_scheduler: SchedulerFactory | None
) -> None:
    """Refuse what would make one member's training depend on another's.

    An optimizer is tried on three made-up members, together and one at a time; a ValueError says
    so if the results differ or if it cannot step without a closure.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, 4, dtype=torch.float64, generator=generator)
    grads = torch.randn(4, 3, 2, 4, dtype=torch.float64, generator=generator)

    def run(members: slice) -> Tensor:
        p = nn.Parameter(start[members].clone())
        optimizer = make_optimizer([p])
        for grad in grads:
            p.grad = grad[members].clone()
            optimizer.step()
        return p.detach()

    try:
        name = type(make_optimizer([nn.Parameter(start.clone())])).__name__
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer: {error}") from error
    try:
        together = run(slice(None))
        alone = torch.cat([run(slice(i, i + 1)) for i in range(3)])
    except TypeError as error:
        raise ValueError(
            f"optimizer={name} needs a closure and couples the members of an ensemble; "
            "use an elementwise optimizer such as sgd, adam or adamw"
        ) from error
    if not torch.allclose(together, alone, rtol=1e-12, atol=1e-12, equal_nan=True):
        raise ValueError(
            f"optimizer={name} couples the members of an ensemble: a member's step depends on the "
            "others'; use an elementwise optimizer such as sgd, adam or adamw"
        )
    if make_scheduler is not None:
        scheduler = make_scheduler(make_optimizer([nn.Parameter(start.clone())]))
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                "scheduler=ReduceLROnPlateau couples the members of an ensemble: one learning rate "
                "would follow the mean loss of all; use a scheduler of the step alone"
            )
