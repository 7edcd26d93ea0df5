"""The exact losses compiled, with what runs inside the loop: chains, trajectories, descents.

Shapes: W (*batch, n_hidden, n_features) and b (*batch, n_features) on a CPU; the axes of several
data sets are the last of *batch. A `Kernel` takes them as (n_stack, n_runs, ...) and shares the
stack out over threads.
"""

from collections.abc import Callable
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
"""What a pair of features costs of one value and gradient, about: whether threads pay."""


class Kernel:
    """The compiled functions of one loss for stacks of parameters with n_hidden rows.

    Run s of a stack uses data set s % n_sets: data sets are the last of its axes.
    """

    def __init__(self, tables: Tables, n_hidden: int, n_runs: int):
        n_sets, n_features = tables.total.shape[:2]
        self.tables = tables
        self.size = (n_hidden, n_features, tables.population)
        self.which = np.arange(n_runs) % n_sets

    def value(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (n_stack, n_runs)."""
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n_stack, n_runs) and its gradient."""
        value, dW, db = W.new_empty(W.shape[:2]), torch.empty_like(W), torch.empty_like(b)
        self._share_out(1, exact_loops.value_and_grad(*self.size), (W, b, value, dW, db))
        return value, dW, db

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
        """One trajectory of every parameter, in place, and its acceptance probability.

        `hmc.TorchMover` is the definition.
        """
        acceptance = torch.zeros_like(value)
        self._share_out(
            n_leapfrog,
            exact_loops.hmc_move(*self.size),
            (W, b, value, acceptance, torch.from_numpy(keys)),
            strength.numpy(), precision, step.numpy(), n_leapfrog, turn,
        )  # fmt: skip
        return acceptance

    def descend(
        self, W: Tensor, b: Tensor, *, tolerance: float, n_steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient descent in place until the gradient's norm is below `tolerance`.

        The step size is found as it goes: it grows by a fifth after a step that brings at least
        half of what the slope promises, and is halved, the step not taken, after one that does not.
        So the path stays close to the gradient flow and does not hop between basins.

        Returns:
            The loss, the gradient's norm and the number of steps, each (n_stack, n_runs).
        """
        value, slope, taken = (W.new_empty(W.shape[:2]) for _ in range(3))
        self._share_out(
            n_steps,
            exact_loops.descend(*self.size),
            (W, b, value, slope, taken),
            tolerance, n_steps,
        )  # fmt: skip
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
        probe_every: int,
    ) -> Tensor:
        """Langevin chains from W and b, in place, n_burnin steps and as many as `trace` has draws.

        `kgon.llc.langevin` has the definition and calls this.

        Args:
            W, b: the chains' starts, which are their centres too.
            trace: (n_stack, n_runs, n_draws), filled with the losses of the draws.
            keys: (n_stack, n_runs), of the chains' noise.
            nbeta, lr, localization: (n_runs).
            n_burnin: steps before the first draw.
            probe_every: draws between two probes of the acceptance.

        Returns:
            The mean acceptance (n_stack, n_runs), NaN without a probe.
        """
        acceptance = trace.new_empty(trace.shape[:2])
        self._share_out(
            n_burnin + trace.shape[2],
            exact_loops.langevin(*self.size),
            (W, b, torch.from_numpy(keys), trace, acceptance),
            nbeta.numpy(), lr.numpy(), localization.numpy(), n_burnin, probe_every,
        )  # fmt: skip
        return acceptance

    def _share_out(
        self,
        evaluations: int,
        kernel: Callable[..., None],
        stacks: tuple[Tensor, ...],
        *rest: Any,
    ) -> None:
        """Run `kernel`, which makes so many evaluations a parameter, with the longer of the stacks'
        two axes cut into one part a thread."""
        n_stack, n_runs = stacks[0].shape[:2]
        seconds = evaluations * _SECONDS_A_PAIR * self.size[1] ** 2

        def run(stack: slice, runs: slice) -> None:
            kernel(
                *(each[stack].numpy() for each in stacks),
                *rest,
                self.which,
                self.tables.arguments,
                (runs.start, runs.stop),
            )

        if n_runs > n_stack:
            share_out(lambda part: run(slice(None), part), n_runs, n_stack * seconds)
        else:
            share_out(lambda part: run(part, slice(0, n_runs)), n_stack, n_runs * seconds)


class CompiledLoss:
    """An exact loss with the same signature, in float64 whatever the parameters' dtype is, and a
    compiled `value_and_grad`.

    Raises:
        ValueError: `loss` is not a `PopulationLoss` or an `EmpiricalLoss` on a CPU.
    """

    def __init__(self, loss: Loss, n_features: int):
        compiled = tables(loss, n_features)
        if compiled is None:
            raise ValueError(
                f"{type(loss).__name__} has no compiled form, only PopulationLoss and "
                "EmpiricalLoss on a CPU have"
            )
        self.loss = loss
        self.tables = compiled

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (*batch) in float64."""
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (*batch) in float64 and its gradient in the parameters' dtype."""
        n_sets, n_features = self.tables.total.shape[:2]
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
        kernel = Kernel(self.tables, W.shape[-2], n_sets)
        value, dW, db = kernel.value_and_grad(
            W.detach().double().reshape(-1, n_sets, *W.shape[-2:]).contiguous(),
            b.detach().double().reshape(-1, n_sets, n_features).contiguous(),
        )
        return value.reshape(batch), dW.reshape(W.shape).to(W), db.reshape(b.shape).to(b)
