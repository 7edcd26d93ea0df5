"""Optimizer steps of an ensemble, their settings, and a check that members are independent."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kgon.compiled import training_steps
from kgon.data import Minibatches
from kgon.theory.loss import DirectLoss

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

Settings = list[dict[str, Any]]
"""The entries of an optimizer's param groups, such as lr and momentum, without the parameters."""


def next_settings(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    n_steps: int,
) -> tuple[Tensor, list[Settings] | None]:
    """Advance the scheduler by n_steps. Return the learning rates of these steps, (n_steps,), and
    the settings of each, or None if they differ in the rate alone."""
    settings = [_settings(optimizer)]
    with warnings.catch_warnings():
        # torch warns that the scheduler steps before the optimizer.
        warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
        for _ in range(n_steps):
            if scheduler is not None:
                scheduler.step()
            settings.append(_settings(optimizer) if scheduler is not None else settings[0])
    first = settings[0][0]
    only_rate = all(groups == [first | {"lr": groups[0]["lr"]}] for groups in settings)
    settings = settings[:n_steps]
    rates = torch.tensor([float(groups[0]["lr"]) for groups in settings], dtype=torch.float64)
    return rates, None if only_rate else settings


def _settings(optimizer: torch.optim.Optimizer) -> Settings:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def minibatch_steps(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: Tensor,
    batches: Minibatches,
    importance: Tensor | None,
    settings: Sequence[Settings] | None = None,
) -> None:
    """Make one optimizer step of every member on each minibatch, in place.

    The steps run in a compiled loop if the optimizer and the device have one and only the learning
    rate changes (`settings` is None); else in torch. `rates` (n_steps,) and `settings` are those of
    `next_settings`; a compiled loop also takes rates (n_members, n_steps).
    """
    if settings is None and training_steps.has_kernel(optimizer):
        training_steps.advance(W, b, optimizer, rates, batches, importance)
    else:
        weights = None if importance is None else importance.to(W)
        place = W.detach(), b.detach()
        torch_steps(
            W, b, optimizer, rates,
            lambda t: DirectLoss(batches.step(t), weights).value_and_grad(*place)[1:],
            settings,
        )  # fmt: skip


def torch_steps(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: Tensor,
    gradients: Callable[[int], tuple[Tensor, Tensor]],
    settings: Sequence[Settings] | None = None,
) -> None:
    """Make a step of a torch optimizer for each rate in place, by dL/dW, dL/db = `gradients(t)`.

    `settings` are those of each step (`next_settings`), or None if only the rate changes.
    """
    # The scheduler has run ahead; the optimizer gets its settings back afterwards.
    ahead = _settings(optimizer)
    for t, rate in enumerate(rates.tolist()):
        W.grad, b.grad = gradients(t)
        for i, group in enumerate(optimizer.param_groups):
            group.update({"lr": rate} if settings is None else settings[t][i])
        optimizer.step()
    for group, own in zip(optimizer.param_groups, ahead, strict=True):
        group.update(own)


def check_members_are_independent(
    make_optimizer: OptimizerFactory, make_scheduler: SchedulerFactory | None
) -> None:
    """ValueError if a member's training would depend on others, or the optimizer's or the
    scheduler's arguments are wrong.

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

    def made(what: str, make: Callable[[Any], Any], of: Any) -> Any:
        try:
            return make(of)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}: {error}") from error

    optimizer = made("optimizer", make_optimizer, [nn.Parameter(start.clone())])
    name = type(optimizer).__name__
    try:
        together = run(slice(None))
        alone = torch.cat([run(slice(i, i + 1)) for i in range(3)])
        independent = torch.allclose(together, alone, rtol=1e-12, atol=1e-12, equal_nan=True)
    except TypeError:  # it needs a closure
        independent = False
    if not independent:
        raise ValueError(
            f"optimizer={name} couples the members of an ensemble: a member's step depends on "
            "other members; use an elementwise optimizer such as sgd, adam or adamw"
        )
    if make_scheduler is not None:
        scheduler = made("scheduler", make_scheduler, optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError(
                "scheduler=ReduceLROnPlateau couples the members of an ensemble: the learning rate "
                "would follow the mean loss of all; use a scheduler that depends on the step alone"
            )
