r"""Hamiltonian Monte Carlo at the localized posterior: chains without step bias.

The target at a point w* is

    exp(-nbeta L(w) - (localization / 2) |w - w*|^2),

the density under which a local learning coefficient averages the loss. A leapfrog trajectory is
accepted or rejected by Metropolis's rule, so the step size changes the cost of a draw, but not its
distribution: this is what the chains of `kgon.llc.langevin` are held against.

Shapes: parameters are (n_chains, *batch, ...), a loss maps them to (n_chains, *batch); n_points is
the product of *batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loops import JITTER
from kgon.compiled.exact_loss import CompiledLoss, Kernel, Trajectory
from kgon.llc.langevin import value_and_grad

_ADAPTATION = 40
"""Trajectories that adapt the step size before any draw."""


@dataclass(frozen=True)
class HMC:
    """Settings of Hamiltonian Monte Carlo.

    A trajectory is as long as the localization's length scale, 1 / sqrt(localization), where that
    takes at most `max_leapfrog` steps.

    Attributes:
        acceptance: mean acceptance that the step size of each point is adapted to.
        max_leapfrog: most leapfrog steps of a trajectory.
    """

    acceptance: float = 0.9
    max_leapfrog: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.acceptance < 1:
            raise ValueError(f"sampler.acceptance must lie in (0, 1), got {self.acceptance}")
        if not isinstance(self.max_leapfrog, int) or self.max_leapfrog < 1:
            raise ValueError(
                f"sampler.max_leapfrog must be a whole number >= 1, got {self.max_leapfrog}"
            )

    def sample(
        self,
        loss: Callable[..., Tensor],
        points: tuple[Tensor, ...],
        keys: streams.Keys,
        n_draws: int,
        n_burnin: int,
        nbeta: float | Tensor,
        localization: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Chains that start at the points w* and are drawn to them by `localization`.

        The step sizes are adapted first; then each draw is one trajectory.

        Args:
            loss: as of `estimate_llc`.
            points: the parameters w*, each (*batch, ...).
            keys: (n_chains, *batch), streams of the chains.
            n_draws, n_burnin: draws that are kept, after so many that are not.
            nbeta, localization: numbers, or (*batch), a value for each point.

        Returns:
            The losses of the draws (n_draws, n_chains, *batch), float64, and the chains' mean
            acceptance (n_chains, *batch).
        """
        batch = keys.shape[1:]
        flat = [p.detach().reshape(-1, *p.shape[len(batch) :]) for p in points]
        strength, precision = (
            torch.as_tensor(value, dtype=torch.float64).expand(batch).flatten().contiguous()
            for value in (nbeta, localization)
        )
        chains = Chains(loss, flat, keys.reshape(len(keys), -1), strength, precision, batch)
        step = (strength + precision).rsqrt()
        for turn in range(_ADAPTATION):
            acceptance = chains.move(step, self._n_leapfrog(step, precision)).mean(0)
            step = step * ((acceptance - self.acceptance) * 2.0 / math.sqrt(1 + turn)).exp()
        n_leapfrog = self._n_leapfrog(step, precision)
        for _ in range(n_burnin):
            chains.move(step, n_leapfrog)
        trace = torch.empty(n_draws, *chains.value.shape, dtype=torch.float64)
        accepted = torch.zeros_like(chains.value)
        for draw in trace:
            accepted += chains.move(step, n_leapfrog)
            draw.copy_(chains.value)
        return trace.reshape(-1, *keys.shape), (accepted / n_draws).reshape(keys.shape)

    def _n_leapfrog(self, step: Tensor, localization: Tensor) -> int:
        length = localization.clamp(min=1e-12).rsqrt() / step
        return int(length.max().ceil().clamp(1, self.max_leapfrog))


