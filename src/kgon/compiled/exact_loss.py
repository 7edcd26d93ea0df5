"""The exact losses in compiled code, and the samplers and descents that run on them.

Shapes: W (*batch, n_hidden, n_features) and b (*batch, n_features) on a CPU; if the loss has
several data sets, *batch ends in their axes. A `Kernel` takes parameters as (n_stack, n_runs, ...)
and divides them among threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.compiled import exact_loops
from kgon.compiled.machine import share_out
from kgon.compiled.moments import Tables, tables
from kgon.theory.loss import Loss

_SECONDS_A_PAIR = 10e-9
"""Approximate time that one pair of features adds to a value and gradient."""


@dataclass(frozen=True)
class Trajectory:
    """Settings of one Hamiltonian Monte Carlo trajectory of each parameter (n_stack, n_runs).

    The target is exp(-strength L - precision |w - centre|^2 / 2).

    Attributes:
        strength, precision: (n_runs).
        step: (n_runs), step sizes before jitter; a run with step 0 does not move.
        n_leapfrog: the number of leapfrog steps.
        keys: (n_stack, n_runs), random streams.
        turn: which trajectory this is of those that use the same streams.
        centre: each parameter's tensors, (n_runs, ...), or None for 0.
    """

    strength: Tensor
    precision: Tensor
    step: Tensor
    n_leapfrog: int
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
        """The loss, (n_stack, n_runs)."""
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n_stack, n_runs) and its gradient."""
        value, dW, db = W.new_empty(W.shape[:2]), torch.empty_like(W), torch.empty_like(b)
        self._share_out(exact_loops.value_and_grad, 1, [W, b, value, dW, db])
        return value, dW, db

    def hmc_move(self, W: Tensor, b: Tensor, value: Tensor, move: Trajectory) -> Tensor:
        """Move every parameter by one trajectory in place; return the acceptance probabilities.

        `value` is the loss of the parameters, (n_stack, n_runs), and is updated too.
        """
        acceptance = torch.zeros_like(value)
        stacks = [W, b, value, acceptance, torch.from_numpy(move.keys)]
        centre = move.centre or (torch.zeros_like(W[0]), torch.zeros_like(b[0]))
        self._share_out(
            exact_loops.hmc_move, move.n_leapfrog + 1, stacks,
            [*centre, move.strength, move.precision, move.step], move.n_leapfrog, move.turn,
        )  # fmt: skip
        return acceptance

    def descend(
        self, W: Tensor, b: Tensor, *, tolerance: float, n_steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient descent in place until the gradient's norm is at most `tolerance`.

        A step of size h that lowers the loss by at least h |grad|^2 / 2 is kept, and h grows by a
        fifth; any other step is undone, and h is halved. So the path stays close to the gradient
        flow and does not jump between basins.

        Returns:
            The loss, the gradient's norm and the number of steps (at most n_steps), each
            (n_stack, n_runs).
        """
        value, slope, taken = (W.new_empty(W.shape[:2]) for _ in range(3))
        self._share_out(
            exact_loops.descend, n_steps, [W, b, value, slope, taken], [], tolerance, n_steps
        )
        return value, slope, taken

    def langevin(
        self,
        W: Tensor,
        b: Tensor,
        trace: Tensor,
        *,
        keys: NDArray[np.uint64],
        nbeta: Tensor,
        lr: Tensor,
        localization: Tensor,
        n_burnin: int,
    ) -> Tensor:
        """Run Langevin chains in place: n_burnin steps, then a step for each draw of `trace`.

        The module docstring of `kgon.llc.langevin` has the definition.

        Args:
            W, b: the starts of the chains, and the centres of the localization.
            trace: (n_stack, n_runs, n_draws), filled with the losses of the draws.
            keys: (n_stack, n_runs), streams of the chains' noise.
            nbeta, lr, localization: (n_runs).
            n_burnin: steps before the first draw.

        Returns:
            The mean MALA acceptance (n_stack, n_runs) of the steps from draw to draw; NaN for a
            single draw.
        """
        acceptance = trace.new_empty(trace.shape[:2])
        stacks = [W, b, trace, acceptance, torch.from_numpy(keys)]
        self._share_out(
            exact_loops.langevin, n_burnin + trace.shape[2], stacks, [nbeta, lr, localization],
            n_burnin,
        )  # fmt: skip
        return acceptance

    def _share_out(
        self,
        loop: Callable[..., None],
        evaluations: int,
        stacks: list[Tensor],
        settings: list[Tensor] | None = None,
        *rest: Any,
    ) -> None:
        """Call a compiled loop on slices of the parameters, on several threads if that pays.

        `evaluations` is the number of times that the loop evaluates the loss of a parameter. Stacks
        are (n_stack, n_runs, ...), settings (n_runs, ...); the loop gets both as (n_parameters,
        ...).
        """
        n_stack, n_runs = stacks[0].shape[:2]
        whole = [stack.contiguous() for stack in stacks]
        arrays = [stack.view(n_stack * n_runs, *stack.shape[2:]).numpy() for stack in whole]
        for setting in [*(each.numpy() for each in settings or []), self.data_set]:
            arrays.append(np.tile(setting, (n_stack, *[1] * (setting.ndim - 1))))

        def run(part: slice) -> None:
            loop(*(array[part] for array in arrays), *rest, *self.tables.lookup)

        seconds = evaluations * _SECONDS_A_PAIR * self.tables.n_features**2
        share_out(run, n_stack * n_runs, seconds)
        for stack, copy in zip(stacks, whole, strict=True):
            if copy is not stack:
                stack.copy_(copy)


class CompiledLoss:
    """A compiled form of an exact loss, with the same signature.

    It computes in float64 whatever the dtype of the parameters.

    Raises:
        ValueError: `loss` is not a `PopulationLoss` or an `EmpiricalLoss` on a CPU.
    """

    def __init__(self, loss: Loss, n_features: int):
        compiled = tables(loss, n_features)
        if compiled is None:
            raise ValueError(
                f"{type(loss).__name__} has no compiled form: only PopulationLoss and "
                "EmpiricalLoss on a CPU have one"
            )
        self.loss = loss
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
