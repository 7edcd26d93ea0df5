"""Compiled loops over stacks of parameters under the population or the exact empirical loss.

`kgon.theory.loss` defines the loss, `kgon.compiled.exact_loss.Kernel` calls these functions. Tensor
operations on 2 x 6 matrices are nearly all overhead, so these are plain loops over parameters. Each
makes all of its steps of a Langevin chain, leapfrog trajectory or descent before the next one
starts, so that its part of the lookup table stays in the processor's cache.

Shapes: W (n_parameters, n_hidden, n_features), b (n_parameters, n_features). `data_set`
(n_parameters) is each parameter's row of `features_of`; settings and results are (n_parameters)
unless noted.

Two rules keep this fast. A function that takes arrays and returns from several places is inlined;
otherwise numba counts references to the arrays at every call, which takes longer than the loss
itself. For the same reason loops take the arrays of `moments.Lookup` one by one.
"""

import functools
from typing import Any

import numpy as np

from kgon.compiled.moments import SLOTS, bucket
from kgon.jit import jit
from kgon.streams import fill_normals, unit

# Fused multiply-adds are allowed; reassociation and the assumption of finite numbers are not, since
# a parameter that diverges must become NaN here as it does in torch.
_jit: Any = functools.partial(jit, nogil=True, error_model="numpy", fastmath={"contract"})
_inline: Any = functools.partial(_jit, inline="always")

JITTER = (0.6, 1.2)
"""Range of a trajectory's step size, in units of the adapted one. Trajectories of constant length
could return to where they started."""

_OFF, _ON = -1, -2

_NOISY_STEPS = 16
"""Steps of a chain whose noise is drawn at once, by vector instructions."""


@_jit
def _uniform_moments_above(t, feature):
    """E[a^k ; a > t, feature] for k = 0, 1, 2 under the population's a ~ U[0, 1]."""
    t = min(max(t, 0.0), 1.0)
    m0 = (1.0 - t) * feature.total_0
    m1 = (1.0 - t * t) * feature.total_1
    m2 = (1.0 - t * t * t) * feature.total_2
    return m0, m1, m2


@_jit
def _sample_moments_above(t, line, feature):
    """The same moments under a sample, if the bucket of t has at most `SLOTS` amplitudes."""
    number, first_power, second_power = 0.0, 0.0, 0.0
    for amplitude in (line.slot_0, line.slot_1, line.slot_2):
        # No branch: the processor could not predict it.
        at_most = 1.0 if amplitude <= t else 0.0
        number += at_most
        first_power += at_most * amplitude
        second_power += at_most * amplitude * amplitude
    m0 = line.moment_0 - feature.weight * number
    m1 = line.moment_1 - feature.weight * first_power
    m2 = line.moment_2 - feature.weight * second_power
    return m0, m1, m2


@_jit
def _bisected_moments_above(t, line, feature, amplitudes):
    """The same moments under a sample, by bisection of the bucket of t."""
    first, end = line.first, line.first + line.count
    while first < end:
        middle = (first + end) >> 1
        if amplitudes[feature.first_amplitude + middle].value <= t:
            first = middle + 1
        else:
            end = middle
    above = amplitudes[feature.first_amplitude + first]
    return above.moment_0, above.moment_1, above.moment_2


@_jit
def _place(a, b, feature):
    """The line of the lookup table for the threshold -b / a of an output ReLU(a x + b).

    `_OFF` or `_ON` if the output is off or on at all amplitudes x of the feature.
    """
    at_low, at_high = a * feature.low + b, a * feature.high + b
    if at_low <= 0.0 and at_high <= 0.0:
        return _OFF
    if at_low > 0.0 and at_high > 0.0:
        return _ON
    if feature.is_uniform:
        return 0
    return feature.first_line + bucket(-b / a, feature)


@_inline
def _active_moments(a, b, place, count, feature, lines, amplitudes):
    """M_k = E[a^k ; feature, output active] for k = 0, 1, 2."""
    if place == _OFF:
        return 0.0, 0.0, 0.0
    if place == _ON:
        return feature.total_0, feature.total_1, feature.total_2
    if feature.is_uniform:
        m0, m1, m2 = _uniform_moments_above(-b / a, feature)
    elif count <= SLOTS:
        m0, m1, m2 = _sample_moments_above(-b / a, lines[place], feature)
    else:
        m0, m1, m2 = _bisected_moments_above(-b / a, lines[place], feature, amplitudes)
    if a < 0.0:
        return feature.total_0 - m0, feature.total_1 - m1, feature.total_2 - m2
    return m0, m1, m2


