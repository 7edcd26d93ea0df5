"""Compiled loops over stacks of parameters under the population or the exact empirical loss.

`PopulationLoss` and `EmpiricalLoss` define the mathematics (their module's docstring has the
formula); here it is one loop over small groups of parameters, because tensor operations on 2 x 6
matrices are nearly all overhead. A chain's Langevin steps, a sampler's leapfrog trajectories and
the descent to a critical point run inside the loop as well: a group does all of its steps before
the next one starts, so it and the place where it looks up stay in the cache, however many
parameters and samples there are. `kgon.compiled_loss.Kernel` calls them.

Shapes: W (n_stack, n_runs, n_hidden, n_features), b (n_stack, n_runs, n_features), `which` (n_runs)
the data set of a run, `tables` those of `moment_tables.Tables`, `runs` the first run and the one
after the last. Inside a loop a group is `lanes` parameters side by side, so that the processor's
vector instructions work on several at once: number q of lane l stands at place q * lanes + l, the
n_hidden * n_features numbers of W first, then those of b. Every lane goes through the same
arithmetic, so a parameter's results do not depend on who is in the others.

All of this is one file because numba keeps what it compiled until the function's own file changes,
not until that of a function inlined into it does (`make clean` forgets it).
"""

import functools
import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_item_pointer, get_or_insert_function
from numba.extending import intrinsic

from kgon.moment_tables import COUNT, SLOTS, bucket
from kgon.scratch import arrays
from kgon.streams import noise_pair, normal_pair, unit
from kgon.vectors import broadcast, load, signs_differ, store, total, where_at_most, where_positive

# As in `kernels`: fused multiply-adds, no reassociation, no assumption that numbers are finite.
_RULES = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_jit = functools.partial(numba.njit, cache=True, **_RULES)
_inline = functools.partial(numba.njit, inline="always", **_RULES)

JITTER = (0.6, 1.2)
"""Range of a trajectory's step size in units of the adapted one: trajectories of one length could
return to where they started."""
_JITTER_LOW, _JITTER_HIGH = JITTER

_LANES = 8

_SETS = [[lane for lane in range(_LANES) if mask >> lane & 1] for mask in range(2**_LANES)]
_MEMBERS = np.array([(lanes + [0] * _LANES)[:_LANES] for lanes in _SETS], dtype=np.uint32).ravel()
"""For each mask of lanes, in `_LANES` places, the lanes whose bits are set; how many of them are
(`_N_MEMBERS`)."""
_N_MEMBERS = np.array([len(lanes) for lanes in _SETS], dtype=np.uint8)

_HALF = (SLOTS[1] - SLOTS[0]) // 2
"""Half of the slots of a line: two short vectors are summed sooner than one."""

MOST_FEATURES = 32
"""Beyond, a group does not fit on the stack (`scratch`) and is of one parameter."""


@_inline
def _load(lanes, m, n, W, b, x, lane):
    for k in range(m):
        for j in range(n):
            x[(k * n + j) * lanes + lane] = W[k, j]
    for j in range(n):
        x[(m * n + j) * lanes + lane] = b[j]


@_inline
def _store(lanes, m, n, x, lane, W, b):
    for k in range(m):
        for j in range(n):
            W[k, j] = x[(k * n + j) * lanes + lane]
    for j in range(n):
        b[j] = x[(m * n + j) * lanes + lane]


