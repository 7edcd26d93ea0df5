"""Hamiltonian Monte Carlo moves of many particles under any loss.

Each particle moves by one leapfrog trajectory, with a jittered step size (`exact_loops.JITTER`),
which is accepted or rejected by the Metropolis rule. `exact_loss.Trajectory` defines the target.

Shapes: particles are W (n_particles, n_runs, n_hidden, n_features) and b (n_particles, n_runs,
n_features). n_runs is the product of the axes *runs, the batch axes of the loss.
"""

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled import exact_loops, moments
from kgon.compiled.exact_loss import Kernel, Trajectory

_CHUNK_BYTES = 2**28


class Mover(Protocol):
    """Evaluates a loss at particles, and moves them."""

    def value(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (n_particles, n_runs)."""
        ...

    def hmc_move(self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory) -> Tensor:
        """Move every particle by one trajectory in place; return the acceptance probabilities.

        `value` is the loss of the particles, (n_particles, n_runs), and is updated too.
        """
        ...


def mover(loss: Any, runs: tuple[int, ...], n_hidden: int, n_features: int) -> Mover:
    """The compiled `Kernel` of a loss, or a `TorchMover` if the loss has no compiled form."""
    tables = moments.tables(loss, n_features)
    if tables is None:
        return TorchMover(loss, runs)
    return Kernel(tables, n_runs=math.prod(runs))


class TorchMover:
    """The moves in torch, for any loss. The tests compare `exact_loss.Kernel` with it."""

    def __init__(self, loss: Any, runs: tuple[int, ...]):
        self.loss = loss
        self.runs = runs

    def _stack(self, p: Tensor, n_event: int) -> Tensor:
        return p.reshape(len(p), *self.runs, *p.shape[p.ndim - n_event :])

    def _chunks(self, W: Tensor) -> list[slice]:
        """Slices of the particles for which the loss takes about _CHUNK_BYTES of memory."""
        # A loss takes about twenty temporary (n_features, n_features) matrices per particle.
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

    def _value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        W_stack, b_stack = self._stack(W, 2), self._stack(b, 1)
        if hasattr(self.loss, "value_and_grad"):
            value, dW, db = self.loss.value_and_grad(W_stack, b_stack)
        else:
            leaves = [W_stack.detach().requires_grad_(), b_stack.detach().requires_grad_()]
            with torch.enable_grad():
                value = self.loss(*leaves)
                dW, db = torch.autograd.grad(value.sum(), leaves)
        return value.detach().reshape(len(W), -1), dW.reshape(W.shape), db.reshape(b.shape)

    def hmc_move(self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory) -> Tensor:
        acceptance = torch.zeros_like(value)
        for chunk in self._chunks(W):
            own = replace(move, keys=np.ascontiguousarray(move.keys[chunk]))
            acceptance[chunk] = self._move(W[chunk], b[chunk], value[chunk], own)
        return acceptance

    def _move(self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory) -> Tensor:
        strength, precision, keys = move.strength, move.precision, move.keys
        dim = W.shape[-2] * W.shape[-1] + W.shape[-1]
        even = dim + dim % 2
        counter = move.turn * (even + 2)
        noise = np.empty((keys.size, even))
        streams.normals(keys.ravel(), counter, noise)
        u = torch.from_numpy(streams.uniforms(keys.ravel(), counter + even, 2)).to(W)
        u = u.view(*keys.shape, 2)
        p = torch.from_numpy(noise[:, :dim]).to(W).view(*keys.shape, dim)
        p_W, p_b = p[..., : dim - W.shape[-1]].reshape(W.shape), p[..., dim - W.shape[-1] :]
        low, high = exact_loops.JITTER
        h = move.step * (low + (high - low) * u[..., 0])
        h_W, h_b = h[..., None, None], h[..., None]
        new_W, new_b = W.clone(), b.clone()
        before = self._energy(value, new_W, new_b, p_W, p_b, strength, precision)
        new_value = value
        for t in range(move.n_leapfrog + 1):
            new_value, dW, db = self._value_and_grad(new_W, new_b)
            kick = 1.0 if 0 < t < move.n_leapfrog else 0.5
            p_W = p_W - kick * h_W * (strength[:, None, None] * dW + precision * new_W)
            p_b = p_b - kick * h_b * (strength[:, None] * db + precision * new_b)
            if t < move.n_leapfrog:
                new_W, new_b = new_W + h_W * p_W, new_b + h_b * p_b
        gain = before - self._energy(new_value, new_W, new_b, p_W, p_b, strength, precision)
        # A diverged trajectory has a NaN or infinite energy and is rejected.
        accepted = (u[..., 1].log() < gain) & (move.step > 0)
        for old, new in ((W, new_W), (b, new_b), (value, new_value)):
            mask = accepted.reshape(accepted.shape + (1,) * (old.ndim - 2))
            old.copy_(torch.where(mask, new, old))
        return gain.clamp(max=0).exp().nan_to_num(0.0)

    @staticmethod
    def _energy(
        value: Tensor, W: Tensor, b: Tensor, p_W: Tensor, p_b: Tensor, strength: Tensor, prec: float
    ) -> Tensor:
        prior = W.square().sum((-2, -1)) + b.square().sum(-1)
        kinetic = p_W.square().sum((-2, -1)) + p_b.square().sum(-1)
        return strength * value + 0.5 * (prec * prior + kinetic)
