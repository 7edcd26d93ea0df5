"""Compiled loops over stacks of parameters under the population or the exact empirical loss.

`PopulationLoss` and `EmpiricalLoss` define the mathematics (their module's docstring has the
formula); here it is one scalar loop a parameter, because tensor operations on 2 x 6 matrices are
nearly all overhead. A chain's Langevin steps, a sampler's leapfrog trajectories and the descent to
a critical point run inside the loop as well: a parameter does all of its steps before the next one
starts, so it and the place where it looks up stay in the cache, however many parameters and samples
there are. `kgon.compiled_loss.Kernel` calls them.

Shapes: W (n_stack, n_runs, n_hidden, n_features), b (n_stack, n_runs, n_features), `which` (n_runs)
the data set of a run; the arrays behind it are those of `moment_tables.Tables`.
"""

import functools
from typing import Any

import numba
import numpy as np

from kgon.moment_tables import bucket
from kgon.streams import normals, unit

# As in `kernels`: fused multiply-adds, no reassociation, no assumption that numbers are finite.
_jit = functools.partial(
    numba.njit, cache=True, nogil=True, error_model="numpy", fastmath={"contract"}
)

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
def value_and_grad(m: int, n: int, population: bool) -> Any:
    # m, n and population are constants of the compiled code: loops unroll, branches go.
    @_jit
    def run(
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

    return run


@functools.cache
def hmc_move(m: int, n: int, population: bool) -> Any:
    dim = m * n + n
    even = dim + dim % 2

    @_jit
    def run(
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

    return run


@functools.cache
def descend(m: int, n: int, population: bool) -> Any:
    @_jit
    def run(
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

    return run


@functools.cache
def langevin(m: int, n: int, population: bool) -> Any:
    dim = m * n + n
    even = dim + dim % 2

    @_jit
    def run(
        W, b, keys, trace, acceptance, nbeta, lr, localization, n_burnin, probe_every,
        which, nodes, total, start, low, high, scale, importance, depth,
    ):  # fmt: skip
        A, dA = np.empty((n, n)), np.empty((n, n))
        # The chain, its centre, the force on it (the gradient of its energy), and the last two of
        # these at a probe; W and b in one row as in the noise.
        w, dw, c, dc = np.empty((m, n)), np.empty((m, n)), np.empty(n), np.empty(n)
        x, centre, force = np.empty(dim), np.empty(dim), np.empty(dim)
        old_x, old_force = np.empty(dim), np.empty(dim)
        noise = np.empty((1, even))
        for s in range(W.shape[1]):
            d = which[s]
            half, root, pull = 0.5 * lr[s], np.sqrt(lr[s]), localization[s]
            for p in range(W.shape[0]):
                for j in range(n):
                    centre[m * n + j] = b[p, s, j]
                    for k in range(m):
                        centre[k * n + j] = W[p, s, k, j]
                x[:] = centre
                accepted, probes, probing, old_energy = 0.0, 0, False, 0.0
                for t in range(n_burnin + trace.shape[2]):
                    for j in range(n):
                        c[j] = x[m * n + j]
                        for k in range(m):
                            w[k, j] = x[k * n + j]
                    value = _loss(
                        m, n, population, w, c, dw, dc, A, dA, nodes[d], total[d],
                        start[d], low[d], high[d], scale[d], importance[d], depth,
                    )  # fmt: skip
                    for j in range(n):
                        force[m * n + j] = dc[j]
                        for k in range(m):
                            force[k * n + j] = dw[k, j]
                    for i in range(dim):
                        force[i] = nbeta[s] * force[i] + pull * (x[i] - centre[i])
                    draw = t - n_burnin
                    if draw >= 0:
                        trace[p, s, draw] = value
                    if draw >= 0 and (probing or draw % probe_every == 0):
                        away, forth, back = 0.0, 0.0, 0.0
                        for i in range(dim):
                            away += (x[i] - centre[i]) ** 2
                        energy = nbeta[s] * value + 0.5 * pull * away
                        if probing:
                            for i in range(dim):
                                step = x[i] - old_x[i]
                                forth += (step + half * old_force[i]) ** 2
                                back += (half * force[i] - step) ** 2
                            gain = old_energy - energy + (forth - back) / (2.0 * lr[s])
                            # Written so that a NaN goes through.
                            accepted += np.exp(0.0 if gain > 0.0 else gain)
                            probes += 1
                        else:
                            old_energy = energy
                            old_x[:] = x
                            old_force[:] = force
                        probing = not probing
                    normals(keys[p, s : s + 1], t * even, noise)
                    for i in range(dim):
                        x[i] += root * noise[0, i] - half * force[i]
                acceptance[p, s] = accepted / probes
                for j in range(n):
                    b[p, s, j] = x[m * n + j]
                    for k in range(m):
                        W[p, s, k, j] = x[k * n + j]

    return run
