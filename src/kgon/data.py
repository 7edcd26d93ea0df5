"""Training inputs: their distributions, and blocks of minibatches.

A distribution maps independent uniform numbers to inputs. The caller supplies these numbers: the
same ones for a fixed data set, or new ones at every step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kgon import streams
from kgon.theory.atlas import built
from kgon.theory.critical import CriticalPoint
from kgon.theory.loss import DirectLoss, EmpiricalLoss, EstimatedLoss, Loss, PopulationLoss

WATCHED, REPORTED = 2**14, 2**17
"""Numbers of nonzero inputs that estimate the expected loss where it has no closed form: along
training (WATCHED), and, independently, for its result (REPORTED). At trained models the standard
errors are about 3% and 1% of the loss. Learning coefficients hardly depend on the sample: for 5
features in 2 dimensions, sparsity 0.95 and n = 5,000 those from 4,096 inputs, 926 active, differ by
1%."""


class Distribution:
    """A distribution of inputs x in R^n_features, written as a map from `n_uniforms` numbers."""

    n_uniforms: int

    def __init__(self, n_features: int):
        if n_features < 1:
            raise ValueError(f"data.n_features must be at least 1, got {n_features}")
        self.n_features = n_features

    def inputs(self, u: Tensor) -> Tensor:
        """Inputs (..., n_features) from independent uniform numbers u (..., n_uniforms)."""
        raise NotImplementedError(f"{type(self).__name__} has no method inputs(u)")

    def expected_loss(self, importance: Tensor | None) -> Loss:
        """The loss under this distribution: a closed form if a subclass has one, else an estimate
        from inputs that are the same for all members and steps."""
        return self._estimate("expectation", WATCHED, importance)

    def reported_loss(self, importance: Tensor | None) -> EstimatedLoss | None:
        """A more precise estimate of the expected loss from other inputs, for results: the least of
        several losses on the same inputs is too low. None if `expected_loss` is a closed form."""
        closed = type(self).expected_loss is not Distribution.expected_loss
        return None if closed else self._estimate("report", REPORTED, importance)

    def _estimate(self, purpose: str, count: int, importance: Tensor | None) -> EstimatedLoss:
        x, p_active = self.active_inputs(streams.member_keys(0, [0], purpose), count)
        return EstimatedLoss(x, p_active, importance)

    def active_inputs(self, keys: streams.Keys, count: int) -> tuple[Tensor, float]:
        """Nonzero inputs (count, n_features), and the probability that an input is nonzero.

        This default returns any inputs, with probability 1.
        """
        return draw(self, keys, 0, count)[0], 1.0

    def sample_loss(self, x: Tensor, importance: Tensor | None) -> Loss:
        """The loss of a sample x (*batch, n_samples, n_features) of this distribution."""
        return DirectLoss(x, importance)

    def critical_points(self, n_hidden: int, importance: Tensor | None) -> list[CriticalPoint]:
        """The known critical points of the expected loss, in order of loss; may be empty."""
        return []


class SingleFeature(Distribution):
    """x = a e_i with i uniform over the features and a ~ U[0, 1] (Chen et al. 2023, eq. (2))."""

    n_uniforms = 2

    def inputs(self, u: Tensor) -> Tensor:
        feature = (u[..., :1] * self.n_features).long().clamp(max=self.n_features - 1)
        return u.new_zeros(*u.shape[:-1], self.n_features).scatter(-1, feature, u[..., 1:])

    def expected_loss(self, importance: Tensor | None) -> Loss:
        return PopulationLoss(importance)

    def sample_loss(self, x: Tensor, importance: Tensor | None) -> Loss:
        return EmpiricalLoss(x, importance)

    def critical_points(self, n_hidden: int, importance: Tensor | None) -> list[CriticalPoint]:
        """The phases of the atlas; none unless all features weigh the same."""
        return [] if importance is not None else list(built(self.n_features, n_hidden).phases)


class _Bernoulli(Distribution):
    """Inputs with any number of active features, each uniform on [0, 1].

    Every `every` features are one independent choice; `sparsity` (n_choices) are their
    probabilities of being inactive.
    """

    every = 1

    def __init__(self, n_features: int, sparsity: float | Sequence[float]):
        super().__init__(n_features)
        self.n_uniforms = 2 * n_features
        each = list(sparsity) if isinstance(sparsity, Sequence) else [sparsity]
        if not all(isinstance(s, int | float) and 0 <= s < 1 for s in each):
            raise ValueError(f"data.sparsity must be numbers in [0, 1), got {sparsity}")
        n_choices = n_features // self.every
        if len(each) not in (1, n_choices):
            raise ValueError(f"data.sparsity must be one number or {n_choices}, got {len(each)}")
        self.sparsity = torch.tensor(each, dtype=torch.float64).expand(n_choices)

    def _active(self, u: Tensor) -> Tensor:
        """Which features are active, from one uniform number each: both (..., n_features)."""
        raise NotImplementedError

    def inputs(self, u: Tensor) -> Tensor:
        choices, magnitude = u[..., : self.n_features], u[..., self.n_features :]
        return torch.where(self._active(choices), magnitude, 0.0)

    def active_inputs(self, keys: streams.Keys, count: int) -> tuple[Tensor, float]:
        """See `Distribution.active_inputs`.

        If any choice is active, the first active one is among the first k with probability
        (1 - S_1 ... S_k) / (1 - S_1 ... S_n); those after it stay independent.
        """
        width = self.n_uniforms + 1
        u = torch.from_numpy(streams.uniforms(keys, 0, count * width)).view(count, width)
        first, u = u[:, 0].contiguous(), u[:, 1:]
        choices = u[:, : self.n_features : self.every]  # a view
        cut = 1 - self.sparsity.cumprod(0)
        p_active = float(cut[-1])
        first = torch.searchsorted(cut / p_active, first).unsqueeze(-1)
        choices[torch.arange(choices.shape[1]) < first] = 0.0
        choices.scatter_(-1, first, 1.0)
        return self.inputs(u), p_active


class Sparse(_Bernoulli):
    """Each feature is active with probability 1 - sparsity, then uniform on [0, 1] (Elhage et al.).

    `sparsity` is one number for all features, or a list with one for each.

    As sparsity -> 1, nearly all nonzero inputs have a single active feature. But most inputs are
    then zero, and these penalize positive biases, unlike `SingleFeature`.
    """

    def _active(self, u: Tensor) -> Tensor:
        return u >= self.sparsity


class Pairs(_Bernoulli):
    """Correlated or anticorrelated features (Elhage et al.).

    Features 2i and 2i + 1 form a pair, which is active with probability 1 - sparsity. If
    `together`, both features of an active pair are active, with independent magnitudes; else one of
    them is, each with probability 1/2.
    """

    every = 2

    def __init__(self, n_features: int, sparsity: float, together: bool):
        super().__init__(n_features, sparsity)
        if n_features % 2:
            raise ValueError(f"pairs of features need an even data.n_features, got {n_features}")
        self.together = together

    def _active(self, u: Tensor) -> Tensor:
        pair, coin = u[..., 0::2] >= self.sparsity, u[..., 1::2] < 0.5
        first, second = (pair, pair) if self.together else (pair & coin, pair & ~coin)
        return torch.stack([first, second], -1).flatten(-2)


def draw(distribution: Distribution, keys: streams.Keys, start: int, count: int) -> Tensor:
    """Inputs start, ..., start + count - 1 of each stream, (n_keys, count, n_features) float64."""
    width = distribution.n_uniforms
    u = torch.from_numpy(streams.uniforms(keys, start * width, count * width))
    x = distribution.inputs(u.view(len(keys), count, width))
    shape = (len(keys), count, distribution.n_features)
    if x.shape != shape:
        raise ValueError(
            f"data: {type(distribution).__name__}.inputs must return {shape} for u of shape "
            f"{(*shape[:2], width)}, got {tuple(x.shape)}"
        )
    return x


class Minibatches(NamedTuple):
    """The inputs of consecutive training steps: member s uses the rows x[s, order[s, t]] at step t.

    x is (n_members, n_rows, n_features), order (n_members, n_steps, batch_size) int32.
    """

    x: Tensor
    order: Tensor

    @property
    def n_steps(self) -> int:
        return self.order.shape[1]

    def step(self, t: int) -> Tensor:
        """The inputs of step t, (n_members, batch_size, n_features)."""
        member = torch.arange(len(self.x), device=self.x.device).unsqueeze(-1)
        return self.x[member, self.order[:, t].long()]


class FullBatches(NamedTuple):
    """Consecutive steps that each use the whole data set of every member: gradient descent."""

    n_steps: int
