r"""How features share the hidden space (Elhage et al. 2022, "Toy Models of Superposition").

Feature i is column W_i of W (*batch, n_hidden, n_features), and \hat W_i its direction. A feature
counts as *represented* if |W_i| > REPRESENTED. Its

    interference    I_i = sum_{j != i} (\hat W_i . W_j)^2

is the squared projection of the other columns onto its direction, and its

    dimensionality  D_i = |W_i|^2 / (|W_i|^2 + I_i) = |W_i|^2 / sum_j (\hat W_i . W_j)^2

the fraction of a hidden dimension that it has to itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

REPRESENTED = 0.5
"""Length of a column above which its feature counts as represented."""


def represented(W: Tensor) -> Tensor:
    """Whether each feature is represented, (*batch, n_features)."""
    return W.square().sum(-2).sqrt() > REPRESENTED


def interference(W: Tensor) -> Tensor:
    """I_i of each feature, (*batch, n_features); 0 for a column of zeros."""
    square = W.square().sum(-2)
    gram = W.mT @ W
    others = gram.square().sum(-1) - square.square()
    return torch.where(square > 0, others.clamp(min=0) / square, 0.0)


def dimensionality(W: Tensor) -> Tensor:
    """D_i of each feature, (*batch, n_features).

    1 for a dimension of its own, 1/2 in an antipodal pair, 2/k in a k-gon, 0 for a column of zeros.
    """
    square = W.square().sum(-2)
    return torch.where(square > 0, square / (square + interference(W)), 0.0)


class Geometry(NamedTuple):
    """The number of represented features, and the means of D_i and I_i over them, each (*batch).

    The means are NaN if no feature is represented.
    """

    features_represented: Tensor
    dimensionality: Tensor
    interference: Tensor


def geometry(W: Tensor) -> Geometry:
    shown = represented(W)
    count = shown.sum(-1)
    means = (torch.where(shown, f(W), 0.0).sum(-1) / count for f in (dimensionality, interference))
    return Geometry(count, *means)
