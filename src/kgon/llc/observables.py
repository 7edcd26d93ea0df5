"""Means, variances and covariances with the loss of other functions of the parameters, from the
draws of the chains that estimate a learning coefficient.

With L the loss and O an observable, expectations are over

    w ~ exp(-nbeta L(w) - (localization / 2) |w - w*|^2),

so that d E[O] / d nbeta = -Cov(O, L): susceptibilities are such derivatives. Errors
are those of `verdict.mean_and_error`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kgon.llc.convergence import convergence, diagnose
from kgon.llc.verdict import (
    ESS,
    RHAT,
    VERDICTS,
    Draws,
    Premises,
    kept_chains,
    mean_and_error,
    words,
)

Functions = Mapping[str, Callable[..., Tensor]]


@dataclass(frozen=True)
class Observable:
    """An observable O over the draws of the kept chains, each field (*batch, *shape of O).

    Attributes:
        mean, stderr: E[O] and its sampling error, twice of which hold it 19 times out of 20.
        variance, variance_error: Var O.
        covariance, covariance_error: Cov(O, L) with the loss, without nbeta.
        rhat: rank-normalised split R-hat of O, NaN where O is constant.
        ess: effective number of draws, the smaller of those for the mean and for the ranks of O.

    The chains are as long as the loss needs. An observable that mixes more slowly is *unconverged*
    by its own R-hat and ESS, at the limits of `kgon.llc.verdict`: it needs a smaller target, or
    n_draws. Where the verdict of the estimate is not ok, the draws are not those of the density
    above, and no observable's are.
    """

    mean: Tensor
    stderr: Tensor
    variance: Tensor
    variance_error: Tensor
    covariance: Tensor
    covariance_error: Tensor
    rhat: Tensor
    ess: Tensor

    @property
    def verdict(self) -> Tensor:
        """Indices into VERDICTS of ok or unconverged, (*batch, *shape of O)."""
        # A constant has no R-hat; draws that are not finite have no ESS; one chain has no error.
        unsure = (self.rhat > RHAT) | ~(self.ess >= ESS) | self.stderr.isnan()
        return unsure * VERDICTS.index("unconverged")

    @property
    def verdicts(self) -> Any:
        """The verdicts in words, as a nested list."""
        return words(self.verdict, VERDICTS).tolist()


_N_FIELDS = len(fields(Observable))


class Observables:
    """Some observables as one function of a stack of parameters.

    Args:
        functions: by name; each maps what the loss takes to values (n_chains, *batch, *shape).
        params: w*, (*batch, ...) each.
        batch: the batch axes of w*.

    Attributes:
        size: the number of real values of all observables at one w*.

    Raises:
        ValueError: an observable fails or does not return a real value for each chain and w*.
    """

    def __init__(self, functions: Functions, params: tuple[Tensor, ...], batch: tuple[int, ...]):
        self.functions = functions
        self.batch = batch
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, function in functions.items():
            value = function(*(p.unsqueeze(0) for p in params))
            if not isinstance(value, Tensor) or value.is_complex():
                raise ValueError(
                    f"observables[{name!r}] returned "
                    f"{value.dtype if isinstance(value, Tensor) else type(value).__name__}; it "
                    "must return a real tensor"
                )
            if value.shape[: 1 + len(batch)] != (1, *batch):
                raise ValueError(
                    f"observables[{name!r}] returned shape {tuple(value.shape)} for parameters "
                    f"with leading axes {(1, *batch)} (chains first): its shape must start with "
                    "them"
                )
            self.shapes[name] = tuple(value.shape[1 + len(batch) :])
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def __call__(self, params: list[Tensor]) -> Tensor:
        """Values (size, n_chains, n_points) in float64, at parameters (n_chains, *batch, ...)."""
        lead = len(params[0]), *self.batch
        values = [f(*params).double().reshape(*lead, -1) for f in self.functions.values()]
        return torch.cat(values, -1).reshape(lead[0], -1, self.size).movedim(-1, 0)

    def named(self, found: Tensor) -> dict[str, Observable]:
        """The observables by name, from what `summarise` found, (n_fields, size, n_points)."""
        pieces = torch.split(found, [math.prod(shape) for shape in self.shapes.values()], 1)
        return {
            name: Observable(*piece.movedim(1, -1).reshape(_N_FIELDS, *self.batch, *shape))
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }


def summarise(draws: Draws, premises: Premises) -> Tensor:
    """The fields of `Observable`, (n_fields, size, n_points), from the chains that are kept."""
    _, size, _, n_points = draws.observed.shape
    found = torch.full((_N_FIELDS, size, n_points), math.nan, dtype=torch.float64)
    keep = kept_chains(draws, premises)
    for point in range(n_points if size else 0):
        # (n_draws, n_chains, size), and the loss beside it.
        own = draws.observed[..., keep[:, point], point].movedim(1, -1)
        loss = draws.loss[:, keep[:, point], point, None]
        if not own.shape[1]:
            continue
        quality = diagnose(own)
        mean, error = mean_and_error(own, quality.ess_mean)
        away, loss_away = own - mean, loss - loss.mean((0, 1))
        moments = [mean_and_error(x, convergence(x)[1]) for x in (away**2, away * loss_away)]
        ess = torch.minimum(quality.ess_bulk, quality.ess_mean)
        found[..., point] = torch.stack([mean, error, *moments[0], *moments[1], quality.rhat, ess])
    return found
