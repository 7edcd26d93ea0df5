"""The loss that chains run on, and the parameters w* at which they start.

Shapes: parameters of chains are (n_chains, n_points, ...), where n_points is the product of the
batch axes of w*.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss, Kernel
from kgon.llc.minibatches import Rows
from kgon.llc.observables import Functions, Observables


class Stack:
    """A loss and the points w* of its chains.

    Args:
        loss: maps parameters (n_chains, *batch, ...) to losses (n_chains, *batch). A
            `value_and_grad` method is used if it has one, else autograd.
        w_star: one tensor (*batch, ...) for each parameter.
        batch: the batch axes of w*.
        observables: other functions of the parameters, evaluated at every draw.

    Attributes:
        points: w* with one axis for all points, a tensor (n_points, ...) for each parameter.
        size: the number of real parameters of one point.
        kernel: the compiled form of the loss, or None.
        minibatches: the samples of the loss, if gradients are to be those of minibatches, or None.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        w_star: tuple[Tensor, ...],
        batch: tuple[int, ...],
        observables: Functions | None = None,
    ):
        self.loss = loss
        self.observables = Observables(observables or {}, w_star, batch)
        self.batch = batch
        self.n_points = math.prod(batch)
        self.points = [p.detach().reshape(-1, *p.shape[len(batch) :]) for p in w_star]
        self.size = sum(math.prod(p.shape[1:]) for p in self.points)
        self.minibatches: Rows | None = getattr(loss, "minibatches", None)
        double = all(p.dtype == torch.float64 for p in w_star)
        self.kernel: Kernel | None = None
        if isinstance(loss, CompiledLoss) and double:
            self.kernel = Kernel(loss.tables, self.n_points)

    def start(self, n_chains: int) -> list[Tensor]:
        """Parameters of n_chains chains at each point."""
        return [p.expand(n_chains, *p.shape).clone(memory_format=torch.contiguous_format)
                for p in self.points]  # fmt: skip

    def value_and_grad(self, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss (n_chains, n_points) in float64, and its gradient by each parameter.

        Raises:
            ValueError: the loss does not return one value for each chain and point, or does not
                depend on one of the parameters.
        """
        shape = len(params[0]), *self.batch
        value, *grads = value_and_grad(self.loss, self._unflattened(params), shape)
        flat = [g.reshape(p.shape) for g, p in zip(grads, params, strict=True)]
        return value.double().reshape(len(value), -1), flat

    def minibatch_gradient(self, params: list[Tensor], keys: streams.Keys, step: int) -> Tensor:
        """The gradient (n_chains, 1, size) of a step's minibatch, which is each chain's own."""
        assert self.minibatches is not None
        size = self.minibatches.size
        uniform = torch.from_numpy(streams.uniforms(keys, step * size, size))
        index = (uniform * self.minibatches.n).long()
        loss: Any = self.loss
        grads = loss.minibatch_gradient(index, *self._unflattened(params))
        return rows([g.reshape(p.shape) for g, p in zip(grads, params, strict=True)])

    def observe(self, params: list[Tensor]) -> Tensor:
        """The observables (size, n_chains, n_points) in float64."""
        if not self.observables.size:
            return torch.empty(0, *params[0].shape[:2], dtype=torch.float64)
        return self.observables(self._unflattened(params))

    def _unflattened(self, params: list[Tensor]) -> list[Tensor]:
        """Parameters with the batch axes of w*, (n_chains, *batch, ...)."""
        return [
            p.reshape(len(p), *self.batch, *point.shape[1:])
            for p, point in zip(params, self.points, strict=True)
        ]

    def drop(self, n_steps: int) -> Tensor:
        """How far the loss falls from w* in n_steps of gradient descent, (n_points,).

        A step of size h that lowers the loss by at least h |grad|^2 / 2 is kept, and h grows by a
        fifth; any other step is undone, and h is halved (`exact_loss.Kernel.descend`).
        """
        params = self.start(1)
        first, grads = self.value_and_grad(params)
        if self.kernel is not None:
            W, b = params
            return (first - self.kernel.descend(W, b, tolerance=0.0, n_steps=n_steps)[0])[0]
        value, h, grads = first.clone(), torch.full_like(first, 0.1), [g.clone() for g in grads]
        for _ in range(n_steps):
            new = [p - like(h, p) * g for p, g in zip(params, grads, strict=True)]
            new_value, new_grads = self.value_and_grad(new)
            better = new_value <= value - 0.5 * h * square(rows(grads))
            h = torch.where(better, 1.2 * h, 0.5 * h)
            for old, moved in zip(
                [*params, *grads, value], [*new, *new_grads, new_value], strict=True
            ):
                old.copy_(torch.where(like(better, old), moved, old))
        return (first - value)[0]


def value_and_grad(
    loss: Callable[..., Tensor], params: list[Tensor], shape: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """The loss and its gradient with respect to each parameter.

    Raises:
        ValueError: the loss does not have this shape, or does not depend on a parameter.
    """
    if hasattr(loss, "value_and_grad"):
        value, *grads = loss.value_and_grad(*params)
    else:
        leaves = [p.detach().contiguous().requires_grad_() for p in params]
        with torch.enable_grad():
            value = loss(*leaves)
            grads = [None] * len(leaves)
            if value.requires_grad:
                grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    if value.shape != shape:
        raise ValueError(
            f"loss returned shape {tuple(value.shape)} for parameters with batch axes "
            f"{tuple(shape)} (chains first): it must return one value for each"
        )
    for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
        if grad is None:
            own = tuple(param.shape[len(shape) :])
            raise ValueError(
                f"loss does not depend on parameter {i}, of shape {own}: pass only parameters on "
                "which it depends"
            )
    return value.detach(), *grads


def like(x: Tensor, p: Tensor) -> Tensor:
    """x (..., n_points), shaped to multiply a parameter (n_chains, n_points, ...)."""
    x = x if x.dtype == torch.bool else x.to(p)
    return x.reshape(*x.shape, *[1] * (p.ndim - 2))


def rows(params: list[Tensor]) -> Tensor:
    """All real parameters of each chain side by side, (n_chains, n_points, size)."""
    return torch.cat([p.reshape(*p.shape[:2], -1) for p in params], -1)


def square(x: Tensor) -> Tensor:
    """|x|^2 over the last axis, in float64."""
    return x.double().square().sum(-1)
