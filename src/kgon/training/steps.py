"""Optimizer steps of an ensemble, their learning rates, and a check of members' independence."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kgon.compiled import training_steps
from kgon.data import Minibatches
from kgon.theory.loss import DirectLoss

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def next_learning_rates(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    n_steps: int,
) -> Tensor:
    """Advance the scheduler by n_steps; return the learning rates of these steps, (n_steps,)."""
    rates = []
    with warnings.catch_warnings():
        # torch warns because the scheduler runs ahead of the optimizer.
        warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
        for _ in range(n_steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            if scheduler is not None:
                scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def minibatch_steps(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: Tensor,
    batches: Minibatches,
    importance: Tensor | None,
) -> None:
    """Make one optimizer step of every member on each minibatch, in place.

    They run in a compiled loop if there is one for the optimizer and the device, else in torch.
    `rates` are learning rates, (n_steps,) or (n_members, n_steps); the rest is as in `TMS`.
    """
    if training_steps.has_kernel(optimizer):
        training_steps.advance(W, b, optimizer, rates, batches, importance)
    else:
        weights = None if importance is None else importance.to(W)
        place = W.detach(), b.detach()
        torch_steps(
            W, b, optimizer, rates,
            lambda t: DirectLoss(batches.step(t), weights).value_and_grad(*place)[1:],
        )  # fmt: skip


def torch_steps(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: Tensor,
    gradients: Callable[[int], tuple[Tensor, Tensor]],
) -> None:
    """Make a step of a torch optimizer by dL/dW, dL/db = `gradients(t)` for each rate, in place."""
    # The scheduler has run ahead, so the optimizer must keep the rate that the scheduler left.
    ahead = [group["lr"] for group in optimizer.param_groups]
    for t, rate in enumerate(rates.tolist()):
        W.grad, b.grad = gradients(t)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, ahead, strict=True):
        group["lr"] = rate


def check_members_are_independent(
    make_optimizer: OptimizerFactory, make_scheduler: SchedulerFactory | None
) -> None:
    """ValueError if a member's training would depend on others, or the optimizer's arguments are
    wrong.

    The optimizer is run on three test members, together and one at a time.
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
        independent = torch.allclose(together, alone, rtol=1e-12, atol=1e-12, equal_nan=True)
    except TypeError:  # it needs a closure
        independent = False
    if not independent:
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
