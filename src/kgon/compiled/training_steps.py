"""Compiled loops over training steps, defined by `DirectLoss.value_and_grad` and torch optimizers.

A step of a toy model is half a microsecond of arithmetic; a tensor library spends hundreds of times
that on dispatch. So on a CPU the steps of a block run in one compiled loop per member, which works
on a few inputs of a minibatch at once; members are divided among threads. Torch remains the
definition, which tests compare this with, and serves other devices and optimizers.

Shapes: W (n_members, n_hidden, n_features), b (n_members, n_features), x (n_members, n_rows,
n_features), order (n_members, n_steps, batch_size), lr (n_members, n_steps), importance (n_members,
n_features).
"""

import functools
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from kgon.compiled.machine import share_out
from kgon.compiled.scratch import array
from kgon.compiled.vectors import broadcast, load, store, total, where_positive
from kgon.data import Minibatches
from kgon.jit import jit

# Fused multiply-adds are allowed; reassociation and the assumption of finite numbers are not, since
# a member that diverges must become NaN here as it does in torch.
_FASTMATH = {"contract"}

_LANES = (1, 2, 4)
"""Possible numbers of inputs at once: the least that holds the minibatch, at most four."""

_FEW_FEATURES = 12
"""Up to this number of features, a loop over all is faster than one over a list of active ones."""


@numba.njit(nogil=True, error_model="numpy", fastmath=_FASTMATH, inline="always")
def _gradient(lanes, m, n, w, c, x, rows, scale, dW, db, room):
    """Write the gradient of the minibatch loss of one member to dW and db.

    For an input r let h = W r, p = W^T h + b, g = scale (p - r) where p > 0 and 0 elsewhere, and
    v = W g, with scale = 2 I / batch_size. Then db is the sum of g over the inputs, and dW that of
    h g^T + v r^T. w and dW are flat, (m n). Each input that is worked on at once has a lane; `room`
    has scratch arrays for the sums of each lane, for r, h and v, and for the active features.
    """
    dW_lanes, db_lanes, r, h, v, active = room
    few = n <= _FEW_FEATURES
    zero = broadcast(w.dtype.type(0.0), lanes)
    for q in range(m * n):
        store(dW_lanes, q * lanes, zero)
    for j in range(n):
        store(db_lanes, j * lanes, zero)
    for first in range(0, rows.size, lanes):
        left = min(rows.size - first, lanes)
        for lane in range(left):
            row = x[rows[first + lane]]
            for j in range(n):
                r[j * lanes + lane] = row[j]
        for lane in range(left, lanes):
            for j in range(n):
                r[j * lanes + lane] = 0.0
        count = n
        if not few:
            count = 0
            for j in range(n):
                active[count] = j
                some = False
                for lane in range(lanes):
                    some |= r[j * lanes + lane] != 0.0
                count += some
        for k in range(m):
            own = zero
            for place in range(count):
                j = place if few else active[place]
                own = own + load(r, j * lanes, lanes) * broadcast(w[k * n + j], lanes)
            store(h, k * lanes, own)
            store(v, k * lanes, zero)
        # In a lane without an input, h = 0 and r = b make g = 0.
        for lane in range(left, lanes):
            for j in range(n):
                r[j * lanes + lane] = c[j]
        for j in range(n):
            p = broadcast(c[j], lanes)
            for k in range(m):
                p = p + load(h, k * lanes, lanes) * broadcast(w[k * n + j], lanes)
            error = broadcast(scale[j], lanes) * (p - load(r, j * lanes, lanes))
            g = where_positive(p, error)
            store(db_lanes, j * lanes, load(db_lanes, j * lanes, lanes) + g)
            for k in range(m):
                q = (k * n + j) * lanes
                store(dW_lanes, q, load(dW_lanes, q, lanes) + load(h, k * lanes, lanes) * g)
                own = load(v, k * lanes, lanes) + g * broadcast(w[k * n + j], lanes)
                store(v, k * lanes, own)
        for k in range(m):
            own = load(v, k * lanes, lanes)
            for place in range(count):
                j = place if few else active[place]
                q = (k * n + j) * lanes
                store(dW_lanes, q, load(dW_lanes, q, lanes) + own * load(r, j * lanes, lanes))
    for j in range(n):
        db[j] = total(load(db_lanes, j * lanes, lanes))
    for q in range(m * n):
        dW[q] = total(load(dW_lanes, q * lanes, lanes))


