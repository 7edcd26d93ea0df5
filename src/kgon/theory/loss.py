"""The loss of the toy model of superposition: of the population, of a sample, and input by input.

The model is f(x, w) = ReLU(W^T W x + b) with w = (W, b), and the loss L(w) = E ||x - f(x, w)||^2:
summed over the coordinates, no factor 1/2, averaged over inputs (Chen et al. 2023, Sec. 2).
Parameters carry any leading batch axes: W is (*batch, n_hidden, n_features), b is
(*batch, n_features); a loss maps them to (*batch).

For inputs with one active feature, x = a e_j, both the population loss (Lemma 3.1) and the loss of
a finite sample can be computed exactly, without a sum over the sample. Output i on input a e_j is
ReLU(a A_ij + b_i) with A = W^T W, active on a half line of a bounded by t = -b_i / A_ij. With the
truncated moments M_k = E[a^k ; feature j, output i active], k = 0, 1, 2,

    L = sum_ij I_i [A_ij^2 M_2 + 2 A_ij b_i M_1 + b_i^2 M_0]
      + sum_i  I_i [E(a^2 ; feature i) - 2 (A_ii M_2 + b_i M_1)_{j = i}].

The integrand vanishes at the threshold, so the gradient treats the M_k as constants. The population
and the empirical loss are this one function with different moments.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# Below this |A_ij| the threshold -b_i / A_ij lies outside the range of every amplitude. Dividing by
# such an A_ij would put infinities (and, times zero, NaNs) into gradients.
_TINY = 1e-150


class Loss(Protocol):
    """What samplers and callbacks take: a loss of stacked parameters that knows its gradient."""

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss, (*batch)."""
        ...

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (*batch), dL/dW (*batch, n_hidden, n_features), dL/db (*batch, n_features)."""
        ...


class UniformMoments:
    """Moments of the paper's input, eq. (2): the feature uniform over n_features, a ~ U[0, 1].

    `total` holds E[a^k ; feature j] for k = 0, 1, 2, each (n_features,), with the dtype and device
    of `like`.
    """

    def __init__(self, n_features: int, like: Tensor):
        self.n_features = n_features
        self.total = tuple(like.new_full((n_features,), 1 / (k * n_features)) for k in (1, 2, 3))

    def tail(self, t: Tensor) -> tuple[Tensor, ...]:
        """E[a^k ; a > t_ij, feature j] for k = 0, 1, 2, each of the shape of t: (..., i, j)."""
        t = t.clamp(0, 1)
        return tuple((1 - t**k) / (k * self.n_features) for k in (1, 2, 3))


class SampleMoments:
    """Moments of a finite sample: amplitudes sorted once per feature, then prefix sums.

    A threshold takes one binary search, so a loss takes O(n_features^2 log n_samples).
    `x` is (*data_batch, n_samples, n_features) with at most one nonzero entry a row; a row of zeros
    is the input a = 0 and counts as feature 0. `total` and `tail` are as in `UniformMoments`, with
    the axes *data_batch in front.
    """

    def __init__(self, x: Tensor):
        _check_inputs(x)
        if not bool(torch.isfinite(x).all()):
            raise ValueError("x holds NaN or infinite values")
        if int((x != 0).sum(-1).amax()) > 1:
            raise ValueError(
                "x has rows with several active features; the exact empirical loss is for "
                "single-feature inputs (use DirectLoss for others)"
            )
        n_samples, n_features = x.shape[-2:]
        feature = x.abs().argmax(-1)
        amplitude = x.gather(-1, feature.unsqueeze(-1)).squeeze(-1)
        belongs = feature.unsqueeze(-2) == torch.arange(n_features, device=x.device).unsqueeze(-1)
        # (*data_batch, n_features, n_samples); the amplitudes of other features sort to the end.
        padded = torch.where(belongs, amplitude.unsqueeze(-2), torch.inf).sort(-1).values
        padded = padded[..., : max(int(belongs.sum(-1).amax()), 1)].contiguous()
        present = padded.isfinite()
        a = torch.where(present, padded, 0.0)
        head = [
            torch.nn.functional.pad((power / n_samples).cumsum(-1), (1, 0))
            for power in (present.to(a.dtype), a, a * a)
        ]
        self.sorted = padded
        self.total = tuple(h[..., -1] for h in head)
        # Entry k holds the moments of the amplitudes k, k + 1, ...; the last entry is 0.
        self.tails = tuple(h[..., -1:] - h for h in head)

    def tail(self, t: Tensor) -> tuple[Tensor, ...]:
        # searchsorted needs the shape (*data_batch, feature j, thresholds).
        stacked = t.detach().reshape(-1, *self.sorted.shape[:-2], *t.shape[-2:])
        query = stacked.movedim((0, -2), (-2, -1))
        index = torch.searchsorted(self.sorted, query.flatten(-2).contiguous(), right=True)
        return tuple(
            table.gather(-1, index).view(query.shape).movedim((-2, -1), (0, -2)).reshape(t.shape)
            for table in self.tails
        )


def _check_inputs(x: Tensor) -> None:
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(
            f"x must be (*batch, n_samples >= 1, n_features >= 1), got {tuple(x.shape)}"
        )


def _parameters(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """W and b in floating point; ValueError if their shapes do not fit together."""
    if W.ndim < 2 or b.ndim < 1 or W.shape[-1] != b.shape[-1] or b.shape[-1] < 1:
        raise ValueError(
            "W must be (*batch, n_hidden, n_features >= 1) and b (*batch, n_features), "
            f"got {tuple(W.shape)} and {tuple(b.shape)}"
        )
    if W.is_floating_point() and b.is_floating_point():
        return W, b
    dtype = torch.promote_types(W.dtype, b.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return W.to(dtype), b.to(dtype)


def _check_importance(importance: Tensor | None, n_features: int) -> None:
    if importance is not None and importance.shape[-1:] != (n_features,):
        raise ValueError(
            f"importance must end in n_features={n_features}, got shape {tuple(importance.shape)}"
        )


def _active_moments(
    A: Tensor, b: Tensor, moments: UniformMoments | SampleMoments
) -> tuple[Tensor, ...]:
    """M_k over the amplitudes on which each output is active, each (*batch, output, input)."""
    b = b.unsqueeze(-1)
    tilted = A.abs() > _TINY
    t = -b / torch.where(tilted, A, 1.0)
    # Below this |A_ij| the threshold's derivative b_i / A_ij^2 may overflow (for |b_i| up to 10^4),
    # and infinity times zero is NaN.
    steep = 100 / math.sqrt(torch.finfo(A.dtype).max)
    if steep > _TINY:
        flat = A.abs() <= steep
        t = torch.where(flat, t.detach(), -b / torch.where(flat, 1.0, A))
    tails = moments.tail(t)
    active = []
    for tail, total in zip(tails, moments.total, strict=True):
        total = total.unsqueeze(-2)
        half_line = torch.where(A > 0, tail, total - tail)
        active.append(torch.where(tilted, half_line, torch.where(b > 0, total, 0.0)))
    return tuple(active)


def _weighted(output: Tensor, importance: Tensor | None) -> Tensor:
    return output if importance is None else output * importance


class _MomentLoss:
    """A single-feature loss from truncated moments, which subclasses provide."""

    importance: Tensor | None

    def _moments(self, b: Tensor) -> UniformMoments | SampleMoments:
        raise NotImplementedError

    def _prepare(self, W: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """W, b, A, M_0, M_1, M_2 and E(a^2 ; feature i)."""
        W, b = _parameters(W, b)
        _check_importance(self.importance, b.shape[-1])
        A, moments = W.mT @ W, self._moments(b)
        return W, b, A, *_active_moments(A, b, moments), moments.total[2]

    def _value(self, prepared: tuple[Tensor, ...]) -> Tensor:
        _, b, A, M_0, M_1, M_2, total = prepared
        b_i = b.unsqueeze(-1)
        output = (A * A * M_2 + 2 * A * b_i * M_1 + b_i * b_i * M_0).sum(-1)
        own = [m.diagonal(dim1=-2, dim2=-1) for m in (A * M_2, M_1)]
        output = output + total - 2 * (own[0] + b * own[1])
        return _weighted(output, self.importance).sum(-1)

    def _grad(self, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        W, b, A, M_0, M_1, M_2, _ = prepared
        b_i = b.unsqueeze(-1)
        dA = 2 * (A * M_2 + b_i * M_1)
        dA = dA - torch.diag_embed(2 * M_2.diagonal(dim1=-2, dim2=-1))
        db = 2 * (A * M_1 + b_i * M_0).sum(-1) - 2 * M_1.diagonal(dim1=-2, dim2=-1)
        if self.importance is not None:
            dA = dA * self.importance.unsqueeze(-1)
            db = db * self.importance
        return W @ (dA + dA.mT), db

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        return self._value(self._prepare(W, b))

    def grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dW and dL/db in closed form, themselves differentiable (for Hessians)."""
        return self._grad(self._prepare(W, b))

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradient in closed form, from one computation of the moments."""
        prepared = self._prepare(W, b)
        return self._value(prepared), *self._grad(prepared)


class PopulationLoss(_MomentLoss):
    """The population loss of single-feature data (Lemma 3.1, eq. (4)) as a callable.

    `importance` (..., n_features) weights output coordinate i by I_i; it may carry batch axes that
    broadcast with the parameters'.
    """

    def __init__(self, importance: Tensor | None = None):
        self.importance = importance

    def _moments(self, b: Tensor) -> UniformMoments:
        return UniformMoments(b.shape[-1], like=b)


class EmpiricalLoss(_MomentLoss):
    """The exact loss of a finite single-feature sample, (1/n) sum_x sum_i I_i (x_i - f_i(x))^2.

    A call looks up prefix sums, so its cost grows with n_samples only where these no longer fit
    into the processor's cache.

    Args:
        x: (n_samples, n_features), or (*data_batch, n_samples, n_features) for a data set per
            member; the parameters' batch axes must then end in data_batch.
        importance: (..., n_features), weights of the output coordinates.

    Raises:
        ValueError: a row of x has several active features, x is not finite, or a shape is wrong.
    """

    def __init__(self, x: Tensor, importance: Tensor | None = None):
        self.moments = SampleMoments(x)
        _check_importance(importance, x.shape[-1])
        self.importance = importance
        self.n_samples, self.n_features = x.shape[-2:]

    def _moments(self, b: Tensor) -> SampleMoments:
        if b.shape[-1] != self.n_features:
            raise ValueError(f"b has {b.shape[-1]} features, the data set has {self.n_features}")
        data_batch = self.moments.sorted.shape[:-2]
        if data_batch and b.shape[:-1][-len(data_batch) :] != data_batch:
            raise ValueError(
                f"parameters' batch axes {tuple(b.shape[:-1])} must end in the data sets' "
                f"{tuple(data_batch)}"
            )
        return self.moments


class DirectLoss:
    """The loss on given inputs with any number of active features, summed sample by sample.

    Args:
        x: (*data_batch, n_samples, n_features), broadcasting with the parameters' batch axes.
        importance: (..., n_features), weights of the output coordinates.
        share: (n_samples,), the weights of the inputs in the mean, which sum to 1; None for equal
            weights.
    """

    def __init__(self, x: Tensor, importance: Tensor | None = None, share: Tensor | None = None):
        _check_inputs(x)
        _check_importance(importance, x.shape[-1])
        self.x = x
        self.importance = importance
        self._weight = None if importance is None else importance.unsqueeze(-2)
        self.n_samples, self.n_features = x.shape[-2:]
        self.share = x.new_full(x.shape[-2:-1], 1 / x.shape[-2]) if share is None else share

    def _residual(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.x @ W.mT
        return hidden, (hidden @ W + b.unsqueeze(-2)).relu() - self.x

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        return (self.of_each(W, b) * self.share).sum(-1)

    def of_each(self, W: Tensor, b: Tensor) -> Tensor:
        """The loss on each input, (*batch, n_samples)."""
        _, residual = self._residual(*_parameters(W, b))
        return _weighted(residual.square(), self._weight).sum(-1)

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradient dL/dW = h^T g + (g W^T)^T x, dL/db = sum g.

        h = x W^T are the hidden values and g = dL/d(output), each (*batch, n_samples, ...).
        """
        W, b = _parameters(W, b)
        hidden, residual = self._residual(W, b)
        weighted = _weighted(residual, self._weight) * self.share.unsqueeze(-1)
        value = (weighted * residual).sum((-2, -1))
        output_error = torch.where(residual + self.x > 0, weighted, 0.0) * 2
        dW = hidden.mT @ output_error + (output_error @ W.mT).mT @ self.x
        return value, dW, output_error.sum(-2)


