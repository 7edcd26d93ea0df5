"""Compiled loops over stacks of parameters under the population or the exact empirical loss.

`PopulationLoss` and `EmpiricalLoss` define the mathematics (their module's docstring has the
formula); here it is one scalar loop a parameter, because tensor operations on 2 x 6 matrices are
nearly all overhead. A chain's Langevin steps, a sampler's leapfrog trajectories and the descent to
a critical point run inside the loop as well: a parameter does all of its steps before the next one
starts, so it and the place where it looks up stay in the cache, however many parameters and samples
there are. `kgon.compiled_loss.Kernel` calls them.

Shapes: W (n_stack, n_runs, n_hidden, n_features), b (n_stack, n_runs, n_features), `which` (n_runs)
the data set of a run, `tables` those of `moment_tables.Tables`, `runs` the first run and the one
after the last. Inside a loop W and b are one row of n_hidden * n_features + n_features numbers, at
places that the compiler knows.
"""

import functools
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_item_pointer, get_or_insert_function
from numba.extending import intrinsic

from kgon.moment_tables import COUNT, SLOTS, bucket
from kgon.scratch import arrays
from kgon.streams import normals, unit

# As in `kernels`: fused multiply-adds, no reassociation, no assumption that numbers are finite.
_RULES = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_jit = functools.partial(numba.njit, cache=True, **_RULES)
_inline = functools.partial(numba.njit, inline="always", **_RULES)

_NOISY_STEPS = 16
"""Steps of a chain whose noise is drawn at once."""

JITTER = (0.6, 1.2)
"""Range of a trajectory's step size in units of the adapted one: trajectories of one length could
return to where they started."""
_JITTER_LOW, _JITTER_HIGH = JITTER


@_inline
def _load(m, n, W, b, x):
    for k in range(m):
        for j in range(n):
            x[k * n + j] = W[k, j]
    for j in range(n):
        x[m * n + j] = b[j]


@_inline
def _store(m, n, x, W, b):
    for k in range(m):
        for j in range(n):
            W[k, j] = x[k * n + j]
    for j in range(n):
        b[j] = x[m * n + j]


@_inline
def _copy(x, out):
    # With out[:] = x the compiler would translate two seconds of error messages.
    for i in range(x.size):
        out[i] = x[i]


@_inline
def _square(x):
    out = 0.0
    for i in range(x.size):
        out += x[i] * x[i]
    return out


@_inline
def _data_set(tables, d):
    """The tables of data set d."""
    lines, ordered, tails, total, low, high, scale, last, weight, importance = tables
    return (
        lines[d], ordered[d], (tails[0][d], tails[1][d], tails[2][d]), total[d], low[d], high[d],
        scale[d], last[d], weight, importance[d],
    )  # fmt: skip


