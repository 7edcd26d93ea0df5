"""Compiled loops over stacks of parameters under the population or the exact empirical loss.

`PopulationLoss` and `EmpiricalLoss` define the mathematics (their module's docstring has the
formula); here it is one loop over small groups of parameters, because tensor operations on 2 x 6
matrices are nearly all overhead. A chain's Langevin steps, a sampler's leapfrog trajectories and
the descent to a critical point run inside the loop as well: a group does all of its steps before
the next one starts, so it and the place where it looks up stay in the cache, however many
parameters and samples there are. `kgon.compiled.exact_loss.Kernel` calls them.

Shapes: W (n_stack, n_runs, n_hidden, n_features), b (n_stack, n_runs, n_features), `which` (n_runs)
the data set of a run, `tables` those of `moments.Tables`, `runs` the first run and the one
after the last. Inside a loop a group is `lanes` parameters side by side, so that the processor's
vector instructions work on several at once: number q of lane l stands at place q * lanes + l, the
n_hidden * n_features numbers of W first, then those of b. Every lane goes through the same
arithmetic, so a parameter's results do not depend on who is in the others.

All of this is one file because numba keeps what it compiled until the function's own file changes,
not until that of a function inlined into it does (`make clean` forgets it).
"""

import functools
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_item_pointer, get_or_insert_function
from numba.extending import intrinsic

from kgon.compiled.moments import AT_ONCE, COUNT, SLOTS, bucket
from kgon.compiled.scratch import arrays
from kgon.compiled.vectors import (
    all_at_most,
    beside,
    broadcast,
    columns,
    load,
    parts,
    signs_differ,
    store,
    where_at_most,
    where_positive,
    with_sign_of,
)
from kgon.streams import noise_pair, normal_pair, unit

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
def _group(lanes, m, n, pairs, listed, features):
    """What `_loss` works with, as it takes it apart: numbers of each pair (output i, input j); the
    place of a pair's input among the features and of its output's bias among the parameters; what
    is listed of pairs that are looked up; moments of a few of them; what is known of each feature
    of the lanes' data sets; where its lines and tails start in the tables; and which data set each
    lane has: none yet.

    Behind the last pair there is one more, which fills up lists: its slope is 1, and nothing reads
    what is added to it.
    """
    A, u, v, moment2 = arrays(4, pairs, np.float64)
    input_of, bias_of = arrays(2, pairs, np.uint32)
    (todo,) = arrays(1, listed, np.uint32)
    (line_of,) = arrays(1, listed, np.uint64)
    slope, bias, threshold = arrays(3, listed, np.float64)
    above = arrays(3, AT_ONCE, np.float64)
    of_features = arrays(8, features, np.float64)
    starts = arrays(2, features, np.uint64)
    (data_set,) = arrays(1, lanes, np.int64)
    for lane in range(lanes):
        data_set[lane] = -1
        for i in range(n):
            for j in range(n):
                q = (i * n + j) * lanes + lane
                input_of[q], bias_of[q] = j * lanes + lane, (m * n + i) * lanes + lane
        q = n * n * lanes + lane
        A[q], input_of[q], bias_of[q] = 1.0, lane, m * n * lanes + lane
    of_pairs = A, u, v, moment2, input_of, bias_of
    lists = todo, line_of, slope, bias, threshold
    return of_pairs, lists, above, of_features, starts, data_set


@_inline
def _take_data_set(lanes, n, group, tables, d, lane):
    """Put into the lane what is known of the features of data set d."""
    width, totals, lows, highs, scales, lasts, importances = tables[4:]
    low, high, scale, last, total0, total1, total2, twice_importance = group[3]
    (first_line, first_tail), data_set = group[4:]
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
def _four(numbers, c):
    """numbers[c] and the next three, with indices that cannot count from the end."""
    return (
        numbers[np.uint64(c)],
        numbers[np.uint64(c + 1)],
        numbers[np.uint64(c + 2)],
        numbers[np.uint64(c + 3)],
    )


@_inline
def _beside(numbers, places):
    """The vector of the numbers at four places."""
    one, two, three, four = places
    return beside(numbers[one], numbers[two], numbers[three], numbers[four])


@_inline
def _add_apart(numbers, places, vector):
    """Add a vector to the numbers at four places."""
    one, two, three, four = places
    part_one, part_two, part_three, part_four = parts(vector)
    numbers[one] += part_one
    numbers[two] += part_two
    numbers[three] += part_three
    numbers[four] += part_four


@_inline
def _fill_up(lanes, n, todo, count):
    """Make a list of `count` pairs come out even; its new length."""
    for c in range(count, count + np.uint64(AT_ONCE - 1)):
        todo[c] = n * n * lanes
    return (count + np.uint64(AT_ONCE - 1)) & ~np.uint64(AT_ONCE - 1)