class EstimatedLoss(DirectLoss):
    """An estimate of the expected loss from sampled nonzero inputs.

    The loss on the input 0, the most frequent one in sparse data, enters exactly.

    Args:
        x: (n_samples, n_features), independent inputs, conditioned on being nonzero.
        p_active: the probability of a nonzero input.
        importance: as in `DirectLoss`.
    """

    def __init__(self, x: Tensor, p_active: float, importance: Tensor | None = None):
        of_each = x.new_full((len(x),), p_active / len(x))
        share = torch.cat([of_each, x.new_tensor([1 - p_active])])
        super().__init__(torch.cat([x, torch.zeros_like(x[:1])]), importance, share)
        self.p_active = p_active

    def with_stderr(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The estimate and its standard error for W (n_members, n_hidden, n_features) and
        b (n_members, n_features), each (n_members,)."""
        found = []
        for W_one, b_one in zip(W, b, strict=True):  # memory: one member at a time
            losses = self.of_each(W_one, b_one)
            stderr = self.p_active * losses[:-1].std() / (len(losses) - 1) ** 0.5
            found.append(torch.stack([losses @ self.share, stderr]))
        value, error = torch.stack(found, -1)
        return value, error


class SplitLoss:
    """Applies each loss to its own slice of the parameters' last batch axis.

    `losses` are pairs (slice, loss) whose slices cover the axis in order.
    """

    def __init__(self, losses: Sequence[tuple[slice, Loss]]):
        self.losses = list(losses)

    def __call__(self, W: Tensor, b: Tensor) -> Tensor:
        return torch.cat([loss(W[..., i, :, :], b[..., i, :]) for i, loss in self.losses], -1)

    def value_and_grad(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pieces = [loss.value_and_grad(W[..., i, :, :], b[..., i, :]) for i, loss in self.losses]
        value, dW, db = zip(*pieces, strict=True)
        return torch.cat(value, -1), torch.cat(dW, -3), torch.cat(db, -2)


def population_loss(W: Tensor, b: Tensor, importance: Tensor | None = None) -> Tensor:
    """L(w) = E ||x - ReLU(W^T W x + b)||^2 over x = a e_i, i uniform, a ~ U[0, 1], in closed form.

    Lemma 3.1, eq. (4) of Chen et al. (2023): L = H / (3 n_features). Differentiable, and almost
    everywhere twice differentiable.

    Args:
        W: (*batch, n_hidden, n_features). Integers are converted to torch's default float dtype.
        b: (*batch, n_features).
        importance: (..., n_features), weight I_i of output coordinate i; None for weights of 1.

    Returns:
        (*batch), summed over coordinates, without a factor 1/2.
    """
    return PopulationLoss(importance)(W, b)


def importance_weights(
    importance: float | Sequence[float] | None, n_features: int
) -> Tensor | None:
    """Weights I_i of the output coordinates, (n_features,) float64, or None for weights of 1.

    A number r stands for the geometric sequence 1, r, r^2, ... of Elhage et al.

    Raises:
        ValueError: a weight is negative or not finite, or there are not n_features of them.
    """
    if importance is None:
        return None
    try:
        if isinstance(importance, int | float):
            weights = [float(importance) ** i for i in range(n_features)]
        else:
            weights = [float(weight) for weight in importance]
    except (TypeError, ValueError, OverflowError):
        weights = []
    if len(weights) != n_features or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(
            f"model.importance must be null, a number >= 0, or n_features={n_features} numbers "
            f">= 0, got {importance}"
        )
    if all(weight == 1 for weight in weights):
        return None
    return torch.tensor(weights, dtype=torch.float64)
