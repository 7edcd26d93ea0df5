"""The exact losses in compiled code, and the samplers and descents that run on them.

Shapes: W (*batch, n_hidden, n_features) and b (*batch, n_features) on a CPU; if the loss has
several data sets, *batch ends in their axes. A `Kernel` divides parameters (n_stack, n_runs, ...)
among threads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.compiled import exact_loops
from kgon.compiled.machine import share_out
from kgon.compiled.moments import Tables, tables
from kgon.theory.loss import Loss, PopulationLoss

_SECONDS_A_PAIR = 10e-9
"""Approximate time that one pair of features adds to a value and gradient."""


@dataclass(frozen=True)
class Trajectory:
    """Settings of one Hamiltonian Monte Carlo trajectory for each parameter (n_stack, n_runs).

    The target is exp(-strength L - precision |w - centre|^2 / 2).

    Attributes:
        strength, precision: (n_runs).
        step: (n_runs), step sizes before jitter; a run with step 0 does not move.
        n_leapfrog: (n_runs), the number of leapfrog steps, int64.
        keys: (n_stack, n_runs), random streams.
        turn: how many trajectories these streams have made.
        centre: of each parameter tensor, (n_runs, ...); None for 0.
    """

    strength: Tensor
    precision: Tensor
    step: Tensor
    n_leapfrog: Tensor
    keys: NDArray[np.uint64]
    turn: int
    centre: tuple[Tensor, ...] | None = None


class Kernel:
    """Compiled functions of one loss for parameters in float64.

    W is (n_stack, n_runs, n_hidden, n_features) and b is (n_stack, n_runs, n_features). Run s uses
    data set s % n_sets.
    """

    def __init__(self, tables: Tables, n_runs: int):
        self.tables = tables
        self.data_set = np.arange(n_runs) % tables.n_sets

    def value(self, W: Tensor, b: Tensor) -> Tensor:
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n_stack, n_runs) and its gradient."""
        value, dW, db = W.new_empty(W.shape[:2]), torch.empty_like(W), torch.empty_like(b)
        self._share_out(exact_loops.value_and_grad, 1, [W, b, value, dW, db], [])
        return value, dW, db

    def hmc_move(self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory) -> Tensor:
        """Move every parameter by one trajectory in place; return the acceptance probabilities.

        `value` is the loss of the parameters, (n_stack, n_runs), and is updated too.
        """
        return self.hmc(W, b, value, move, 1)[2]

    def hmc(
        self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory, n_draws: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make n_draws trajectories of every parameter in place, from turn `move.turn` on.

        Returns:
            The losses and squared distances from the centre after each trajectory, both (n_stack,
            n_runs, n_draws), NaN for runs with step 0; the mean acceptance (n_stack, n_runs), 0 for
            these.
        """
        trace, distance = W.new_full((2, *value.shape, n_draws), math.nan)
        acceptance = torch.zeros_like(value)
        centre = move.centre or (torch.zeros_like(W[0]), torch.zeros_like(b[0]))
        self._share_out(
            exact_loops.hmc, n_draws * (int(move.n_leapfrog.max()) + 1),
            [W, b, value, trace, distance, acceptance, torch.from_numpy(move.keys)],
            [*centre, move.strength, move.precision, move.step, move.n_leapfrog], move.turn,
        )  # fmt: skip
        return trace, distance, acceptance

    def descend(
        self, W: Tensor, b: Tensor, *, tolerance: float, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        """Gradient descent in place, until the gradient's norm is at most `tolerance` or for
        n_steps; return the loss and the gradient's norm, each (n_stack, n_runs).

        A step of size h that lowers the loss by at least h |grad|^2 / 2 is kept, and h grows by a
        fifth; any other step is undone, and h is halved. So the path stays close to the gradient
        flow and does not jump between basins.
        """
        value, slope = W.new_empty(W.shape[:2]), W.new_empty(W.shape[:2])
        self._share_out(exact_loops.descend, n_steps, [W, b, value, slope], [], tolerance, n_steps)
        return value, slope

    def langevin(
        self,
        W: Tensor,
        b: Tensor,
        n_draws: int,
        *,
        keys: NDArray[np.uint64],
        centre: tuple[Tensor, ...],
        nbeta: Tensor,
        lr: Tensor,
        localization: Tensor,
        first_step: int,
        thin: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make thin * n_draws steps of Langevin chains (`kgon.llc.langevin`) in place.

        Args:
            keys: (n_stack, n_runs), streams of the chains' noise.
            centre: of the localization: W (n_runs, ...) and b (n_runs, ...).
            nbeta, lr, localization: (n_runs); a run with lr 0 does not move.
            first_step: how many steps these streams have made.
            thin: steps from draw to draw.

        Returns:
            The losses and squared distances from the centre at each draw, both (n_stack, n_runs,
            n_draws), NaN for runs that do not move; the mean MALA acceptance (n_stack, n_runs) of
            all steps but the last, NaN for a single step.
        """
        trace, distance = W.new_full((2, *W.shape[:2], n_draws), math.nan)
        acceptance = W.new_full(W.shape[:2], math.nan)
        self._share_out(
            exact_loops.langevin, n_draws * thin,
            [W, b, trace, distance, acceptance, torch.from_numpy(keys)],
            [*centre, nbeta, lr, localization], first_step, thin,
        )  # fmt: skip
        return trace, distance, acceptance

    def _share_out(
        self,
        loop: Callable[..., None],
        evaluations: int,
        stacks: list[Tensor],
        settings: list[Tensor],
        *rest: Any,
    ) -> None:
        """Call a compiled loop on slices of the parameters, on several threads if that pays.

        `evaluations` is how often the loop evaluates each parameter's loss. Stacks are (n_stack,
        n_runs, ...), settings (n_runs, ...); the loop gets both as (n_parameters, ...).
        """
        n_stack, n_runs = stacks[0].shape[:2]
        whole = [stack.contiguous() for stack in stacks]
        arrays = [stack.view(n_stack * n_runs, *stack.shape[2:]).numpy() for stack in whole]
        for setting in [*(each.contiguous().numpy() for each in settings), self.data_set]:
            arrays.append(np.tile(setting, (n_stack, *[1] * (setting.ndim - 1))))

        def run(part: slice) -> None:
            loop(*(array[part] for array in arrays), *rest, *self.tables.lookup)

        seconds = evaluations * _SECONDS_A_PAIR * self.tables.n_features**2
        share_out(run, n_stack * n_runs, seconds)
        for stack, copy in zip(stacks, whole, strict=True):
            if copy is not stack:
                stack.copy_(copy)


class CompiledLoss:
    """A `PopulationLoss` or an `EmpiricalLoss` on a CPU in compiled code, with the same signature.

    It computes in float64 whatever the dtype of the parameters.
    """

    def __init__(self, loss: Loss, n_features: int):
        compiled = tables(loss, n_features)
        if compiled is None:
            raise ValueError(
                f"{type(loss).__name__} has no compiled form: only PopulationLoss and "
                "EmpiricalLoss on a CPU have one"
            )
        self.tables = compiled

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (*batch) in float64."""
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (*batch) in float64 and its gradient in the parameters' dtype."""
        n_sets, n_features = self.tables.n_sets, self.tables.n_features
        batch, own = b.shape[:-1], self.tables.batch
        if W.shape[:-2] != batch or not W.shape[-1] == b.shape[-1] == n_features:
            raise ValueError(
                f"W must be (*batch, n_hidden, {n_features}) and b (*batch, {n_features}), got "
                f"{tuple(W.shape)} and {tuple(b.shape)}"
            )
        if batch[len(batch) - len(own) :] != own:
            raise ValueError(
                f"parameters' batch axes {tuple(batch)} must end in the data sets' {own}"
            )
        kernel = Kernel(self.tables, n_sets)
        value, dW, db = kernel.value_and_grad(
            W.detach().double().reshape(-1, n_sets, *W.shape[-2:]).contiguous(),
            b.detach().double().reshape(-1, n_sets, n_features).contiguous(),
        )
        return value.reshape(batch), dW.reshape(W.shape).to(W), db.reshape(b.shape).to(b)


def population_kernel(n_features: int) -> Kernel:
    """The kernel of the population loss, for a single run."""
    compiled = tables(PopulationLoss(), n_features)
    assert compiled is not None  # the population loss has a compiled form
    return Kernel(compiled, n_runs=1)


class Descent(NamedTuple):
    """Where a descent ends.

    Attributes:
        W: (*batch, n_hidden, n_features).
        b: (*batch, n_features).
        loss: (*batch).
        slope: (*batch), the norm of the gradient; above the tolerance if the descent was too short.
    """

    W: Tensor
    b: Tensor
    loss: Tensor
    slope: Tensor


def descent(W: Tensor, b: Tensor, tolerance: float, n_steps: int) -> Descent:
    """Gradient descent of the population loss from each parameter (`Kernel.descend`)."""
    end_W = W.detach().double().reshape(-1, 1, *W.shape[-2:]).clone()
    end_b = b.detach().double().reshape(-1, 1, b.shape[-1]).clone()
    kernel = population_kernel(b.shape[-1])
    loss, slope = kernel.descend(end_W, end_b, tolerance=tolerance, n_steps=n_steps)
    batch = b.shape[:-1]
    return Descent(
        end_W.reshape(W.shape), end_b.reshape(b.shape), loss.view(batch), slope.view(batch)
    )
