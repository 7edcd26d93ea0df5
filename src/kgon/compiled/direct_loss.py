"""The loss on given inputs with any number of active features, in compiled code.

`kgon.theory.loss.DirectLoss` defines it. Here vector instructions work on several inputs of a block
at once, and the zero inputs of sparse data are merged into one.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.compiled.machine import share_out
from kgon.compiled.scratch import array
from kgon.jit import jit
from kgon.theory.loss import DirectLoss

_BLOCK = 64
"""Inputs of a block. All blocks are full, padded with zeros of weight 0: the order of a block's sum
depends on its size, and a member's loss must not depend on the size of others' data."""

_SECONDS = 1e-9
"""Approximate time for one entry of W and one input."""


@functools.cache
def _value_and_grad(m: int, n: int) -> Callable[..., None]:
    # Constants, so that scratch arrays are on the stack. The compiler must assume that arrays on
    # the heap overlap, and the order of sums would then depend on their addresses.
    hidden, outputs = m * _BLOCK, n * _BLOCK

    @jit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
    def value_and_grad(W, b, value, dW, db, data_set, importance, x, share):
        """`DirectLoss.value_and_grad` for data sets x (n_sets, n_features, n_rows) with weights
        `share` (n_sets, n_rows). The first axis of the other arguments runs over parameters."""
        h, v = array(hidden, np.float64), array(hidden, np.float64)
        g = array(outputs, np.float64)
        for s in range(W.shape[0]):
            rows, shares = x[data_set[s]], share[data_set[s]]
            value[s], dW[s], db[s] = 0.0, 0.0, 0.0
            for first in range(0, rows.shape[1], _BLOCK):
                for k in range(m):
                    for r in range(_BLOCK):
                        h[k * _BLOCK + r] = 0.0
                        v[k * _BLOCK + r] = 0.0
                    for j in range(n):
                        w = W[s, k, j]
                        for r in range(_BLOCK):
                            h[k * _BLOCK + r] += w * rows[j, first + r]
                for j in range(n):
                    for r in range(_BLOCK):
                        g[j * _BLOCK + r] = b[s, j]
                    for k in range(m):
                        w = W[s, k, j]
                        for r in range(_BLOCK):
                            g[j * _BLOCK + r] += w * h[k * _BLOCK + r]
                    weight, squares, total = importance[s, j], 0.0, 0.0
                    for r in range(_BLOCK):
                        p = g[j * _BLOCK + r]
                        # NaN stays NaN.
                        error = (0.0 if p <= 0.0 else p) - rows[j, first + r]
                        weighted = weight * shares[first + r] * error
                        squares += weighted * error
                        weighted = weighted if p > 0.0 else 0.0
                        total += weighted
                        g[j * _BLOCK + r] = weighted
                    value[s] += squares
                    db[s, j] += 2.0 * total
                    for k in range(m):
                        w, product = W[s, k, j], 0.0
                        for r in range(_BLOCK):
                            product += h[k * _BLOCK + r] * g[j * _BLOCK + r]
                            v[k * _BLOCK + r] += w * g[j * _BLOCK + r]
                        dW[s, k, j] += 2.0 * product
                for k in range(m):
                    for j in range(n):
                        product = 0.0
                        for r in range(_BLOCK):
                            product += v[k * _BLOCK + r] * rows[j, first + r]
                        dW[s, k, j] += 2.0 * product

    return value_and_grad


class CompiledDirectLoss:
    """A compiled form of `DirectLoss` on a CPU, with the same signature.

    It computes in float64 whatever the dtype of the parameters.
    """

    def __init__(self, loss: DirectLoss):
        *sets, n_samples, n = loss.x.shape
        x = loss.x.detach().double().reshape(-1, n_samples, n)
        self.x, self.share = _rows(x.numpy(), loss.share.double().numpy())
        self.data_set = torch.arange(len(x)).reshape(sets)
        self.importance = torch.ones(n) if loss.importance is None else loss.importance.detach()

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (*batch) in float64."""
        return self.value_and_grad(W, b)[0]

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (*batch) in float64 and its gradient in the parameters' dtype."""
        batch, own = b.shape[:-1], self.data_set.shape
        fits = len(own) <= len(batch) and all(
            k in (1, size) for k, size in zip(own[::-1], batch[::-1], strict=False)
        )
        if W.shape[:-2] != batch or not fits:
            raise ValueError(
                f"W {tuple(W.shape)} and b {tuple(b.shape)} must have the same batch axes, ending "
                f"in those of the data sets, {tuple(own)}"
            )
        W_flat, b_flat, importance, data_set = (
            p.reshape(-1, *p.shape[len(batch) :]).contiguous()
            for p in (
                W.detach().double(),
                b.detach().double(),
                self.importance.double().expand(b.shape),
                self.data_set.expand(batch),
            )
        )
        value = b_flat.new_empty(len(b_flat))
        dW, db = torch.empty_like(W_flat), torch.empty_like(b_flat)
        of_each = [t.numpy() for t in (W_flat, b_flat, value, dW, db, data_set, importance)]
        loop = _value_and_grad(*W.shape[-2:])

        def run(part: slice) -> None:
            loop(*(a[part] for a in of_each), self.x, self.share)

        share_out(run, len(value), _SECONDS * self.x.shape[-1] * W.shape[-2] * W.shape[-1])
        return value.reshape(batch), dW.reshape(W.shape).to(W), db.reshape(b.shape).to(b)


def _rows(sets: NDArray[Any], share: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Data sets (n_sets, n_samples, n_features) and the inputs' weights (n_samples,) in blocks.

    Returns x (n_sets, n_features, n_rows) and weights (n_sets, n_rows): the nonzero inputs, one
    zero with the weight of all zero inputs, and zeros of weight 0.
    """
    nonzero = (sets != 0).any(-1)
    n_nonzero = nonzero.sum(-1)
    n_rows = _BLOCK * (int(n_nonzero.max(initial=0)) // _BLOCK + 1)
    x, shares = np.zeros((len(sets), sets.shape[-1], n_rows)), np.zeros((len(sets), n_rows))
    for s, some in enumerate(sets):
        size = n_nonzero[s]
        x[s, :, :size] = some[nonzero[s]].T
        shares[s, :size] = share[nonzero[s]]
        shares[s, size] = share[~nonzero[s]].sum()
    return x, shares
