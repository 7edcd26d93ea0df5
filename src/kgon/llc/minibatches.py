r"""The rows of a sample, for chains whose gradient is that of a minibatch.

At each step each chain draws batch_size of the n samples, with replacement and from a stream of its
own. The gradient g_B of their mean loss is the whole sample's, g, plus noise of mean zero and a
covariance C that is proportional to 1 / batch_size. A step of SGLD of size lr adds the noise
(lr / 2) nbeta (g_B - g) to its own, whose covariance is lr: together lr (1 + lr nbeta^2 C / 4).

The estimate is larger by what this adds. For a Gaussian target with the curvatures h_i of the loss
and C constant, to first order in lr, by

    sum_i  nbeta h_i / (nbeta h_i + localization)  lr nbeta^2 C_ii / 8  <=  lr nbeta^2 tr(C) / 8,

and tr(C) = E |g_B - g|^2. That bound is measured at every draw, and is part of the stated bias. The
draws' losses are those of the whole sample, a few rows at a time, as are the gradients by which
the acceptance of a step is found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


class Rows:
    """The n samples of a batch whose tensors all have them as their first axis.

    Attributes:
        n: the number of samples.
        size: that of a minibatch.

    Raises:
        ValueError: a batch without such an axis, or a size out of range.
    """

    def __init__(self, batch: Any, size: int):
        given: Any = size
        shapes: list[tuple[int, ...]] = []
        map_tensors(batch, lambda x: shapes.append(tuple(x.shape)))
        if len({shape[:1] for shape in shapes} | {()}) != 2:
            raise ValueError(
                "batch_size: all tensors of a batch must have the samples as their first axis; "
                f"got shapes {shapes}"
            )
        self.n, self.size = shapes[0][0], size
        if not isinstance(given, Integral) or not 1 <= size < self.n:
            raise ValueError(
                f"batch_size must be a whole number from 1 to {self.n - 1}, one less than the "
                f"samples, got {size!r}"
            )
        self.batch = batch

    @property
    def passes(self) -> int:
        """Minibatches in the whole sample."""
        return -(-self.n // self.size)

    def take(self, index: Tensor) -> Any:
        """The samples at an index tensor, whose shape takes the place of the first axis."""
        return map_tensors(self.batch, lambda x: x[index.to(x.device)])

    def pieces(self) -> Iterator[tuple[Any, float]]:
        """The whole sample, piece by piece, with each one's share."""
        for start in range(0, self.n, self.size):
            some = slice(start, min(start + self.size, self.n))
            yield (
                map_tensors(self.batch, lambda x, some=some: x[some]),
                (some.stop - start) / self.n,
            )


def map_tensors(batch: Any, function: Callable[..., Any]) -> Any:
    """The batch with a function of each of its tensors in their place."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: map_tensors(each, function) for name, each in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return tuple(map_tensors(each, function) for each in batch)
    raise ValueError(
        f"batch_size: a batch must be made of tensors, in tuples, lists or dicts; got "
        f"{type(batch).__name__}"
    )


def check_mean(rows: Rows, loss: Callable[[Any], Tensor]) -> None:
    """ValueError if the loss of some samples is not the mean of those of its two halves."""
    m = max(min(rows.size, rows.n // 2), 1)
    first, second, both = (
        float(loss(rows.take(torch.arange(*span)))) for span in ((0, m), (m, 2 * m), (0, 2 * m))
    )
    mean = (first + second) / 2
    if abs(both - mean) > 1e-4 * max(abs(both), abs(first), abs(second)) + 1e-6:
        raise ValueError(
            f"batch_size: the loss must be the mean over the samples, but that of {2 * m} is "
            f"{both:g}, and the mean of those of its halves {mean:g}"
        )
