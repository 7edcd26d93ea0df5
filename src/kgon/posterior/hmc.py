"""Hamiltonian Monte Carlo moves of many particles under any loss.

Each particle moves by one leapfrog trajectory, with a jittered step size (`exact_loops.JITTER`),
which is accepted or rejected by the Metropolis rule. `exact_loss.Trajectory` defines the target.

Shapes: particles are W (n_particles, n_runs, n_hidden, n_features) and b (n_particles, n_runs,
n_features). n_runs is the product of the axes *runs, the batch axes of the loss.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kgon.compiled import moments
from kgon.compiled.exact_loss import Kernel, Trajectory
from kgon.llc.hmc import torch_move

_CHUNK_BYTES = 2**28


class TorchMover:
    """`Kernel.value` and `Kernel.hmc_move` in torch, for any loss. Tests compare the two."""

    def __init__(self, loss: Any, runs: tuple[int, ...]):
        self.loss = loss
        self.runs = runs

    def _stack(self, p: Tensor, n_event: int) -> Tensor:
        return p.reshape(len(p), *self.runs, *p.shape[p.ndim - n_event :])

    def _chunks(self, W: Tensor) -> list[slice]:
        """Slices of the particles, so small that the loss needs about _CHUNK_BYTES of memory."""
        # A loss needs about twenty temporary (n_features, n_features) matrices per particle.
        a_particle = 20 * 8 * W[0, :, 0].numel() * W.shape[-1]
        size = max(1, _CHUNK_BYTES // a_particle)
        return [slice(i, i + size) for i in range(0, len(W), size)]

    def value(self, W: Tensor, b: Tensor) -> Tensor:
        pieces = []
        for chunk in self._chunks(W):
            value = self.loss(self._stack(W[chunk], 2), self._stack(b[chunk], 1))
            if value.shape != (len(W[chunk]), *self.runs):
                raise ValueError(
                    f"the loss returned shape {tuple(value.shape)} for parameters with batch axes "
                    f"{(len(W[chunk]), *self.runs)}: it must return one value for each"
                )
            pieces.append(value.reshape(len(value), -1))
        return torch.cat(pieces)

    def _value_and_grad(self, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        W, b = params
        W_stack, b_stack = self._stack(W, 2), self._stack(b, 1)
        if hasattr(self.loss, "value_and_grad"):
            value, dW, db = self.loss.value_and_grad(W_stack, b_stack)
        else:
            leaves = [W_stack.detach().requires_grad_(), b_stack.detach().requires_grad_()]
            with torch.enable_grad():
                value = self.loss(*leaves)
                dW, db = torch.autograd.grad(value.sum(), leaves)
        return value.detach().reshape(len(W), -1), [dW.reshape(W.shape), db.reshape(b.shape)]

    def hmc_move(self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory) -> Tensor:
        acceptance = torch.zeros_like(value)
        for chunk in self._chunks(W):
            own, params = replace(move, keys=move.keys[chunk]), [W[chunk], b[chunk]]
            acceptance[chunk] = torch_move(self._value_and_grad, params, value[chunk], own)
        return acceptance


def mover(loss: Any, runs: tuple[int, ...], n_features: int) -> Kernel | TorchMover:
    """The compiled `Kernel` of a loss, or a `TorchMover` if the loss has no compiled form."""
    tables = moments.tables(loss, n_features)
    return TorchMover(loss, runs) if tables is None else Kernel(tables, n_runs=math.prod(runs))
