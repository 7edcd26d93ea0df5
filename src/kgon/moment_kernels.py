"""Compiled loops over stacks of parameters: the population loss and the exact empirical loss.

`PopulationLoss` and `EmpiricalLoss` define the mathematics (their module's docstring has the
formula); here it is one scalar loop a parameter, with parameters shared out over threads, because
tensor operations on 2 x 6 matrices are nearly all overhead. A sampler's leapfrog trajectories and
the descent to a critical point run inside the loop as well.

Shapes: W (*batch, n_hidden, n_features) and b (*batch, n_features), float64 on a CPU; the axes of
several data sets are the last of *batch. Inside, W is (n_stack, n_sets, n_hidden, n_features).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.loss import Loss
from kgon.moment_tables import Tables, bucket, tables
from kgon.streams import normals, unit
from kgon.threads import share_out

# As in `kernels`: fused multiply-adds, no reassociation, no assumption that numbers are finite.
_jit = functools.partial(
    numba.njit, cache=True, nogil=True, error_model="numpy", fastmath={"contract"}
)

_SECONDS_A_PAIR = 15e-9
"""What a pair of features costs of one value and gradient, about: whether threads pay."""

JITTER = (0.6, 1.2)
"""Range of a trajectory's step size in units of the adapted one: trajectories of one length could
return to where they started."""
_JITTER_LOW, _JITTER_HIGH = JITTER


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"}, inline="always")
def _loss(
    m, n, population, w, c, dw, dc, A, dA,
    nodes, total, start, low, high, scale, importance, depth,
):  # fmt: skip
    """The loss of one parameter (w, c) on one data set, its gradient into dw and dc."""
    n_buckets = start.shape[1] - 1
    for i in range(n):
        for j in range(i + 1):
            a = 0.0
            for k in range(m):
                a += w[k, i] * w[k, j]
            A[i, j] = a
            A[j, i] = a
    out = 0.0
    for i in range(n):
        bias = c[i]
        row, slope = 0.0, 0.0
        for j in range(n):
            a = A[i, j]
            # Without slope the output is active always or never: at a threshold of -+infinity.
            t = -bias / a if a != 0.0 else (-np.inf if bias > 0.0 else np.inf)
            # Most outputs are off at every amplitude or on at every one: worth the branches.
            if t < low[j] if a < 0.0 else t >= high[j]:
                if i == j:
                    row += total[j, 2]
                dA[i, j] = 0.0
                continue
            if t < low[j] if a >= 0.0 else t >= high[j]:
                m0, m1, m2 = total[j, 0], total[j, 1], total[j, 2]
            else:
                if population:
                    t = t if t > 0.0 else 0.0
                    t = t if t < 1.0 else 1.0
                    m0 = (1.0 - t) * total[j, 0]
                    m1 = (1.0 - t * t) * total[j, 1]
                    m2 = (1.0 - t * t * t) * total[j, 2]
                else:
                    q = bucket(t, low[j], scale[j], n_buckets)
                    first, last = start[j, q], start[j, q + 1]
                    # Bisection of a fixed length without branches, which nothing could predict.
                    for _ in range(depth):
                        middle = (first + last) >> 1
                        above = (first < last) & (nodes[j, middle, 0] <= t)
                        first = middle + 1 if above else first
                        last = last if above else middle
                    m0, m1, m2 = nodes[j, first, 1], nodes[j, first, 2], nodes[j, first, 3]
                if a < 0.0:
                    m0, m1, m2 = total[j, 0] - m0, total[j, 1] - m1, total[j, 2] - m2
            u = a * m2 + bias * m1
            v = a * m1 + bias * m0
            row += a * u + bias * v
            slope += v
            if i == j:
                row += total[j, 2] - 2.0 * u
                slope -= m1
                u -= m2
            dA[i, j] = 2.0 * importance[i] * u
        out += importance[i] * row
        dc[i] = 2.0 * importance[i] * slope
    for i in range(n):
        for j in range(i + 1):
            a = dA[i, j] + dA[j, i]
            A[i, j] = a
            A[j, i] = a
    for k in range(m):
        for j in range(n):
            a = 0.0
            for i in range(n):
                a += w[k, i] * A[i, j]
            dw[k, j] = a
    return out


@functools.cache
def _value_and_grad(m: int, n: int, population: bool) -> Any:
    # m, n and population are constants of the compiled code: loops unroll, branches go.
    @_jit
    def value_and_grad(
        W,
        b,
        value,
        dW,
        db,
        which,
        nodes,
        total,
        start,
        low,
        high,
        scale,
        importance,
        depth,
    ):
        A, dA = np.empty((n, n)), np.empty((n, n))
        for s in range(W.shape[1]):
            d = which[s]
            for p in range(W.shape[0]):
                value[p, s] = _loss(
                    m, n, population, W[p, s], b[p, s], dW[p, s], db[p, s], A, dA,
                    nodes[d], total[d],
                    start[d], low[d], high[d], scale[d], importance[d], depth,
                )  # fmt: skip

    return value_and_grad


@functools.cache
def _hmc_move(m: int, n: int, population: bool) -> Any:
    dim = m * n + n
    even = dim + dim % 2

    @_jit
    def hmc_move(
        W, b, value, acceptance, keys, strength, precision, step, n_steps, turn,
        which, nodes, total, start, low, high, scale, importance, depth,
    ):  # fmt: skip
        A, dA = np.empty((n, n)), np.empty((n, n))
        w, dw, pw = np.empty((m, n)), np.empty((m, n)), np.empty((m, n))
        c, dc, pc = np.empty(n), np.empty(n), np.empty(n)
        momentum = np.empty((1, even))
        for s in range(W.shape[1]):
            if step[s] == 0.0:
                continue
            d = which[s]
            for p in range(W.shape[0]):
                counter = turn * (even + 2)
                normals(keys[p, s : s + 1], counter, momentum)
                jitter = unit(keys[p, s], counter + even)
                threshold = np.log(unit(keys[p, s], counter + even + 1))
                h = step[s] * (_JITTER_LOW + (_JITTER_HIGH - _JITTER_LOW) * jitter)
                prior, kinetic = 0.0, 0.0
                for j in range(n):
                    c[j] = b[p, s, j]
                    pc[j] = momentum[0, m * n + j]
                    prior += c[j] * c[j]
                    kinetic += pc[j] * pc[j]
                    for k in range(m):
                        w[k, j] = W[p, s, k, j]
                        pw[k, j] = momentum[0, k * n + j]
                        prior += w[k, j] * w[k, j]
                        kinetic += pw[k, j] * pw[k, j]
                before = strength[s] * value[p, s] + 0.5 * (precision * prior + kinetic)
                new = 0.0
                for t in range(n_steps + 1):
                    new = _loss(
                        m, n, population, w, c, dw, dc, A, dA, nodes[d], total[d],
                        start[d], low[d], high[d], scale[d], importance[d], depth,
                    )  # fmt: skip
                    kick = h if 0 < t < n_steps else 0.5 * h
                    drift = h if t < n_steps else 0.0
                    for j in range(n):
                        pc[j] -= kick * (strength[s] * dc[j] + precision * c[j])
                        c[j] += drift * pc[j]
                        for k in range(m):
                            pw[k, j] -= kick * (strength[s] * dw[k, j] + precision * w[k, j])
                            w[k, j] += drift * pw[k, j]
                prior, kinetic = 0.0, 0.0
                for j in range(n):
                    prior += c[j] * c[j]
                    kinetic += pc[j] * pc[j]
                    for k in range(m):
                        prior += w[k, j] * w[k, j]
                        kinetic += pw[k, j] * pw[k, j]
                gain = before - strength[s] * new - 0.5 * (precision * prior + kinetic)
                # A diverged trajectory has a NaN or infinite energy and is rejected.
                acceptance[p, s] = np.exp(min(gain, 0.0)) if gain == gain else 0.0
                if threshold < gain:
                    value[p, s] = new
                    for j in range(n):
                        b[p, s, j] = c[j]
                        for k in range(m):
                            W[p, s, k, j] = w[k, j]

    return hmc_move


@functools.cache
def _descend(m: int, n: int, population: bool) -> Any:
    @_jit
    def descend(
        W, b, value, slope, taken, tolerance, n_steps,
        which, nodes, total, start, low, high, scale, importance, depth,
    ):  # fmt: skip
        A, dA = np.empty((n, n)), np.empty((n, n))
        w, dw, dw_new = np.empty((m, n)), np.empty((m, n)), np.empty((m, n))
        c, dc, dc_new = np.empty(n), np.empty(n), np.empty(n)
        for s in range(W.shape[1]):
            d = which[s]
            for p in range(W.shape[0]):
                old = _loss(
                    m, n, population, W[p, s], b[p, s], dw, dc, A, dA,
                    nodes[d], total[d],
                    start[d], low[d], high[d], scale[d], importance[d], depth,
                )  # fmt: skip
                h = 0.1
                t = 0
                while True:
                    square = 0.0
                    for j in range(n):
                        square += dc[j] * dc[j]
                        for k in range(m):
                            square += dw[k, j] * dw[k, j]
                    if t >= n_steps or not square > tolerance * tolerance:
                        break
                    t += 1
                    for j in range(n):
                        c[j] = b[p, s, j] - h * dc[j]
                        for k in range(m):
                            w[k, j] = W[p, s, k, j] - h * dw[k, j]
                    new = _loss(
                        m, n, population, w, c, dw_new, dc_new, A, dA,
                        nodes[d], total[d],
                        start[d], low[d], high[d], scale[d], importance[d], depth,
                    )  # fmt: skip
                    if new <= old - 0.5 * h * square:
                        old = new
                        h *= 1.2
                        for j in range(n):
                            b[p, s, j] = c[j]
                            dc[j] = dc_new[j]
                            for k in range(m):
                                W[p, s, k, j] = w[k, j]
                                dw[k, j] = dw_new[k, j]
                    else:
                        h *= 0.5
                value[p, s] = old
                slope[p, s] = np.sqrt(square)
                taken[p, s] = t

    return descend


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
        self._share_out(_value_and_grad(*self.size), (W, b, value, dW, db))
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

        `posterior._TorchMover` is the definition.
        """
        acceptance = torch.zeros_like(value)
        self._share_out(
            _hmc_move(*self.size),
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
        self._share_out(_descend(*self.size), (W, b, value, slope, taken), tolerance, n_steps)
        return value, slope, taken

    def _share_out(
        self, kernel: Callable[..., None], stacks: tuple[Tensor, ...], *rest: Any
    ) -> None:
        """Run `kernel` with the stacks' first axis cut into one part a thread."""

        def run(part: slice) -> None:
            kernel(
                *(stack[part].numpy() for stack in stacks),
                *rest,
                self.which,
                *self.tables.arguments,
            )

        n_stack, n_runs = stacks[0].shape[:2]
        share_out(run, n_stack, n_runs * _SECONDS_A_PAIR * self.size[1] ** 2)


class CompiledLoss:
    """An exact loss with the same signature and a compiled `value_and_grad`.

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
        """The loss, (*batch)."""
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (*batch) and its gradient."""
        batch, n_sets = b.shape[:-1], len(self.tables.total)
        if W.dtype != torch.float64 or math.prod(batch) % n_sets:
            raise ValueError(
                f"parameters must be float64 and their batch axes {tuple(batch)} must end in the "
                f"{n_sets} data sets'; got {W.dtype}"
            )
        kernel = Kernel(self.tables, W.shape[-2], n_sets)
        value, dW, db = kernel.value_and_grad(
            W.detach().reshape(-1, n_sets, *W.shape[-2:]).contiguous(),
            b.detach().reshape(-1, n_sets, b.shape[-1]).contiguous(),
        )
        return value.reshape(batch), dW.reshape(W.shape), db.reshape(b.shape)