@_inline
def _normals(lanes, keys, start, out):
    """Fill out, an even number of numbers a lane, with the normal numbers of each lane's stream."""
    for q in range(0, out.size // lanes, 2):
        for lane in range(lanes):
            one, other = normal_pair(keys[lane], start + q)
            out[q * lanes + lane], out[(q + 1) * lanes + lane] = one, other


@_inline
def _noise(lanes, keys, start, out):
    """`_normals`, of the numbers for a step's noise."""
    for q in range(0, out.size // lanes, 2):
        for lane in range(lanes):
            one, other = noise_pair(keys[lane], (start + q) // 2)
            out[q * lanes + lane], out[(q + 1) * lanes + lane] = one, other


@_inline
def _drift(lanes, q, of_gradient, of_distance, g, distance):
    """What a Langevin step takes off parameter q: half the step size times the force."""
    return load(of_gradient, 0, lanes) * load(g, q, lanes) + load(of_distance, 0, lanes) * distance


@_inline
def _twice_energy(lanes, precision, x, momentum, out):
    """|momentum|^2 + precision |x|^2 of each lane."""
    for lane in range(lanes):
        out[lane] = 0.0
    for q in range(x.size // lanes):
        for lane in range(lanes):
            i = q * lanes + lane
            out[lane] += momentum[i] * momentum[i] + precision * x[i] * x[i]


@_inline
def _parameter(e, n_stack, n_all, runs):
    """Place in the stack and run of parameter e of n_all. Those behind the last are the last again,
    so that every group is full."""
    e = min(e, n_all - 1)
    return e % n_stack, runs[0] + e // n_stack


@_inline
def _group(lanes, n, pairs, listed, features):
    """What `_loss` works with, as it takes it apart: numbers of each pair (output i, input j),
    lists of pairs, what is known of each feature of the lanes' data sets, where its lines and tails
    start in the tables, and which data set each lane has: none yet.
    """
    of_pairs = arrays(6, pairs, np.float64)
    lists = arrays(3, listed, np.uint32)
    of_features = arrays(8, features, np.float64)
    starts = arrays(2, features, np.uint64)
    (data_set,) = arrays(1, lanes, np.int64)
    for lane in range(lanes):
        data_set[lane] = -1
    (line_of,) = arrays(1, pairs, np.uint64)
    return of_pairs, (*lists, line_of), of_features, starts, data_set


@_inline
def _take_data_set(lanes, n, group, tables, d, lane):
    """Put into the lane what is known of the features of data set d."""
    width, totals, lows, highs, scales, lasts, importances = tables[4:]
    low, high, scale, last, total0, total1, total2, twice_importance = group[2]
    (first_line, first_tail), data_set = group[3:]
    if data_set[lane] != d:
        data_set[lane] = d
        for j in range(n):
            r, feature = j * lanes + lane, d * n + j
            first_line[r], first_tail[r] = feature * width, feature * (width + 1)
            total0[r], total1[r], total2[r] = totals[d, j, 0], totals[d, j, 1], totals[d, j, 2]
            low[r], high[r], scale[r], last[r] = lows[d, j], highs[d, j], scales[d, j], lasts[d, j]
            twice_importance[r] = 2.0 * importances[d, j]


@intrinsic
def _prefetch(typing, lines, place):
    """Ask the memory for a line without waiting, so that all of a loss's lines come together."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        line = get_item_pointer(context, builder, signature.args[0], array, [arguments[1]])
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
def _loss(lanes, m, n, population, x, g, value, group, tables):
    """The losses (lanes) of parameters x, each on its own data set, into value; their gradients
    into g.

    With u_ij = A_ij M_2 + b_i M_1 and v_ij = A_ij M_1 + b_i M_0, both less M_2 and M_1 where i = j
    is the output's own input, the gradient is D_ij = 2 I_i u_ij by A and s_i = 2 I_i sum_j v_ij by
    b, the M_k held. The loss is quadratic in (A, b), so it is (A D + b s) / 2 and the terms that
    the quadratic form lacks.
    """
    A, u, v, moment1, moment2, threshold = group[0]
    todo, output_of, input_of, line_of = group[1]
    low, high, scale, last, total0, total1, total2, twice_importance = group[2]
    first_line, first_tail = group[3]
    lines, ordered, tails, weight = tables[:4]
    biases = m * n * lanes
    count = np.uint64(0)
    for i in range(n):
        for j in range(i + 1):
            a = load(x, i * lanes, lanes) * load(x, j * lanes, lanes)
            for k in range(1, m):
                a = a + load(x, (k * n + i) * lanes, lanes) * load(x, (k * n + j) * lanes, lanes)
            store(A, (i * n + j) * lanes, a)
            store(A, (j * n + i) * lanes, a)
    for i in range(n):
        bias = load(x, biases + i * lanes, lanes)
        for j in range(n):
            q = (i * n + j) * lanes
            a = load(A, q, lanes)
            # Whether output i is on at the least amplitude and at the largest. Off at both is off
            # at all of them, on at both is on at all; else its threshold is looked up.
            at_low = a * load(low, j * lanes, lanes) + bias
            at_high = a * load(high, j * lanes, lanes) + bias
            m0 = where_positive(at_low, where_positive(at_high, load(total0, j * lanes, lanes)))
            m1 = where_positive(at_low, where_positive(at_high, load(total1, j * lanes, lanes)))
            m2 = where_positive(at_low, where_positive(at_high, load(total2, j * lanes, lanes)))
            store(u, q, a * m2 + bias * m1)
            store(v, q, a * m1 + bias * m0)
            if i == j:
                store(moment1, q, m1)
                store(moment2, q, m2)
            # Without a branch, which nobody could predict.
            crossing = np.uint64(signs_differ(at_low, at_high))
            members = load(_MEMBERS, crossing * np.uint64(_LANES), lanes)
            store(todo, count, broadcast(np.uint32(q), lanes) + members)
            store(output_of, count, broadcast(np.uint32(i * lanes), lanes) + members)
            store(input_of, count, broadcast(np.uint32(j * lanes), lanes) + members)
            count += np.uint64(_N_MEMBERS[crossing])
    for c in range(count):
        threshold[c] = -x[np.uint64(biases) + output_of[c]] / A[todo[c]]
    if not population:
        for c in range(count):
            r = input_of[c]
            place = np.uint64(bucket(threshold[c], low[r], scale[r], last[r]))
            line_of[c] = (first_line[r] + place) * np.uint64(SLOTS[1])
            _prefetch(lines, line_of[c])
    for c in range(count):
        q, o, r, t = todo[c], output_of[c], input_of[c], threshold[c]
        if population:
            t = t if t > 0.0 else 0.0
            t = t if t < 1.0 else 1.0
            m0 = (1.0 - t) * total0[r]
            m1 = (1.0 - t * t) * total1[r]
            m2 = (1.0 - t * t * t) * total2[r]
        else:
            line = line_of[c]
            if lines[line + np.uint64(COUNT)] <= 2 * _HALF:
                limit, one = broadcast(t, _HALF), broadcast(1.0, _HALF)
                left = load(lines, line + np.uint64(SLOTS[0]), _HALF)
                right = load(lines, line + np.uint64(SLOTS[0] + _HALF), _HALF)
                in_left, in_right = (
                    where_at_most(left, limit, one),
                    where_at_most(right, limit, one),
                )
                m0 = lines[line] - weight * total(in_left + in_right)
                in_left, in_right = in_left * left, in_right * right
                m1 = lines[line + np.uint64(1)] - weight * total(in_left + in_right)
                in_left, in_right = in_left * left, in_right * right
                m2 = lines[line + np.uint64(2)] - weight * total(in_left + in_right)
            else:
                place = np.uint64(lines[line + np.uint64(SLOTS[0])])
                end = place + np.uint64(lines[line + np.uint64(COUNT)])
                while place < end:
                    middle = (place + end) >> np.uint64(1)
                    if ordered[first_line[r] + middle] <= t:
                        place = middle + np.uint64(1)
                    else:
                        end = middle
                place += first_tail[r]
                m0, m1, m2 = tails[0][place], tails[1][place], tails[2][place]
        a, bias = A[q], x[np.uint64(biases) + o]
        # Where a < 0 the amplitudes below are on. By arithmetic: nobody could predict a branch.
        sign = math.copysign(1.0, a)
        falling = 0.5 - 0.5 * sign
        m0 = falling * total0[r] + sign * m0
        m1 = falling * total1[r] + sign * m1
        m2 = falling * total2[r] + sign * m2
        u[q] = a * m2 + bias * m1
        v[q] = a * m1 + bias * m0
        moment1[q], moment2[q] = m1, m2
    half, losses = broadcast(0.5, lanes), broadcast(0.0, lanes)
    for i in range(n):
        q, o = (i * n + i) * lanes, i * lanes
        share, u_ii = load(twice_importance, o, lanes), load(u, q, lanes)
        losses = losses + half * share * (load(total2, o, lanes) - u_ii)
        store(u, q, u_ii - load(moment2, q, lanes))
        s = load(v, i * n * lanes, lanes) - load(moment1, q, lanes)
        for j in range(1, n):
            s = s + load(v, (i * n + j) * lanes, lanes)
        s = share * s
        store(g, biases + o, s)
        losses = losses + half * load(x, biases + o, lanes) * s
    # D and its transpose together, in place.
    for i in range(n):
        for j in range(i + 1):
            q, p = (i * n + j) * lanes, (j * n + i) * lanes
            D = load(twice_importance, i * lanes, lanes) * load(u, q, lanes)
            D = D + load(twice_importance, j * lanes, lanes) * load(u, p, lanes)
            store(u, q, D)
            store(u, p, D)
    quarter = broadcast(0.25, lanes)
    for k in range(m):
        for i in range(n):
            x_ki = load(x, (k * n + i) * lanes, lanes)
            for j in range(n):
                q = (k * n + j) * lanes
                slope_kj = x_ki * load(u, (i * n + j) * lanes, lanes)
                if i > 0:
                    slope_kj = load(g, q, lanes) + slope_kj
                store(g, q, slope_kj)
        for j in range(n):
            q = (k * n + j) * lanes
            losses = losses + quarter * load(x, q, lanes) * load(g, q, lanes)
    store(value, 0, losses)


def _sizes(m: int, n: int) -> tuple[int, int, int, int, int]:
    """Lanes of a group, and sizes of its arrays: of parameters, of pairs, of lists of pairs, which
    have room for a pair more, and of features."""
    lanes = _LANES if n <= MOST_FEATURES else 1
    return lanes, (m * n + n) * lanes, n * n * lanes, (n * n + 1) * lanes, n * lanes


@functools.cache
def value_and_grad(m: int, n: int, population: bool) -> Any:
    # All of these are constants of the compiled code: loops unroll, branches go.
    lanes, size, pairs, listed, features = _sizes(m, n)

    @_jit
    def run(W, b, value, dW, db, which, tables, runs):
        x, g = arrays(2, size, np.float64)
        (losses,) = arrays(1, lanes, np.float64)
        group = _group(lanes, n, pairs, listed, features)
        n_stack = W.shape[0]
        n_all = n_stack * (runs[1] - runs[0])
        for start in range(0, n_all, lanes):
            for lane in range(lanes):
                p, s = _parameter(start + lane, n_stack, n_all, runs)
                _take_data_set(lanes, n, group, tables, which[s], lane)
                _load(lanes, m, n, W[p, s], b[p, s], x, lane)
            _loss(lanes, m, n, population, x, g, losses, group, tables)
            for lane in range(lanes):
                p, s = _parameter(start + lane, n_stack, n_all, runs)
                value[p, s] = losses[lane]
                _store(lanes, m, n, g, lane, dW[p, s], db[p, s])

    return run


@functools.cache
def hmc_move(m: int, n: int, population: bool) -> Any:
    lanes, size, pairs, listed, features = _sizes(m, n)
    dim = m * n + n
    even = dim + dim % 2

    @_jit
    def run(
        W, b, value, acceptance, keys, strength, precision, step, n_steps, turn,
        which, tables, runs,
    ):  # fmt: skip
        x, g, heat, h = arrays(4, size, np.float64)
        # With a place more for an odd number of parameters: normal numbers come in pairs.
        (momentum,) = arrays(1, even * lanes, np.float64)
        losses, before, after, threshold = arrays(4, lanes, np.float64)
        group = _group(lanes, n, pairs, listed, features)
        (key,) = arrays(1, lanes, np.uint64)
        counter = turn * (even + 2)
        n_stack = W.shape[0]
        n_all = n_stack * (runs[1] - runs[0])
        for start in range(0, n_all, lanes):
            moving = False
            for lane in range(lanes):
                p, s = _parameter(start + lane, n_stack, n_all, runs)
                moving |= step[s] != 0.0
                key[lane] = keys[p, s]
                threshold[lane] = np.log(unit(key[lane], counter + even + 1))
                jitter = unit(key[lane], counter + even)
                h_s = step[s] * (_JITTER_LOW + (_JITTER_HIGH - _JITTER_LOW) * jitter)
                _take_data_set(lanes, n, group, tables, which[s], lane)
                _load(lanes, m, n, W[p, s], b[p, s], x, lane)
                for q in range(dim):
                    heat[q * lanes + lane], h[q * lanes + lane] = strength[s], h_s
            if not moving:
                continue
            _normals(lanes, key, counter, momentum)
            _twice_energy(lanes, precision, x, momentum, before)
            for t in range(n_steps + 1):
                _loss(lanes, m, n, population, x, g, losses, group, tables)
                kick = 1.0 if 0 < t < n_steps else 0.5
                drift = 1.0 if t < n_steps else 0.0
                for q in range(size):
                    momentum[q] -= kick * h[q] * (heat[q] * g[q] + precision * x[q])
                    x[q] += drift * h[q] * momentum[q]
            _twice_energy(lanes, precision, x, momentum, after)
            for lane in range(lanes):
                p, s = _parameter(start + lane, n_stack, n_all, runs)
                if start + lane >= n_all or step[s] == 0.0:
                    continue
                gain = strength[s] * (value[p, s] - losses[lane])
                gain += 0.5 * (before[lane] - after[lane])
                # A diverged trajectory has a NaN or infinite energy and is rejected.
                acceptance[p, s] = np.exp(min(gain, 0.0)) if gain == gain else 0.0
                if threshold[lane] < gain:
                    value[p, s] = losses[lane]
                    _store(lanes, m, n, x, lane, W[p, s], b[p, s])

    return run


@functools.cache
def descend(m: int, n: int, population: bool) -> Any:
    lanes, size, pairs, listed, features = _sizes(m, n)

    @_jit
    def run(W, b, value, slope, taken, tolerance, n_steps, which, tables, runs):
        x, g, next_x, next_g = arrays(4, size, np.float64)
        losses, old, h, square = arrays(4, lanes, np.float64)
        steps, own = arrays(2, lanes, np.int64)
        group = _group(lanes, n, pairs, listed, features)
        # An empty lane is a model that is off at every input.
        for q in range(size):
            next_x[q] = 0.0
        for each in group[2]:
            for r in range(features):
                each[r] = 0.0
        for lane in range(lanes):
            own[lane] = -1
        n_stack = W.shape[0]
        n_all = n_stack * (runs[1] - runs[0])
        waiting = 0
        while True:
            # A parameter that has arrived makes room for the next one.
            working = False
            for lane in range(lanes):
                if own[lane] < 0 and waiting < n_all:
                    p, s = _parameter(waiting, n_stack, n_all, runs)
                    _take_data_set(lanes, n, group, tables, which[s], lane)
                    _load(lanes, m, n, W[p, s], b[p, s], next_x, lane)
                    old[lane], h[lane], square[lane], steps[lane] = 0.0, 0.1, 0.0, 0
                    own[lane] = waiting
                    waiting += 1
                working |= own[lane] >= 0
            if not working:
                break
            _loss(lanes, m, n, population, next_x, next_g, losses, group, tables)
            for lane in range(lanes):
                if own[lane] < 0:
                    continue
                if steps[lane] == 0 or losses[lane] <= old[lane] - 0.5 * h[lane] * square[lane]:
                    h[lane] *= 1.2 if steps[lane] > 0 else 1.0
                    old[lane], square[lane] = losses[lane], 0.0
                    for q in range(lane, size, lanes):
                        x[q], g[q] = next_x[q], next_g[q]
                        square[lane] += g[q] * g[q]
                else:
                    h[lane] *= 0.5
                if steps[lane] == n_steps or not square[lane] > tolerance * tolerance:
                    p, s = _parameter(own[lane], n_stack, n_all, runs)
                    value[p, s], slope[p, s] = old[lane], np.sqrt(square[lane])
                    taken[p, s] = steps[lane]
                    _store(lanes, m, n, x, lane, W[p, s], b[p, s])
                    own[lane] = -1
                    continue
                steps[lane] += 1
                for q in range(lane, size, lanes):
                    next_x[q] = x[q] - h[lane] * g[q]

    return run


@functools.cache
def langevin(m: int, n: int, population: bool) -> Any:
    lanes, size, pairs, listed, features = _sizes(m, n)
    dim = m * n + n
    even = dim + dim % 2

    @_jit
    def run(
        W, b, keys, trace, acceptance, nbeta, lr, localization, n_burnin, probe_every,
        which, tables, runs,
    ):  # fmt: skip
        x, centre, g, old_x, old_drift = arrays(5, size, np.float64)
        # A step is of_noise times the noise less of_gradient times the gradient and of_distance
        # times w - w*.
        of_noise, of_gradient, of_distance, beta, half_pull, over_2_lr = arrays(
            6, lanes, np.float64
        )
        zero = broadcast(0.0, lanes)
        (noise,) = arrays(1, even * lanes, np.float64)
        losses, old_energy, accepted, gains = arrays(4, lanes, np.float64)
        run_of, place_of = arrays(2, lanes, np.int64)
        (key,) = arrays(1, lanes, np.uint64)
        group = _group(lanes, n, pairs, listed, features)
        n_stack = W.shape[0]
        n_all = n_stack * (runs[1] - runs[0])
        for start in range(0, n_all, lanes):
            for lane in range(lanes):
                p, s = _parameter(start + lane, n_stack, n_all, runs)
                place_of[lane], run_of[lane] = p, s
                key[lane] = keys[p, s]
                accepted[lane], old_energy[lane] = 0.0, 0.0
                _take_data_set(lanes, n, group, tables, which[s], lane)
                _load(lanes, m, n, W[p, s], b[p, s], x, lane)
                of_noise[lane] = np.sqrt(lr[s])
                of_gradient[lane] = 0.5 * lr[s] * nbeta[s]
                of_distance[lane] = 0.5 * lr[s] * localization[s]
                beta[lane], half_pull[lane] = nbeta[s], 0.5 * localization[s]
                over_2_lr[lane] = 0.5 / lr[s]
            # With centre[:] = x the compiler would translate two seconds of error messages.
            for q in range(size):
                centre[q] = x[q]
            probes, probing = 0, False
            for t in range(n_burnin + trace.shape[2]):
                _loss(lanes, m, n, population, x, g, losses, group, tables)
                draw = t - n_burnin
                if draw >= 0:
                    for lane in range(lanes):
                        trace[place_of[lane], run_of[lane], draw] = losses[lane]
                if draw >= 0 and (probing or draw % probe_every == 0):
                    # A probe is two steps; at its first, gains mean nothing, and are not used.
                    away, forth, back = zero, zero, zero
                    for q in range(0, size, lanes):
                        here = load(x, q, lanes)
                        distance = here - load(centre, q, lanes)
                        drift = _drift(lanes, q, of_gradient, of_distance, g, distance)
                        moved = here - load(old_x, q, lanes)
                        noise_forth, noise_back = moved + load(old_drift, q, lanes), drift - moved
                        store(old_drift, q, drift)
                        store(old_x, q, here)
                        away = away + distance * distance
                        forth = forth + noise_forth * noise_forth
                        back = back + noise_back * noise_back
                    energy = load(beta, 0, lanes) * load(losses, 0, lanes)
                    energy = energy + load(half_pull, 0, lanes) * away
                    gain = load(old_energy, 0, lanes) - energy
                    store(gains, 0, gain + load(over_2_lr, 0, lanes) * (forth - back))
                    store(old_energy, 0, energy)
                    if probing:
                        probes += 1
                        for lane in range(lanes):
                            # Written so that a NaN goes through.
                            accepted[lane] += np.exp(0.0 if gains[lane] > 0.0 else gains[lane])
                    probing = not probing
                _noise(lanes, key, t * even, noise)
                for q in range(0, size, lanes):
                    here = load(x, q, lanes)
                    distance = here - load(centre, q, lanes)
                    drift = _drift(lanes, q, of_gradient, of_distance, g, distance)
                    store(x, q, here + load(of_noise, 0, lanes) * load(noise, q, lanes) - drift)
            for lane in range(lanes):
                p, s = place_of[lane], run_of[lane]
                acceptance[p, s] = accepted[lane] / probes
                _store(lanes, m, n, x, lane, W[p, s], b[p, s])

    return run
