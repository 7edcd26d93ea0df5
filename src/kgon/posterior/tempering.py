"""Tempering: particles move from the prior to the posterior in steps (see `kgon.posterior.smc`).

State is (n_particles, n_runs, ...). Runs share the loop and are otherwise independent.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loss import Kernel, Trajectory
from kgon.posterior.hmc import TorchMover

_FIRST_STEP = 0.3
_ADAPTATION = 0.5
_LAST_RUNG = 3
"""Factor by which there are more moves on the last rung, whose particles are the result."""
_BISECTIONS = 60


class Rung(NamedTuple):
    """One rung of each run, (n_runs).

    Attributes:
        beta: the power of the likelihood.
        ess: share of effective particles before resampling.
        acceptance, permuted: acceptance of the trajectories, and of the permutations.
        refresh: correlation of the loss before and after the rung's moves; 0 if they renew the
            particles.
    """

    beta: Tensor
    ess: Tensor
    acceptance: Tensor
    permuted: Tensor
    refresh: Tensor


@dataclass(frozen=True)
class Tempered:
    """The particles at beta = 1, and how they got there.

    Attributes:
        W, b, loss: (n_particles, n_runs, ...).
        log_evidence: (n_runs); NaN where the losses were.
        step: (n_runs), the last step sizes.
        rungs: the ladder; NaN after a run's last rung.
    """

    W: Tensor
    b: Tensor
    loss: Tensor
    log_evidence: Tensor
    step: Tensor
    rungs: list[Rung]


class _MoveKeys(NamedTuple):
    """Streams of each particle's moves, (n_particles, n_runs)."""

    hmc: streams.Keys
    rotation: streams.Keys
    permutation: streams.Keys