@functools.cache
def _steps(m: int, n: int, lanes: int, adam: bool) -> Callable[..., None]:
    # These are constants of the compiled code, so inner loops unroll and branches disappear.
    size = m * n
    W_size, b_size, h_size = size * lanes, n * lanes, m * lanes

    @jit(nogil=True, error_model="numpy", fastmath=_FASTMATH)
    def steps(W, b, x, order, lr, importance, state, first, decay, decoupled, beta1, beta2, eps):
        w, dW = array(size, W.dtype), array(size, W.dtype)
        c, db, scale = array(n, W.dtype), array(n, W.dtype), array(n, W.dtype)
        dW_lanes = array(W_size, W.dtype)
        db_lanes, r = array(b_size, W.dtype), array(b_size, W.dtype)
        h, v = array(h_size, W.dtype), array(h_size, W.dtype)
        room = dW_lanes, db_lanes, r, h, v, array(n, np.int64)
        mW, mb, vW, vb = state
        for s in range(W.shape[0]):
            rates = lr[s]
            for j in range(n):
                c[j] = b[s, j]
                scale[j] = 2.0 * importance[s, j] / order.shape[2]
                for k in range(m):
                    w[k * n + j] = W[s, k, j]
            for t in range(order.shape[1]):
                _gradient(lanes, m, n, w, c, x[s], order[s, t], scale, dW, db, room)
                if decoupled:
                    shrink = 1.0 - rates[t] * decay
                    for j in range(n):
                        c[j] *= shrink
                    for q in range(size):
                        w[q] *= shrink
                elif decay != 0.0:
                    for j in range(n):
                        db[j] += decay * c[j]
                    for q in range(size):
                        dW[q] += decay * w[q]
                if adam:
                    rate = rates[t] / (1.0 - beta1 ** (first + t + 1))
                    root = 1.0 / np.sqrt(1.0 - beta2 ** (first + t + 1))
                    for j in range(n):
                        mb[s, j] += (db[j] - mb[s, j]) * (1.0 - beta1)
                        vb[s, j] = vb[s, j] * beta2 + (1.0 - beta2) * db[j] * db[j]
                        c[j] -= rate * mb[s, j] / (np.sqrt(vb[s, j]) * root + eps)
                        for k in range(m):
                            g = dW[k * n + j]
                            mW[s, k, j] += (g - mW[s, k, j]) * (1.0 - beta1)
                            vW[s, k, j] = vW[s, k, j] * beta2 + (1.0 - beta2) * g * g
                            change = mW[s, k, j] / (np.sqrt(vW[s, k, j]) * root + eps)
                            w[k * n + j] -= rate * change
                else:
                    for j in range(n):
                        c[j] -= rates[t] * db[j]
                    for q in range(size):
                        w[q] -= rates[t] * dW[q]
            for j in range(n):
                b[s, j] = c[j]
                for k in range(m):
                    W[s, k, j] = w[k * n + j]

    return steps


def has_kernel(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `advance` implements this optimizer: plain SGD, Adam or AdamW, on a CPU."""
    group, *others = optimizer.param_groups
    sgd = type(optimizer) is torch.optim.SGD and group["momentum"] == 0
    adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and not group["amsgrad"]
    if others or not (sgd or adam) or group["maximize"]:
        return False
    return all(p.device.type == "cpu" for p in group["params"])


def advance(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    lr: Tensor,
    batches: Minibatches,
    importance: Tensor | None,
) -> None:
    """Make one step of `optimizer` in place for each learning rate, on the loss of its minibatch.

    Learning rates (n_steps,) and importance (n_features,) are shared by all members, or have a
    first axis (n_members). The optimizer's own state is read and updated, so torch's `step` can go
    on from it, and checkpoints are interchangeable. Requires `has_kernel(optimizer)`.
    """
    (group,) = optimizer.param_groups
    n_members, m, n = W.shape
    adam = not isinstance(optimizer, torch.optim.SGD)
    first, moments = 0, [W.new_empty(0, 1, 1), b.new_empty(0, 1)] * 2
    if adam:
        for p in (W, b):
            if not optimizer.state[p]:
                optimizer.state[p] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        first = int(optimizer.state[W]["step"])
        moments = [optimizer.state[p][k] for k in ("exp_avg", "exp_avg_sq") for p in (W, b)]
    weight = torch.ones(n) if importance is None else importance
    weight = weight.to(W.dtype).expand(n_members, n).contiguous()
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    rule = (
        float(group["weight_decay"]),
        isinstance(optimizer, torch.optim.AdamW),
        float(beta1),
        float(beta2),
        float(group.get("eps", 0.0)),
    )
    lanes = next(lanes for lanes in _LANES if lanes >= min(batches.order.shape[2], _LANES[-1]))
    kernel = _steps(m, n, lanes, adam)
    n_steps = lr.shape[-1]
    rates = lr.double().expand(n_members, n_steps).contiguous()

    def advance_slice(members: slice) -> None:
        per_member = (W, b, batches.x, batches.order, rates, weight)
        params = [t.detach()[members].numpy() for t in per_member]
        state = tuple(t.detach()[members].numpy() for t in moments)
        kernel(*params, state, first, *rule)

    # About 20 ns per input with 6 features and 2 hidden dimensions.
    share_out(advance_slice, n_members, n_steps * batches.order.shape[2] * m * n * 2e-9)
    if adam:
        for p in (W, b):
            optimizer.state[p]["step"] += n_steps
