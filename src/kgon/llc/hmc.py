r"""Hamiltonian Monte Carlo at the localized posterior: chains without step bias.

The target at a point w* is

    exp(-nbeta L(w) - (localization / 2) |w - w*|^2),

the density under which a local learning coefficient averages the loss. A leapfrog trajectory is
accepted or rejected by Metropolis's rule, so the step size changes the cost of a draw, but not its
distribution: this is what the chains of `kgon.llc.langevin` are held against.

Shapes: parameters are (n_chains, n_points, ...), see `kgon.llc.stack`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loops import JITTER
from kgon.compiled.exact_loss import Trajectory
from kgon.llc.stack import Stack, like, rows, square
from kgon.llc.verdict import Draws

_ADAPTATION = 20
"""Trajectories that adapt the step size before any draw."""


@dataclass(frozen=True)
class HMC:
    """Settings of Hamiltonian Monte Carlo.

    A trajectory is as long as the localization's length scale, 1 / sqrt(localization), where that
    takes at most `max_leapfrog` steps; times a random number of JITTER = (0.6, 1.2), so that no
    direction turns by a half period in every trajectory.

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


class HMCChains:
    """Chains that start at the points of a stack, are drawn to them, and can be continued.

    Each point has its own step size and number of leapfrog steps, so its chains do not depend on
    the other points.

    Args:
        settings: of the sampler.
        stack: the loss and the points.
        keys: (n_chains, n_points), streams of the chains.
        nbeta, localization: (n_points,).

    Attributes:
        step: (n_points,), the step sizes.
        n_gradients: (n_points,), gradients of each chain until now.
    """

    def __init__(
        self, settings: HMC, stack: Stack, keys: streams.Keys, nbeta: Tensor, localization: Tensor
    ):
        self.settings = settings
        self.stack = stack
        self.keys = np.ascontiguousarray(keys)
        self.nbeta = nbeta
        self.localization = localization
        self.params = stack.start(len(keys))
        self.value = stack.value_and_grad(self.params)[0].clone()
        self.step = (nbeta + localization).rsqrt()
        self.n_gradients = torch.zeros(stack.n_points, dtype=torch.int64)
        self.turn = 0

    def warm_up(self, n_draws: int) -> None:
        """Adapt the step sizes, then make n_draws trajectories."""
        everywhere = torch.ones(self.stack.n_points, dtype=torch.bool)
        for turn in range(_ADAPTATION):
            acceptance = self.draw(1, everywhere).acceptance.mean(0)
            change = (acceptance - self.settings.acceptance) * 2.0 / math.sqrt(1 + turn)
            self.step = self.step * change.exp()
        if n_draws:
            self.draw(n_draws, everywhere)

    def draw(self, n_draws: int, moving: Tensor) -> Draws:
        """The next n_draws trajectories of the points in the mask `moving` (n_points,)."""
        length = self.localization.clamp(min=1e-12).rsqrt() / self.step
        n_leapfrog = length.ceil().clamp(1, self.settings.max_leapfrog).long()
        move = Trajectory(
            self.nbeta, self.localization, self.step.where(moving, 0.0), n_leapfrog, self.keys,
            self.turn, tuple(self.stack.points),
        )  # fmt: skip
        if self.stack.kernel is not None and not self.stack.observables.size:
            W, b = self.params
            loss, distance, acceptance = self.stack.kernel.hmc(W, b, self.value, move, n_draws)
            observed = loss.new_empty(n_draws, 0, *self.value.shape)
            none = torch.zeros_like(acceptance)
            draws = Draws(
                loss.movedim(-1, 0), distance.movedim(-1, 0), acceptance, none, observed
            )  # fmt: skip
        else:
            draws = self._one_by_one(move, n_draws)
        self.turn += n_draws
        self.n_gradients += moving * (n_leapfrog + 1) * n_draws
        return draws

    def _one_by_one(self, move: Trajectory, n_draws: int) -> Draws:
        loss, distance = torch.full((2, n_draws, *self.value.shape), math.nan, dtype=torch.float64)
        observed = loss.new_full(
            (n_draws, self.stack.observables.size, *self.value.shape), math.nan
        )
        accepted = torch.zeros_like(self.value)
        moving = move.step > 0
        for t in range(n_draws):
            turn = replace(move, turn=move.turn + t)
            if self.stack.kernel is not None:
                W, b = self.params
                accepted += self.stack.kernel.hmc_move(W, b, self.value, turn)
            else:
                accepted += torch_move(self.stack.value_and_grad, self.params, self.value, turn)
            away = [p - c for p, c in zip(self.params, self.stack.points, strict=True)]
            loss[t] = self.value.where(moving, math.nan)
            distance[t] = square(rows(away)).where(moving, math.nan)
            observed[t] = self.stack.observe(self.params).where(moving, math.nan)
        return Draws(loss, distance, accepted / n_draws, torch.zeros_like(accepted), observed)


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
    # All parameters of a chain are one row, (n_stack, n_runs, size): fewer operations of torch.
    w = rows(params)
    sizes = [p[0, 0].numel() for p in params]
    width = w.shape[-1] + w.shape[-1] % 2
    counter = move.turn * (width + 2)
    keys = np.ascontiguousarray(move.keys).ravel()
    normal = np.empty((keys.size, width))
    streams.normals(keys, counter, normal)
    uniform = torch.from_numpy(streams.uniforms(keys, counter + width, 2))
    uniform = uniform.view(*value.shape, 2)
    momentum = torch.from_numpy(normal[:, : w.shape[-1]]).reshape(w.shape).to(w)
    centre = rows([c[None] for c in move.centre]) if move.centre else 0.0
    h = move.step * (JITTER[0] + (JITTER[1] - JITTER[0]) * uniform[..., 0])
    strength, precision, step = (x[..., None].to(w) for x in (move.strength, move.precision, h))
    ends = move.n_leapfrog[..., None].to(w)

    def energy(value: Tensor) -> Tensor:
        pull = square(w - centre)
        kinetic = square(momentum)
        return move.strength * value + move.precision / 2 * pull + kinetic / 2

    pieces, new_value = params, value
    before = energy(value)
    for t in range(int(move.n_leapfrog.max()) + 1):
        new_value, grads = evaluate(pieces)
        force = strength * rows(grads) + precision * (w - centre)
        # Half a kick at both ends; a run whose trajectory is over stays where it is.
        weight = (ends >= t).to(w) * (1.0 - 0.5 * (t == 0) - 0.5 * (ends == t).to(w))
        momentum = momentum - step * weight * force
        w = w + step * (ends > t).to(w) * momentum
        pieces = [
            piece.reshape(p.shape)
            for piece, p in zip(torch.split(w, sizes, -1), params, strict=True)
        ]
    gain = before - energy(new_value)
    # A trajectory that diverges has an energy that is not finite, and is rejected.
    accepted = (uniform[..., 1].log() < gain) & (move.step > 0)
    for old, moved in zip([*params, value], [*pieces, new_value], strict=True):
        old.copy_(torch.where(like(accepted, old), moved, old))
    return gain.clamp(max=0).exp().nan_to_num(0.0).where(move.step > 0, 0.0)
