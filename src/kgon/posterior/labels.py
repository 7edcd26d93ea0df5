"""The phases of posterior draws, by three rules side by side.

A draw is not close to a critical point: its columns fluctuate by about 1/sqrt(n). Each rule gives
it a label. Where the rules disagree (below about 400 samples at n_features = 6), the share of a
phase depends on the rule.

- `quench_labels`, the reference: the phase of the atlas at whose level gradient descent of the
  population loss from the draw ends.
- `output_labels`, fast: k is the number of features whose own output f_i(e_i) = l_i^2 + b_i is
  above ON_OUTPUT, sigma the number of positive biases among the others.
- `hull_labels`, the paper's (Sec. 4): k is the number of vertices of the convex hull of the
  columns, sigma the number of positive biases.

`theory.phases` classifies training trajectories, which lie close to critical points.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgon.compiled.exact_loss import Descent, descent
from kgon.theory.atlas import built
from kgon.theory.critical import format_label, parse_label
from kgon.theory.phases import ON_OUTPUT, OTHER, check_shapes

LEVEL_TOLERANCE = 0.002
"""Largest distance of a quenched loss from a critical level. The two closest levels at
n_features = 6 are 0.007 apart; a converged descent ends within 1e-6 of a level."""

QUENCH_SLOPE = 1e-6
"""Norm of the gradient below which a descent has converged."""
QUENCH_STEPS = 50_000


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a stack of parameters.

    Attributes:
        code: (*batch), an index into `labels`.
        labels: of critical points; "0", "0+", ... where no feature is on; or `other`.
    """

    code: Tensor
    labels: tuple[str, ...]

    @classmethod
    def of(cls, k: Tensor, sigma: Tensor, phi: Tensor) -> "Labels":
        """The labels k^{sigma+, phi-}, each argument (*batch)."""
        rows = torch.stack([k, sigma, phi], -1)
        distinct, code = torch.unique(rows.reshape(-1, 3), dim=0, return_inverse=True)
        return cls(code.view(k.shape), tuple(format_label(*row) for row in distinct.tolist()))

    @property
    def k(self) -> Tensor:
        """The number of columns of the shape, (*batch); -1 for `other`."""
        table = [-1 if x == OTHER else 0 if x[0] == "0" else parse_label(x)[0] for x in self.labels]
        return torch.tensor(table, dtype=torch.int64)[self.code]

    def where(self, label: str) -> Tensor:
        """Whether each element has this label, (*batch)."""
        return self.code == (self.labels.index(label) if label in self.labels else -1)

    @property
    def present(self) -> list[str]:
        """The labels that occur, the most frequent first."""
        counts = torch.bincount(self.code.flatten(), minlength=len(self.labels))
        order = counts.argsort(descending=True, stable=True).tolist()
        return [self.labels[i] for i in order if counts[i]]

    def masks(self, by: str = "label") -> dict[str, Tensor]:
        """For each phase that occurs, whether each element is in it, (*batch).

        Args:
            by: "k" for families, by the number of columns of the shape; "label" for labels, the
                most frequent first.
        """
        if by == "label":
            return {label: self.where(label) for label in self.present}
        values = sorted(set(self.k.flatten().tolist()))
        return {OTHER if k < 0 else str(k): self.k == k for k in values}

    @property
    def names(self) -> Any:
        """The labels in words, nested as deeply as the batch."""
        return np.array(self.labels)[self.code.numpy()].tolist()


def quench(W: Tensor, b: Tensor) -> Descent:
    """Gradient descent of the population loss from each parameter until it converges."""
    check_shapes(W, b)
    return descent(W, b, QUENCH_SLOPE, QUENCH_STEPS)


def quench_labels(quenched: Descent) -> Labels:
    """The phase of the atlas whose loss is nearest; `other` beyond LEVEL_TOLERANCE."""
    n_hidden, n_features = quenched.W.shape[-2:]
    phases = built(n_features, n_hidden).phases
    if not phases:
        raise ValueError(
            f"no critical level is known for n_features={n_features}, n_hidden={n_hidden}"
        )
    levels = torch.tensor([point.loss for point in phases], dtype=torch.float64)
    distance, nearest = (quenched.loss.unsqueeze(-1) - levels).abs().min(-1)
    code = torch.where(distance <= LEVEL_TOLERANCE, nearest, len(phases))
    return Labels(code, (*(point.label for point in phases), OTHER))


def output_labels(W: Tensor, b: Tensor) -> Labels:
    """k = features with l_i^2 + b_i > ON_OUTPUT, sigma = positive biases of the others.

    With n_hidden = 2, n_features >= 4 and fewer than four of these, the label is that of a 4-gon
    with the missing columns switched off (phi), which has the same loss. For other n_hidden k is
    the number of features that are on, whatever shape they form.
    """
    check_shapes(W, b)
    on = W.square().sum(-2) + b > ON_OUTPUT
    n_on = on.sum(-1)
    k = n_on.clamp(min=4) if W.shape[-2] == 2 and b.shape[-1] >= 4 else n_on
    return Labels.of(k, (~on & (b > 0)).sum(-1), k - n_on)


def hull_labels(W: Tensor, b: Tensor) -> Labels:
    """k = vertices of the convex hull of W's columns, sigma = positive biases (n_hidden = 2)."""
    check_shapes(W, b)
    if W.shape[-2] != 2:
        raise ValueError(f"the hull rule is for n_hidden = 2, got n_hidden={W.shape[-2]}")
    n = b.shape[-1]
    k = torch.ones_like(b[..., 0], dtype=torch.int64)
    if n > 1:
        others = torch.tensor([[j for j in range(n) if j != i] for i in range(n)])
        difference = W[..., others] - W.unsqueeze(-1)
        # A column is a vertex if the directions to all others fit into less than half a turn.
        angle = torch.atan2(difference[..., 1, :, :], difference[..., 0, :, :]).sort(-1).values
        turn = torch.cat([angle, angle[..., :1] + 2 * math.pi], -1)
        k = (turn.diff(dim=-1).amax(-1) > math.pi).sum(-1)
    return Labels.of(k, (b > 0).sum(-1), torch.zeros_like(k))


def agreement(one: Labels, other: Labels, by: str = "k") -> Tensor:
    """Whether two rules agree on each element, (*batch): on `k` alone, or on the whole `label`."""
    if by not in ("k", "label"):
        raise ValueError(f"by must be 'k' or 'label', got {by!r}")
    if by == "k":
        return one.k == other.k
    known = {label: i for i, label in enumerate(one.labels)}
    return one.code == torch.tensor([known.get(x, -1) for x in other.labels])[other.code]