@_inline
def _slope(lanes, m, n, i, j, x):
    """A_ij = W_i . W_j."""
    a = load(x, i * lanes, lanes) * load(x, j * lanes, lanes)
    for k in range(1, m):
        a = a + load(x, (k * n + i) * lanes, lanes) * load(x, (k * n + j) * lanes, lanes)
    return a


@_inline
def _pair(lanes, m, n, i, j, a, x, group, count):
    """Pair (i, j) of slope a as if output i were at all of input j's amplitudes what it is at the
    least. Lanes where it is not go on the list, after `count` others; its new length."""
    A, u, v, moment2, _, _ = group[0]
    todo = group[1][0]
    low, high, _, _, total0, total1, total2, _ = group[3]
    q = (i * n + j) * lanes
    bias = load(x, (m * n + i) * lanes, lanes)
    at_low = a * load(low, j * lanes, lanes) + bias
    at_high = a * load(high, j * lanes, lanes) + bias
    m0 = where_positive(at_low, load(total0, j * lanes, lanes))
    m1 = where_positive(at_low, load(total1, j * lanes, lanes))
    m2 = where_positive(at_low, load(total2, j * lanes, lanes))
    u_ij, v_ij = a * m2 + bias * m1, a * m1 + bias * m0
    if i == j:
        u_ij, v_ij = u_ij - m2, v_ij - m1
        store(moment2, q, m2)
    store(A, q, a)
    store(u, q, u_ij)
    store(v, q, v_ij)
    # Without a branch, which nobody could predict.
    crossing = np.uint64(signs_differ(at_low, at_high))
    members = load(_MEMBERS, crossing * np.uint64(_LANES), lanes)
    store(todo, count, broadcast(np.uint32(q), lanes) + members)
    return count + np.uint64(_N_MEMBERS[crossing])


@_inline
def _moments_above(t, lines, places, weight):
    """Moments of the amplitudes above four thresholds t whose lines begin at `places`, and how many
    amplitudes their buckets have."""
    m0, m1, m2, counts = columns(lines, places, 0)
    s0, s1, s2, s3 = columns(lines, places, SLOTS[0])
    one, share = broadcast(1.0, AT_ONCE), broadcast(weight, AT_ONCE)
    # Of amplitudes that are not above: ones, then these themselves, then their squares.
    in0, in1 = where_at_most(s0, t, one), where_at_most(s1, t, one)
    in2, in3 = where_at_most(s2, t, one), where_at_most(s3, t, one)
    m0 = m0 - share * (in0 + in1 + (in2 + in3))
    in0, in1, in2, in3 = in0 * s0, in1 * s1, in2 * s2, in3 * s3
    m1 = m1 - share * (in0 + in1 + (in2 + in3))
    in0, in1, in2, in3 = in0 * s0, in1 * s1, in2 * s2, in3 * s3
    m2 = m2 - share * (in0 + in1 + (in2 + in3))
    return m0, m1, m2, counts


@_jit
def _bisect(ordered, feature, lines, line, t):
    """How many of a feature's amplitudes are at most t, which is in the line's bucket."""
    place = np.uint64(lines[line + np.uint64(SLOTS[0])])
    end = place + np.uint64(lines[line + np.uint64(COUNT)])
    while place < end:
        middle = (place + end) >> np.uint64(1)
        if ordered[feature + middle] <= t:
            place = middle + np.uint64(1)
        else:
            end = middle
    return place


@_inline
def _look_up(own, population, begin, end, group, tables):
    """Add what their thresholds make of pairs begin, ..., end - 1 of the list. `own` says that each
    is of an output and its own input."""
    _, u, v, moment2, input_of, _ = group[0]
    todo, line_of, slope, bias, threshold = group[1]
    above0, above1, above2 = group[2]
    total0, total1, total2, _ = group[3][4:]
    first_line, first_tail = group[4]
    # Taken apart inside the loop they would have their references counted there.
    lines, ordered, (tail0, tail1, tail2), weight = tables[:4]
    one, most = broadcast(1.0, AT_ONCE), broadcast(float(AT_ONCE), AT_ONCE)
    for c in range(begin, end, AT_ONCE):
        t = load(threshold, c, AT_ONCE)
        if population:
            # The moments of all amplitudes are those of any feature.
            m0 = (one - t) * broadcast(total0[0], AT_ONCE)
            m1 = (one - t * t) * broadcast(total1[0], AT_ONCE)
            m2 = (one - t * t * t) * broadcast(total2[0], AT_ONCE)
        else:
            m0, m1, m2, counts = _moments_above(t, lines, _four(line_of, c), weight)
            if not all_at_most(counts, most):
                store(above0, 0, m0)
                store(above1, 0, m1)
                store(above2, 0, m2)
                for k in range(AT_ONCE):
                    line, r = line_of[c + k], input_of[todo[c + k]]
                    if lines[line + np.uint64(COUNT)] > AT_ONCE:
                        place = _bisect(ordered, first_line[r], lines, line, threshold[c + k])
                        place += first_tail[r]
                        above0[k], above1[k], above2[k] = tail0[place], tail1[place], tail2[place]
                m0, m1 = load(above0, 0, AT_ONCE), load(above1, 0, AT_ONCE)
                m2 = load(above2, 0, AT_ONCE)
        # Where the slope is positive the amplitudes above are on, and were off; else the other way.
        a, b = load(slope, c, AT_ONCE), load(bias, c, AT_ONCE)
        sign = with_sign_of(one, a)
        m0, m1, m2 = sign * m0, sign * m1, sign * m2
        du, dv = a * m2 + b * m1, a * m1 + b * m0
        places = _four(todo, c)
        if own:
            du, dv = du - m2, dv - m1
            _add_apart(moment2, places, m2)
        _add_apart(u, places, du)
        _add_apart(v, places, dv)