@_inline
def _loss(W, b, dW, db, A, place, count, features, lines, amplitudes):
    """The loss of one parameter; its gradient is written to dW and db.

    By the formula of `kgon.theory.loss`, with A = W^T W,

        u_ij = A_ij M_2 + b_i M_1 - [i = j] M_2         dL/dA_ij = 2 I_i u_ij
        v_ij = A_ij M_1 + b_i M_0 - [i = j] M_1         dL/db_i = 2 I_i sum_j v_ij

    A, place and count, each (n_features, n_features), are scratch arrays.
    """
    n_hidden, n_features = W.shape
    for i in range(n_features):
        for j in range(n_features):
            a = 0.0
            for k in range(n_hidden):
                a += W[k, i] * W[k, j]
            A[i, j] = a
            place[i, j] = _place(a, b[i], features[j])
            # Reading the counts here lets all accesses to a large table overlap in time.
            count[i, j] = lines[max(place[i, j], 0)].count
    loss = 0.0
    for i in range(n_features):
        bias, weight = b[i], features[i].importance
        of_output, slope = features[i].total_2, 0.0
        for j in range(n_features):
            a = A[i, j]
            m0, m1, m2 = _active_moments(
                a, bias, place[i, j], count[i, j], features[j], lines, amplitudes
            )
            u, v = a * m2 + bias * m1, a * m1 + bias * m0
            of_output += a * u + bias * v
            if i == j:
                of_output -= 2.0 * u
                u, v = u - m2, v - m1
            A[i, j] = 2.0 * weight * u  # from here on dL/dA
            slope += v
        loss += weight * of_output
        db[i] = 2.0 * weight * slope
    for k in range(n_hidden):
        for j in range(n_features):
            slope = 0.0
            for i in range(n_features):
                slope += W[k, i] * (A[i, j] + A[j, i])
            dW[k, j] = slope
    return loss


@_jit
def _scratch(n_features):
    """The scratch arrays A, place and count of `_loss`."""
    shape = n_features, n_features
    return np.empty(shape), np.empty(shape, np.int64), np.empty(shape, np.int64)


@_inline
def _views(w, n_hidden, n_features):
    """W and b as views of a flat parameter w."""
    n_weights = n_hidden * n_features
    return w[:n_weights].reshape(n_hidden, n_features), w[n_weights:]


@_jit
def _square(x):
    total = 0.0
    for q in range(x.size):
        total += x[q] * x[q]
    return total


@_jit
def _distance(x, y):
    """|x - y|^2."""
    total = 0.0
    for q in range(x.size):
        total += (x[q] - y[q]) ** 2
    return total


@_jit
def value_and_grad(W, b, value, dW, db, data_set, features_of, lines, amplitudes):
    n_parameters, _, n_features = W.shape
    A, place, count = _scratch(n_features)
    for p in range(n_parameters):
        features = features_of[data_set[p]]
        value[p] = _loss(W[p], b[p], dW[p], db[p], A, place, count, features, lines, amplitudes)


@_jit
def hmc(
    W, b, value, trace, distance, acceptance, keys, centre_W, centre_b, strength, precision, step,
    n_leapfrog, data_set, first_turn, features_of, lines, amplitudes,
):  # fmt: skip
    n_parameters, n_hidden, n_features = W.shape
    size = (n_hidden + 1) * n_features
    even = size + size % 2
    w, gradient, momentum, centre = np.empty(size), np.empty(size), np.empty(even), np.empty(size)
    w_W, w_b = _views(w, n_hidden, n_features)
    own_centre_W, own_centre_b = _views(centre, n_hidden, n_features)
    dW, db = _views(gradient, n_hidden, n_features)
    A, place, count = _scratch(n_features)
    for p in range(n_parameters):
        if step[p] == 0.0:
            continue
        features = features_of[data_set[p]]
        own_centre_W[:], own_centre_b[:] = centre_W[p], centre_b[p]
        accepted = 0.0
        for draw in range(trace.shape[1]):
            counter = (first_turn + draw) * (even + 2)
            fill_normals(keys[p], counter, momentum)
            jitter = unit(keys[p], counter + even)
            threshold = np.log(unit(keys[p], counter + even + 1))
            h = step[p] * (JITTER[0] + (JITTER[1] - JITTER[0]) * jitter)
            w_W[:], w_b[:] = W[p], b[p]
            kinetic, away = _square(momentum[:size]), _distance(w, centre)
            before = strength[p] * value[p] + 0.5 * (kinetic + precision[p] * away)
            old_away, loss = away, 0.0
            for t in range(n_leapfrog[p] + 1):
                loss = _loss(w_W, w_b, dW, db, A, place, count, features, lines, amplitudes)
                kick = h if 0 < t < n_leapfrog[p] else 0.5 * h
                drift = h if t < n_leapfrog[p] else 0.0
                for q in range(size):
                    force = strength[p] * gradient[q] + precision[p] * (w[q] - centre[q])
                    momentum[q] -= kick * force
                    w[q] += drift * momentum[q]
            kinetic, away = _square(momentum[:size]), _distance(w, centre)
            gain = before - (strength[p] * loss + 0.5 * (kinetic + precision[p] * away))
            # A diverged trajectory has a NaN or infinite energy and is rejected.
            accepted += np.exp(min(gain, 0.0)) if gain == gain else 0.0
            if threshold < gain:
                value[p], W[p], b[p] = loss, w_W, w_b
            else:
                away = old_away
            trace[p, draw], distance[p, draw] = value[p], away
        acceptance[p] = accepted / trace.shape[1]