class Chains:
    """The state of chains (n_chains, n_points) and their moves, compiled where the loss is."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        points: list[Tensor],
        keys: streams.Keys,
        strength: Tensor,
        precision: Tensor,
        batch: tuple[int, ...],
    ):
        self.loss = loss
        self.points = points
        self.keys = np.ascontiguousarray(keys)
        self.strength = strength
        self.precision = precision
        self.batch = batch
        self.params = [p.expand(len(keys), *p.shape).clone() for p in points]
        double = all(p.dtype == torch.float64 for p in points)
        self.kernel: Kernel | None = None
        if isinstance(loss, CompiledLoss) and double:
            self.kernel = Kernel(loss.tables, len(strength))
        self.value = self._value_and_grad(self.params)[0]
        self.turn = 0

    def move(self, step: Tensor, n_leapfrog: int) -> Tensor:
        """One trajectory of every chain; its acceptance probability (n_chains, n_points)."""
        trajectory = Trajectory(
            self.strength, self.precision, step, n_leapfrog, self.keys, self.turn,
            tuple(self.points),
        )  # fmt: skip
        self.turn += 1
        if self.kernel is not None:
            W, b = self.params
            return self.kernel.hmc_move(W, b, self.value, trajectory)
        return torch_move(self._value_and_grad, self.params, self.value, trajectory)

    def _value_and_grad(self, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        shape = len(params[0]), *self.batch
        stacked = [
            p.reshape(*shape, *c.shape[1:]) for p, c in zip(params, self.points, strict=True)
        ]
        value, *grads = value_and_grad(self.loss, stacked, shape)
        flat = [g.reshape(p.shape) for g, p in zip(grads, params, strict=True)]
        return value.double().reshape(len(value), -1).clone(), flat


def torch_move(
    evaluate: Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]],
    params: list[Tensor],
    value: Tensor,
    move: Trajectory,
) -> Tensor:
    """One trajectory of every parameter, in place; its acceptance probability (n_stack, n_runs).

    The definition that `exact_loss.Kernel` is held against.

    Args:
        evaluate: parameters to their loss (n_stack, n_runs) and its gradient by each tensor.
        params: the tensors of the parameters, each (n_stack, n_runs, ...).
        value: their loss, which is updated too.
        move: the target and the trajectory.
    """
    sizes = [p[0, 0].numel() for p in params]
    width = sum(sizes) + sum(sizes) % 2
    counter = move.turn * (width + 2)
    keys = np.ascontiguousarray(move.keys).ravel()
    normal = np.empty((keys.size, width))
    streams.normals(keys, counter, normal)
    uniform = torch.from_numpy(streams.uniforms(keys, counter + width, 2))
    uniform = uniform.view(*value.shape, 2)
    pieces = torch.split(torch.from_numpy(normal[:, : sum(sizes)]), sizes, -1)
    momentum = [z.reshape(p.shape).to(p) for z, p in zip(pieces, params, strict=True)]
    centres = move.centre or [torch.zeros_like(p[0]) for p in params]
    h = move.step * (JITTER[0] + (JITTER[1] - JITTER[0]) * uniform[..., 0])

    def energy(params: list[Tensor], value: Tensor) -> Tensor:
        away = [p - centre for p, centre in zip(params, centres, strict=True)]
        potential = move.strength * value + move.precision / 2 * _sum_of_squares(away)
        return potential + _sum_of_squares(momentum) / 2

    new, new_value = list(params), value
    before = energy(new, new_value)
    for t in range(move.n_leapfrog + 1):
        new_value, grads = evaluate(new)
        kick = h if 0 < t < move.n_leapfrog else h / 2
        for i, (grad, centre) in enumerate(zip(grads, centres, strict=True)):
            force = _like(move.strength, grad) * grad
            force = force + _like(move.precision, grad) * (new[i] - centre)
            momentum[i] = momentum[i] - _like(kick, grad) * force
            if t < move.n_leapfrog:
                new[i] = new[i] + _like(h, grad) * momentum[i]
    gain = before - energy(new, new_value)
    # A trajectory that diverges has an energy that is not finite, and is rejected.
    accepted = (uniform[..., 1].log() < gain) & (move.step > 0)
    for old, moved in zip([*params, value], [*new, new_value], strict=True):
        old.copy_(torch.where(_like(accepted, old), moved, old))
    return gain.clamp(max=0).exp().nan_to_num(0.0)


def _like(x: Tensor, p: Tensor) -> Tensor:
    """x (..., n_points) so that it broadcasts with a parameter (n_chains, n_points, ...)."""
    x = x if x.dtype == torch.bool else x.to(p)
    return x.reshape(*x.shape, *[1] * (p.ndim - 2))


def _sum_of_squares(params: list[Tensor]) -> Tensor:
    return torch.stack([p.double().square().reshape(*p.shape[:2], -1).sum(-1) for p in params]).sum(
        0
    )