@_inline
def _loss(lanes, m, n, population, x, g, value, group, tables):
    """The losses (lanes) of parameters x, each on its own data set, into value; their gradients
    into g.

    With u_ij = A_ij M_2 + b_i M_1 and v_ij = A_ij M_1 + b_i M_0, both less M_2 and M_1 where i = j
    is the output's own input, the gradient is D_ij = 2 I_i u_ij by A and s_i = 2 I_i sum_j v_ij by
    b, the M_k held. The loss is quadratic in (A, b), so it is (A D + b s) / 2 and the terms that
    the quadratic form lacks.

    An output that is on at a feature's least amplitude and at its largest is on at all of them, off
    at both is off at all. Else its threshold is looked up, four at once.
    """
    A, u, v, moment2, input_of, bias_of = group[0]
    todo, line_of, slope, bias, threshold = group[1]
    low, _, scale, last, _, _, total2, twice_importance = group[3]
    first_line, _ = group[4]
    lines = tables[0]
    biases = m * n * lanes
    count = np.uint64(0)
    for i in range(n):
        count = _pair(lanes, m, n, i, i, _slope(lanes, m, n, i, i, x), x, group, count)
    own = count = _fill_up(lanes, n, todo, count)
    for i in range(n):
        for j in range(i):
            a = _slope(lanes, m, n, i, j, x)
            count = _pair(lanes, m, n, i, j, a, x, group, count)
            count = _pair(lanes, m, n, j, i, a, x, group, count)
    count = _fill_up(lanes, n, todo, count)
    for c in range(0, count, AT_ONCE):
        one, two, three, four = places = _four(todo, c)
        a = _beside(A, places)
        b = _beside(x, (bias_of[one], bias_of[two], bias_of[three], bias_of[four]))
        store(slope, c, a)
        store(bias, c, b)
        store(threshold, c, (broadcast(0.0, AT_ONCE) - b) / a)
    for c in range(count):
        t = threshold[c]
        if population:
            t = t if t > 0.0 else 0.0
            threshold[c] = t if t < 1.0 else 1.0
        else:
            r = input_of[todo[c]]
            place = np.uint64(bucket(t, low[r], scale[r], last[r]))
            line_of[c] = (first_line[r] + place) * np.uint64(SLOTS[1])
            _prefetch(lines, line_of[c])
    _look_up(True, population, np.uint64(0), own, group, tables)
    _look_up(False, population, own, count, group, tables)
    half, losses = broadcast(0.5, lanes), broadcast(0.0, lanes)
    for i in range(n):
        q, o = (i * n + i) * lanes, i * lanes
        share = load(twice_importance, o, lanes)
        off = load(total2, o, lanes) - load(moment2, q, lanes) - load(u, q, lanes)
        losses = losses + half * share * off
        s = load(v, i * n * lanes, lanes)
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
    """Lanes of a group, and sizes of its arrays: of parameters, of pairs and one more, of lists of
    pairs, which are filled up twice, and of features."""
    lanes = _LANES if n <= MOST_FEATURES else 1
    pairs = (n * n + 1) * lanes
    return lanes, (m * n + n) * lanes, pairs, pairs + 2 * AT_ONCE, n * lanes


@functools.cache
def value_and_grad(m: int, n: int, population: bool) -> Any:
    # All of these are constants of the compiled code: loops unroll, branches go.
    lanes, size, pairs, listed, features = _sizes(m, n)

    @_jit
    def run(W, b, value, dW, db, which, tables, runs):
        x, g = arrays(2, size, np.float64)
        (losses,) = arrays(1, lanes, np.float64)
        group = _group(lanes, m, n, pairs, listed, features)
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
        group = _group(lanes, m, n, pairs, listed, features)
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
        group = _group(lanes, m, n, pairs, listed, features)
        # An empty lane is a model that is off at every input.
        for q in range(size):
            next_x[q] = 0.0
        for each in group[3]:
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
        group = _group(lanes, m, n, pairs, listed, features)
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