@_jit
def descend(W, b, value, slope, data_set, tolerance, n_steps, features_of, lines, amplitudes):
    n_parameters, n_hidden, n_features = W.shape
    new_W, new_b = np.empty((n_hidden, n_features)), np.empty(n_features)
    dW, db = np.empty((n_hidden, n_features)), np.empty(n_features)
    new_dW, new_db = np.empty((n_hidden, n_features)), np.empty(n_features)
    A, place, count = _scratch(n_features)
    for p in range(n_parameters):
        features = features_of[data_set[p]]
        value[p] = _loss(W[p], b[p], dW, db, A, place, count, features, lines, amplitudes)
        square = _square(dW.ravel()) + _square(db)
        h = 0.1
        for _ in range(n_steps):
            if not square > tolerance * tolerance:  # a NaN ends the descent, too
                break
            for j in range(n_features):
                new_b[j] = b[p, j] - h * db[j]
                for k in range(n_hidden):
                    new_W[k, j] = W[p, k, j] - h * dW[k, j]
            loss = _loss(new_W, new_b, new_dW, new_db, A, place, count, features, lines, amplitudes)
            if loss <= value[p] - 0.5 * h * square:
                h *= 1.2
                value[p], W[p], b[p], dW[:], db[:] = loss, new_W, new_b, new_dW, new_db
                square = _square(dW.ravel()) + _square(db)
            else:
                h *= 0.5
        slope[p] = np.sqrt(square)


@_jit
def langevin(
    W, b, trace, distance, acceptance, keys, centre_W, centre_b, nbeta, lr, localization, data_set,
    first_step, thin, features_of, lines, amplitudes,
):  # fmt: skip
    n_parameters, n_hidden, n_features = W.shape
    size = (n_hidden + 1) * n_features
    even = size + size % 2
    w, gradient, centre = np.empty(size), np.empty(size), np.empty(size)
    w_W, w_b = _views(w, n_hidden, n_features)
    own_centre_W, own_centre_b = _views(centre, n_hidden, n_features)
    dW, db = _views(gradient, n_hidden, n_features)
    A, place, count = _scratch(n_features)
    drift, old_w, old_drift = np.empty(size), np.empty(size), np.empty(size)
    noise = np.empty((_NOISY_STEPS, even))
    n_steps = thin * trace.shape[1]
    for p in range(n_parameters):
        if lr[p] == 0.0:
            continue
        features = features_of[data_set[p]]
        w_W[:], w_b[:] = W[p], b[p]
        own_centre_W[:], own_centre_b[:] = centre_W[p], centre_b[p]
        half, root = 0.5 * lr[p], np.sqrt(lr[p])
        accepted, old_energy = 0.0, 0.0
        for t in range(n_steps):
            loss = _loss(w_W, w_b, dW, db, A, place, count, features, lines, amplitudes)
            away, forth, back = 0.0, 0.0, 0.0
            for q in range(size):
                force = nbeta[p] * gradient[q] + localization[p] * (w[q] - centre[q])
                drift[q] = half * force
                away += (w[q] - centre[q]) ** 2
                forth += (w[q] - old_w[q] + old_drift[q]) ** 2
                back += (old_w[q] - w[q] + drift[q]) ** 2
            if t % thin == 0:
                trace[p, t // thin], distance[p, t // thin] = loss, away
            # The acceptance of the last step by Metropolis's rule.
            energy = nbeta[p] * loss + 0.5 * localization[p] * away
            if t > 0:
                gain = old_energy - energy + (forth - back) / (2.0 * lr[p])
                # Not min(gain, 0.0), so that NaN stays NaN.
                accepted += np.exp(0.0 if gain > 0.0 else gain)
            old_energy, old_w[:], old_drift[:] = energy, w, drift
            place_in_block = (first_step + t) % _NOISY_STEPS
            if place_in_block == 0 or t == 0:
                block = first_step + t - place_in_block
                fill_normals(keys[p], block * even, noise.ravel())
            for q in range(size):
                w[q] += root * noise[place_in_block, q] - drift[q]
        acceptance[p] = accepted / (n_steps - 1)
        W[p], b[p] = w_W, w_b