@intrinsic
def _prefetch(typing, lines, q):
    """Ask the memory for line q without waiting, so that all of a loss's lines come together."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        line = get_item_pointer(
            context, builder, signature.args[0], array, [arguments[1], arguments[1].type(0)]
        )
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        instruction = get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0i8",
        )
        # For reading, into every level of the cache, data.
        builder.call(instruction, [builder.bitcast(line, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(lines, types.intp), generate


@_inline
def _up_to(t, line):
    """Number, sum and sum of squares of the amplitudes up to t in a line."""
    number, first_power, second_power = 0.0, 0.0, 0.0
    for slot in range(SLOTS[0], SLOTS[1]):
        amplitude = line[slot]
        # Multiplied by, because nobody can predict this branch.
        counts = 1.0 if amplitude <= t else 0.0
        number += counts
        counts *= amplitude
        first_power += counts
        second_power += counts * amplitude
    return number, first_power, second_power


@_inline
def _loss(m, n, population, x, g, room, data_set):
    """The loss of one parameter x on one data set, its gradient into g."""
    (A, dA, threshold), (place,) = room
    lines, ordered, tails, total, low, high, scale, last, weight, importance = data_set
    for i in range(n):
        for j in range(i + 1):
            a = 0.0
            for k in range(m):
                a += x[k * n + i] * x[k * n + j]
            A[i * n + j] = a
            A[j * n + i] = a
    for i in range(n):
        bias = x[m * n + i]
        for j in range(n):
            a = A[i * n + j]
            # Without slope the output is active always or never: at a threshold of -+infinity.
            t = -bias / a if a != 0.0 else (-np.inf if bias > 0.0 else np.inf)
            threshold[i * n + j] = t
            if not population:
                place[i * n + j] = bucket(t, low[j], scale[j], last[j])
    if not population:
        for i in range(n):
            for j in range(n):
                _prefetch(lines[j], place[i * n + j])
    out = 0.0
    for i in range(n):
        bias = x[m * n + i]
        row, slope = 0.0, 0.0
        for j in range(n):
            a, t = A[i * n + j], threshold[i * n + j]
            # Most outputs are off at every amplitude or on at every one: worth the branches.
            if t < low[j] if a < 0.0 else t >= high[j]:
                if i == j:
                    row += total[j, 2]
                dA[i * n + j] = 0.0
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
                    line = lines[j, place[i * n + j]]
                    if line[COUNT] <= SLOTS[1] - SLOTS[0]:
                        number, first_power, second_power = _up_to(t, line)
                        m0 = line[0] - weight * number
                        m1 = line[1] - weight * first_power
                        m2 = line[2] - weight * second_power
                    else:
                        first = np.int64(line[SLOTS[0]])
                        end = first + np.int64(line[COUNT])
                        while first < end:
                            middle = (first + end) >> 1
                            if ordered[j, middle] <= t:
                                first = middle + 1
                            else:
                                end = middle
                        m0, m1, m2 = tails[0][j, first], tails[1][j, first], tails[2][j, first]
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
            dA[i * n + j] = 2.0 * importance[i] * u
        out += importance[i] * row
        g[m * n + i] = 2.0 * importance[i] * slope
    for i in range(n):
        for j in range(i + 1):
            a = dA[i * n + j] + dA[j * n + i]
            A[i * n + j] = a
            A[j * n + i] = a
    for k in range(m):
        for j in range(n):
            a = 0.0
            for i in range(n):
                a += x[k * n + i] * A[i * n + j]
            g[k * n + j] = a
    return out


@functools.cache
def value_and_grad(m: int, n: int, population: bool) -> Any:
    # m, n and population are constants of the compiled code: loops unroll, branches go.
    dim, pairs = m * n + n, n * n

    @_jit
    def run(W, b, value, dW, db, which, tables, runs):
        x, g = arrays(2, dim, np.float64)
        room = arrays(3, pairs, np.float64), arrays(1, pairs, np.int32)
        for s in range(runs[0], runs[1]):
            data_set = _data_set(tables, which[s])
            for p in range(W.shape[0]):
                _load(m, n, W[p, s], b[p, s], x)
                value[p, s] = _loss(m, n, population, x, g, room, data_set)
                _store(m, n, g, dW[p, s], db[p, s])

    return run


@functools.cache
def hmc_move(m: int, n: int, population: bool) -> Any:
    dim, pairs = m * n + n, n * n
    even = dim + dim % 2

    @_jit
    def run(
        W, b, value, acceptance, keys, strength, precision, step, n_steps, turn,
        which, tables, runs,
    ):  # fmt: skip
        x, g = arrays(2, dim, np.float64)
        room = arrays(3, pairs, np.float64), arrays(1, pairs, np.int32)
        noise = np.empty((1, even))
        momentum = noise[0, :dim]
        for s in range(runs[0], runs[1]):
            if step[s] == 0.0:
                continue
            data_set = _data_set(tables, which[s])
            heat = strength[s]
            for p in range(W.shape[0]):
                counter = turn * (even + 2)
                normals(keys[p, s : s + 1], counter, noise)
                jitter = unit(keys[p, s], counter + even)
                threshold = np.log(unit(keys[p, s], counter + even + 1))
                h = step[s] * (_JITTER_LOW + (_JITTER_HIGH - _JITTER_LOW) * jitter)
                _load(m, n, W[p, s], b[p, s], x)
                before = heat * value[p, s] + 0.5 * (precision * _square(x) + _square(momentum))
                new = 0.0
                for t in range(n_steps + 1):
                    new = _loss(m, n, population, x, g, room, data_set)
                    kick = h if 0 < t < n_steps else 0.5 * h
                    drift = h if t < n_steps else 0.0
                    for i in range(dim):
                        momentum[i] -= kick * (heat * g[i] + precision * x[i])
                        x[i] += drift * momentum[i]
                after = heat * new + 0.5 * (precision * _square(x) + _square(momentum))
                gain = before - after
                # A diverged trajectory has a NaN or infinite energy and is rejected.
                acceptance[p, s] = np.exp(min(gain, 0.0)) if gain == gain else 0.0
                if threshold < gain:
                    value[p, s] = new
                    _store(m, n, x, W[p, s], b[p, s])

    return run


@functools.cache
def descend(m: int, n: int, population: bool) -> Any:
    dim, pairs = m * n + n, n * n

    @_jit
    def run(W, b, value, slope, taken, tolerance, n_steps, which, tables, runs):
        x, g, next_x, next_g = arrays(4, dim, np.float64)
        room = arrays(3, pairs, np.float64), arrays(1, pairs, np.int32)
        for s in range(runs[0], runs[1]):
            data_set = _data_set(tables, which[s])
            for p in range(W.shape[0]):
                _load(m, n, W[p, s], b[p, s], next_x)
                old, h, square, t = 0.0, 0.1, 0.0, 0
                while True:
                    new = _loss(m, n, population, next_x, next_g, room, data_set)
                    if t == 0 or new <= old - 0.5 * h * square:
                        h *= 1.2 if t > 0 else 1.0
                        old = new
                        x, next_x = next_x, x
                        g, next_g = next_g, g
                        square = _square(g)
                    else:
                        h *= 0.5
                    if t == n_steps or not square > tolerance * tolerance:
                        break
                    t += 1
                    for i in range(dim):
                        next_x[i] = x[i] - h * g[i]
                value[p, s] = old
                slope[p, s] = np.sqrt(square)
                taken[p, s] = t
                _store(m, n, x, W[p, s], b[p, s])

    return run


@functools.cache
def langevin(m: int, n: int, population: bool) -> Any:
    dim, pairs = m * n + n, n * n
    even = dim + dim % 2

    @_jit
    def run(
        W, b, keys, trace, acceptance, nbeta, lr, localization, n_burnin, probe_every,
        which, tables, runs,
    ):  # fmt: skip
        x, centre, force, old_x, old_force = arrays(5, dim, np.float64)
        room = arrays(3, pairs, np.float64), arrays(1, pairs, np.int32)
        noise = np.empty((1, _NOISY_STEPS * even))
        for s in range(runs[0], runs[1]):
            data_set = _data_set(tables, which[s])
            beta, half, root, pull = nbeta[s], 0.5 * lr[s], np.sqrt(lr[s]), localization[s]
            for p in range(W.shape[0]):
                _load(m, n, W[p, s], b[p, s], x)
                _copy(x, centre)
                accepted, probes, probing, old_energy = 0.0, 0, False, 0.0
                for t in range(n_burnin + trace.shape[2]):
                    value = _loss(m, n, population, x, force, room, data_set)
                    for i in range(dim):
                        force[i] = beta * force[i] + pull * (x[i] - centre[i])
                    draw = t - n_burnin
                    if draw >= 0:
                        trace[p, s, draw] = value
                    if draw >= 0 and (probing or draw % probe_every == 0):
                        away, forth, back = 0.0, 0.0, 0.0
                        for i in range(dim):
                            away += (x[i] - centre[i]) ** 2
                        energy = beta * value + 0.5 * pull * away
                        if probing:
                            for i in range(dim):
                                step = x[i] - old_x[i]
                                forth += (step + half * old_force[i]) ** 2
                                back += (half * force[i] - step) ** 2
                            gain = old_energy - energy + (forth - back) / (4.0 * half)
                            # Written so that a NaN goes through.
                            accepted += np.exp(0.0 if gain > 0.0 else gain)
                            probes += 1
                        else:
                            old_energy = energy
                            _copy(x, old_x)
                            _copy(force, old_force)
                        probing = not probing
                    ahead = t % _NOISY_STEPS * even
                    if ahead == 0:
                        normals(keys[p, s : s + 1], t * even, noise)
                    for i in range(dim):
                        x[i] += root * noise[0, ahead + i] - half * force[i]
                acceptance[p, s] = accepted / probes
                _store(m, n, x, W[p, s], b[p, s])

    return run