@dataclass(frozen=True)
class Tempering:
    """Settings of the sampler; keys (n_runs) are the runs' random streams, strength is (n_runs)."""

    mover: Kernel | TorchMover
    strength: Tensor
    prior_std: float
    keys: streams.Keys
    n_particles: int
    n_hidden: int
    n_features: int
    ess: float
    n_moves: int
    n_leapfrog: int
    target_acceptance: float

    def sample(self) -> Tempered:
        """Run until every run has reached beta = 1."""
        n_runs = len(self.keys)
        start, resampling, *kinds = np.moveaxis(streams.subkeys(self.keys, 5), -1, 0)
        keys = _MoveKeys(
            *(np.ascontiguousarray(streams.subkeys(kind, self.n_particles).T) for kind in kinds)
        )
        W, b = self._from_prior(np.ascontiguousarray(start))
        loss = self.mover.value(W, b)
        beta = torch.zeros(n_runs, dtype=torch.float64)
        log_evidence = torch.zeros(n_runs, dtype=torch.float64)
        step = torch.full((n_runs,), _FIRST_STEP * self.prior_std, dtype=torch.float64)
        rungs: list[Rung] = []
        while bool((beta < 1).any()):
            active = beta < 1
            increment, log_weight, share = self._temper(loss, beta)
            # Where losses are NaN there is no increment, and the run ends.
            stuck = active & ~(increment > 0)
            active = active & ~stuck
            log_evidence[stuck] = math.nan
            # A run at beta = 1 has increments, hence log weights, of 0.
            log_evidence += log_weight.logsumexp(0) - math.log(self.n_particles)
            beta = torch.where(stuck | (increment == 1 - beta), 1.0, beta + increment)
            ancestor = _systematic(log_weight, resampling, len(rungs))
            ancestor = torch.where(active, ancestor, torch.arange(len(W)).unsqueeze(-1))
            run = torch.arange(n_runs)
            W, b, loss = W[ancestor, run], b[ancestor, run], loss[ancestor, run]
            before = loss.clone()
            step, acceptance, permuted = self._move(
                W, b, loss, beta, step, active, len(rungs), keys
            )
            rung = Rung(beta, share, acceptance, permuted, _correlation(before, loss))
            rungs.append(Rung(*(torch.where(active, entry, math.nan) for entry in rung)))
        return Tempered(W, b, loss, log_evidence, step, rungs)

    def _from_prior(self, keys: streams.Keys) -> tuple[Tensor, Tensor]:
        n_weights = self.n_hidden * self.n_features
        dim = n_weights + self.n_features
        noise = np.empty((len(keys), self.n_particles * (dim + dim % 2)))
        streams.normals(keys, 0, noise)
        w = torch.from_numpy(noise).view(len(keys), self.n_particles, -1).movedim(0, 1)
        w = self.prior_std * w[..., :dim]
        W = w[..., :n_weights].reshape(-1, len(keys), self.n_hidden, self.n_features).contiguous()
        return W, w[..., n_weights:].contiguous()

    def _move(
        self, W: Tensor, b: Tensor, loss: Tensor, beta: Tensor, step: Tensor, active: Tensor,
        rung: int, keys: _MoveKeys,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Move the particles in place; return the new step sizes, and the acceptances of
        trajectories and of permutations, (n_runs)."""
        last = active & (beta == 1)
        strength = beta * self.strength
        accepted, permuted = torch.zeros_like(beta), torch.zeros_like(beta)
        for i in range(self.n_moves * _LAST_RUNG):
            moving = active & ((i < self.n_moves) | last)
            if not bool(moving.any()):
                break
            turn = rung * self.n_moves * _LAST_RUNG + i
            if i == 0:
                rotated = _rotations(W, keys.rotation, turn) @ W
                self._exchange(W, b, loss, rotated, b, strength, moving, keys.rotation, turn)
            order = _permutations(W, keys.permutation, turn)
            new_W = W.gather(-1, order.unsqueeze(-2).expand_as(W))
            permuted += moving * self._exchange(
                W, b, loss, new_W, b.gather(-1, order), strength, moving, keys.permutation, turn
            )
            trajectory = Trajectory(
                strength=strength,
                precision=torch.full_like(step, self.prior_std**-2),
                step=torch.where(moving, step, 0.0),
                n_leapfrog=torch.full(step.shape, self.n_leapfrog),
                keys=keys.hmc,
                turn=turn,
            )
            rate = self.mover.hmc_move(W, b, loss, trajectory).mean(0)
            accepted += moving * rate
            change = (_ADAPTATION * (rate - self.target_acceptance)).exp()
            step = torch.where(moving, step * change, step)
        n_moves = self.n_moves * torch.where(last, _LAST_RUNG, 1)
        return step, accepted / n_moves, permuted / n_moves

    def _temper(self, loss: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next increment of beta, by bisection; its log weights and their effective share."""
        energy = self.strength * loss
        low, high = torch.zeros_like(beta), 1 - beta
        increment = high
        for _ in range(_BISECTIONS):
            share = _effective_share(-increment * energy)
            low = torch.where(share >= self.ess, increment, low)
            high = torch.where(share >= self.ess, high, increment)
            increment = torch.where(low == 1 - beta, low, (low + high) / 2)
        increment = torch.where(low > 0, low, 0.0)
        log_weight = -increment * energy
        return increment, log_weight, _effective_share(log_weight)

    def _exchange(
        self, W: Tensor, b: Tensor, loss: Tensor, new_W: Tensor, new_b: Tensor, strength: Tensor,
        moving: Tensor, keys: streams.Keys, turn: int,
    ) -> Tensor:  # fmt: skip
        """A Metropolis move to (new_W, new_b), which must have the prior density of (W, b)."""
        new_loss = self.mover.value(new_W.contiguous(), new_b.contiguous())
        u = streams.uniforms(keys.ravel(), turn * _width(W) + _width(W) - 1, 1)
        gain = strength * (loss - new_loss)
        accepted = (torch.from_numpy(u).view(keys.shape).log() < gain) & moving
        W.copy_(torch.where(accepted[..., None, None], new_W, W))
        b.copy_(torch.where(accepted[..., None], new_b, b))
        loss.copy_(torch.where(accepted, new_loss, loss))
        return accepted.double().mean(0)


def _width(W: Tensor) -> int:
    """Random numbers set aside for a rotation or a permutation and its acceptance."""
    return int(W.shape[-2] ** 2 + W.shape[-1]) // 2 * 2 + 2


def _effective_share(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) over the first axis; 0 where no weight is finite."""
    share = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0) - math.log(len(log_weight))
    return share.exp().nan_to_num(0.0)


def _systematic(log_weight: Tensor, keys: streams.Keys, counter: int) -> Tensor:
    """Indices of the resampled particles, (n_particles, n_runs): one uniform number a run."""
    n = len(log_weight)
    u = torch.from_numpy(streams.uniforms(np.ascontiguousarray(keys), counter, 1))
    points = (torch.arange(n) + u) / n
    cumulative = log_weight.softmax(0).cumsum(0).T.contiguous()
    return torch.searchsorted(cumulative, points, right=True).clamp(max=n - 1).T


def _rotations(W: Tensor, keys: streams.Keys, turn: int) -> Tensor:
    """Uniform elements of O(n_hidden), (n_particles, n_runs, n_hidden, n_hidden)."""
    m = W.shape[-2]
    noise = np.empty((keys.size, m * m))
    streams.normals(keys.ravel(), turn * _width(W), noise)
    # Gram-Schmidt on a normal matrix gives Haar-distributed orthogonal matrices.
    columns: list[Tensor] = []
    for column in torch.from_numpy(noise).view(*keys.shape, m, m).unbind(-1):
        for other in columns:
            column = column - (column * other).sum(-1, keepdim=True) * other
        columns.append(column / column.norm(dim=-1, keepdim=True))
    return torch.stack(columns, -1)


def _permutations(W: Tensor, keys: streams.Keys, turn: int) -> Tensor:
    """Uniform permutations of the features, (n_particles, n_runs, n_features)."""
    u = streams.uniforms(keys.ravel(), turn * _width(W), W.shape[-1])
    return torch.from_numpy(u.argsort(-1)).view(*keys.shape, -1)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation over the first axis; 0 where one of them does not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt()).nan_to_num(0.0)
