"""Compiled loops over training steps: what `DirectLoss.value_and_grad` and a torch optimizer
define, without a framework's cost a step.

A toy model's step is about a microsecond of arithmetic; any tensor library spends a hundred times
that on dispatch. So on a CPU the steps of a block run in one compiled scalar loop a member, with
members shared out over threads. The torch definition stays the oracle (the tests hold the two
together) and serves other devices and other optimizers.

Shapes: W (n_members, n_hidden, n_features), b (n_members, n_features), x (n_members, n_rows,
n_features), order (n_members, n_steps, batch_size), lr (n_members, n_steps), importance (n_members,
n_features).
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from kgon.data import Minibatches
from kgon.scratch import arrays
from kgon.threads import share_out

# Fused multiply-adds are allowed; reassociation is not, nor anything that assumes finite numbers:
# a diverged member must turn NaN here as it does in torch.
_jit = functools.partial(numba.njit, cache=True, nogil=True, error_model="numpy")
_FASTMATH = {"contract"}


@numba.njit(nogil=True, error_model="numpy", fastmath=_FASTMATH, inline="always")
def _gradient(m, n, w, c, x, rows, scale, dW, db, h, g, v):
    """Gradient of the minibatch loss of one member into dW, db; `scale` is 2 I / batch_size.

    h, g and v, which becomes the transpose of w, are room: inner loops run along memory and have no
    sum of their own, so that they are done on several numbers at once, in the order written here.
    """
    for j in range(n):
        db[j] = 0.0
        for k in range(m):
            v[j, k] = w[k, j]
            dW[k, j] = 0.0
    for q in range(rows.size):
        row = x[rows[q]]
        for k in range(m):
            h[k] = 0.0
        for j in range(n):
            if row[j] != 0.0:
                for k in range(m):
                    h[k] += row[j] * v[j, k]
        for j in range(n):
            g[j] = c[j]
        for k in range(m):
            for j in range(n):
                g[j] += h[k] * w[k, j]
        for j in range(n):
            # Written so that a NaN goes through, as it does through torch's ReLU.
            g[j] = 0.0 if g[j] <= 0.0 else scale[j] * (g[j] - row[j])
            db[j] += g[j]
        for k in range(m):
            for j in range(n):
                dW[k, j] += h[k] * g[j]
        for k in range(m):
            h[k] = 0.0
        for j in range(n):
            for k in range(m):
                h[k] += g[j] * v[j, k]
        for j in range(n):
            if row[j] != 0.0:
                for k in range(m):
                    dW[k, j] += row[j] * h[k]


@functools.cache
def _steps(m: int, n: int, adam: bool) -> Callable[..., None]:
    # m, n and adam are constants of the compiled code: inner loops unroll, branches go.
    size = m * n

    @_jit(fastmath=_FASTMATH)
    def steps(W, b, x, order, lr, importance, state, first, decay, decoupled, beta1, beta2, eps):
        w, dW, v = arrays(3, size, W.dtype)
        c, db, g, scale = arrays(4, n, W.dtype)
        (h,) = arrays(1, m, W.dtype)
        w, dW, v = w.reshape(m, n), dW.reshape(m, n), v.reshape(n, m)
        mW, mb, vW, vb = state
        for s in range(W.shape[0]):
            rates = lr[s]
            for j in range(n):
                c[j] = b[s, j]
                scale[j] = 2.0 * importance[s, j] / order.shape[2]
                for k in range(m):
                    w[k, j] = W[s, k, j]
            for t in range(order.shape[1]):
                _gradient(m, n, w, c, x[s], order[s, t], scale, dW, db, h, g, v)
                if decoupled:
                    shrink = 1.0 - rates[t] * decay
                    for j in range(n):
                        c[j] *= shrink
                        for k in range(m):
                            w[k, j] *= shrink
                elif decay != 0.0:
                    for j in range(n):
                        db[j] += decay * c[j]
                        for k in range(m):
                            dW[k, j] += decay * w[k, j]
                if adam:
                    rate = rates[t] / (1.0 - beta1 ** (first + t + 1))
                    root = 1.0 / np.sqrt(1.0 - beta2 ** (first + t + 1))
                    for j in range(n):
                        mb[s, j] += (db[j] - mb[s, j]) * (1.0 - beta1)
                        vb[s, j] = vb[s, j] * beta2 + (1.0 - beta2) * db[j] * db[j]
                        c[j] -= rate * mb[s, j] / (np.sqrt(vb[s, j]) * root + eps)
                        for k in range(m):
                            mW[s, k, j] += (dW[k, j] - mW[s, k, j]) * (1.0 - beta1)
                            vW[s, k, j] = vW[s, k, j] * beta2 + (1.0 - beta2) * dW[k, j] * dW[k, j]
                            w[k, j] -= rate * mW[s, k, j] / (np.sqrt(vW[s, k, j]) * root + eps)
                else:
                    for j in range(n):
                        c[j] -= rates[t] * db[j]
                        for k in range(m):
                            w[k, j] -= rates[t] * dW[k, j]
            for j in range(n):
                b[s, j] = c[j]
                for k in range(m):
                    W[s, k, j] = w[k, j]

    return steps


def _is_plain_sgd(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    return type(optimizer) is torch.optim.SGD and group["momentum"] == 0 and not group["maximize"]


def _is_plain_adam(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and not (
        group["amsgrad"] or group["maximize"]
    )


def has_kernel(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `advance` knows this optimizer: SGD without momentum, Adam, AdamW, on a CPU."""
    (group, *others) = optimizer.param_groups
    plain = _is_plain_sgd(optimizer, group) or _is_plain_adam(optimizer, group)
    return plain and not others and all(p.device.type == "cpu" for p in group["params"])


def advance(
    W: Tensor,
    b: Tensor,
    optimizer: torch.optim.Optimizer,
    lr: Tensor,
    batches: Minibatches,
    importance: Tensor | None,
) -> None:
    """Advance W and b in place by as many steps of `optimizer` as there are learning rates, each on
    the loss of its minibatch.

    Learning rates (n_steps,) and importance (n_features,) are those of all members; a first axis
    (n_members) gives each its own. The optimizer's own state is used and kept, so a run may go on
    with torch's `step`, and a checkpoint of one is a checkpoint of the other. Only for optimizers
    with `has_kernel`.
    """
    (group,) = optimizer.param_groups
    n_members, m, n = W.shape
    adam = _is_plain_adam(optimizer, group)
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
    kernel = _steps(m, n, adam)
    n_steps = lr.shape[-1]
    rates = lr.double().expand(n_members, n_steps).contiguous()

    def advance_slice(part: slice) -> None:
        members = (W, b, batches.x, batches.order, rates, weight)
        params = [t.detach()[part].numpy() for t in members]
        state = tuple(t.detach()[part].numpy() for t in moments)
        kernel(*params, state, first, *rule)

    # About 20 ns an input, 6 features and 2 hidden dimensions.
    share_out(advance_slice, n_members, n_steps * batches.order.shape[2] * m * n * 2e-9)
    if adam:
        for p in (W, b):
            optimizer.state[p]["step"] += n_steps
