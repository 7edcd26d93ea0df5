"""Hamiltonian Monte Carlo moves of many particles under any loss: one trajectory each.

The target is exp(-strength L(w) - precision |w|^2 / 2). Step sizes are jittered
(`exact_loops.JITTER`), and a trajectory is accepted or rejected by Metropolis's rule.

Shapes: particles are W (n_particles, n_runs, n_hidden, n_features) and b likewise; *runs, n_runs of
them in all, are the axes that the loss knows.
"""

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon import streams
from kgon.compiled import exact_loops, moments
from kgon.compiled.exact_loss import Kernel

_CHUNK_BYTES = 2**28


class Mover(Protocol):
    """A loss that evaluates and moves particles W (n_particles, n_runs, n_hidden, n_features)."""

    def value(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (n_particles, n_runs)."""
        ...

    def hmc_move(
        self,
        W: Tensor,
        b: Tensor,
        value: Tensor,
        *,
        strength: Tensor,
        precision: float,
        step: Tensor,
        n_leapfrog: int,
        keys: NDArray[np.uint64],
        turn: int,
    ) -> Tensor:
        """One trajectory of every particle, in place; its acceptance probability.

        The target is exp(-strength L - precision |w|^2 / 2); strength and step are (n_runs), and a
        run with step 0 stands still. `keys` (n_particles, n_runs) and `turn` give the randomness.
        """
        ...


def mover(loss: Any, runs: tuple[int, ...], n_hidden: int, n_features: int) -> Mover:
    """What moves particles under a loss: its compiled form where it has one."""
    tables = moments.tables(loss, n_features)
    if tables is None:
        return TorchMover(loss, runs)
    return Kernel(tables, n_runs=math.prod(runs))


class TorchMover:
    """The moves in torch, for any loss; the tests hold `exact_loss.Kernel` against it."""

    def __init__(self, loss: Any, runs: tuple[int, ...]):
        self.loss = loss
        self.runs = runs

    def _stack(self, p: Tensor, n_event: int) -> Tensor:
        return p.reshape(len(p), *self.runs, *p.shape[p.ndim - n_event :])

    def _chunks(self, W: Tensor) -> list[slice]:
        # A loss's temporaries are some twenty (n_features, n_features) matrices a particle.
        a_particle = 20 * 8 * W[0, :, 0].numel() * W.shape[-1]
        size = max(1, _CHUNK_BYTES // a_particle)
        return [slice(i, i + size) for i in range(0, len(W), size)]

    def value(self, W: Tensor, b: Tensor) -> Tensor:
        pieces = []
        for part in self._chunks(W):
            value = self.loss(self._stack(W[part], 2), self._stack(b[part], 1))
            if value.shape != (len(W[part]), *self.runs):
                raise ValueError(
                    f"the loss returned shape {tuple(value.shape)} for parameters stacked as "
                    f"{(len(W[part]), *self.runs)}: it must give one value for each"
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

    def hmc_move(
        self,
        W: Tensor,
        b: Tensor,
        value: Tensor,
        *,
        strength: Tensor,
        precision: float,
        step: Tensor,
        n_leapfrog: int,
        keys: NDArray[np.uint64],
        turn: int,
    ) -> Tensor:
        acceptance = torch.zeros_like(value)
        for part in self._chunks(W):
            acceptance[part] = self._move(
                W[part], b[part], value[part], strength, precision, step, n_leapfrog,
                np.ascontiguousarray(keys[part]), turn,
            )  # fmt: skip
        return acceptance

    def _move(
        self, W: Tensor, b: Tensor, value: Tensor, strength: Tensor, precision: float, step: Tensor,
        n_leapfrog: int, keys: NDArray[np.uint64], turn: int,
    ) -> Tensor:  # fmt: skip
        dim = W.shape[-2] * W.shape[-1] + W.shape[-1]
        even = dim + dim % 2
        counter = turn * (even + 2)
        noise = np.empty((keys.size, even))
        streams.normals(keys.ravel(), counter, noise)
        u = torch.from_numpy(streams.uniforms(keys.ravel(), counter + even, 2)).to(W)
        u = u.view(*keys.shape, 2)
        p = torch.from_numpy(noise[:, :dim]).to(W).view(*keys.shape, dim)
        p_W, p_b = p[..., : dim - W.shape[-1]].reshape(W.shape), p[..., dim - W.shape[-1] :]
        low, high = exact_loops.JITTER
        h = step * (low + (high - low) * u[..., 0])
        h_W, h_b = h[..., None, None], h[..., None]
        new_W, new_b = W.clone(), b.clone()
        before = self._energy(value, new_W, new_b, p_W, p_b, strength, precision)
        new_value = value
        for t in range(n_leapfrog + 1):
            new_value, dW, db = self._value_and_grad(new_W, new_b)
            kick = 1.0 if 0 < t < n_leapfrog else 0.5
            p_W = p_W - kick * h_W * (strength[:, None, None] * dW + precision * new_W)
            p_b = p_b - kick * h_b * (strength[:, None] * db + precision * new_b)
            if t < n_leapfrog:
                new_W, new_b = new_W + h_W * p_W, new_b + h_b * p_b
        gain = before - self._energy(new_value, new_W, new_b, p_W, p_b, strength, precision)
        # A diverged trajectory has a NaN or infinite energy and is rejected.
        accepted = (u[..., 1].log() < gain) & (step > 0)
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
