r"""Local learning coefficients by Langevin dynamics, with a verdict on every estimate.

The estimator (Lau et al. 2023, arXiv 2308.12108) at a parameter w* is

    llc = nbeta (E[L_n(w)] - L_n(w*)),   w ~ exp(-nbeta L_n(w) - (localization / 2) |w - w*|^2),

with nbeta = n / log n for n samples. The draws are those of devinterp's `SGMCMC` on parameters that
stack all chains of all w* (`kgon.llc.langevin`). Each w* may have its own nbeta, lr and
localization, so a grid of settings is one stack too (`kgon.llc.calibration`).

Shapes: parameters are (*batch, ...), a stack of chains (n_chains, *batch, ...); a loss maps
parameters to (n_chains, *batch).

Memory: the losses of all draws are kept, 8 bytes each, and summarising them takes as much again; a
call that would not fit is refused. Chains run in chunks (`langevin.CHUNK`), whose memory does not
grow with the number of chains.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.compiled.machine import check_fits
from kgon.llc.convergence import convergence
from kgon.llc.hmc import HMC
from kgon.llc.langevin import SGLD, SamplerFactory, sample
from kgon.theory.loss import EmpiricalLoss, PopulationLoss
from kgon.theory.repeatable import check_repeatable

VERDICTS = ("ok", "unconverged", "escaped", "diverged")

BELOW = 0.05
"""The paper discards a chain with more than this share of draws below L(w*) (App. K)."""
RHAT = math.sqrt(2)
"""Split R-hat above which a chain's draws are not enough.

R-hat^2 - 1 is the variance of the means of half chains over the variance inside them: one over the
number of independent draws in half a chain. At sqrt(2) that number is one, so a chain forgets where
it was within half its length. Chains that still remember their start give far more: sqrt(6) = 2.4
if the loss moves like Brownian motion. Stricter rules (1.1, 1.01) are for a posterior that needs
every chain. Here many independent chains are averaged: their noise is in the standard error, and a
memory of the start shows as drift."""
DRIFT = 4.0
"""Largest difference between the two halves of the draws, in standard errors."""


@dataclass(frozen=True)
class LLC:
    """Estimates of local learning coefficients, each field over (*batch) unless it says otherwise.

    Attributes:
        mean: the estimate, the mean of `per_chain` over the chains that were kept.
        stderr: its standard error over chains (NaN for a single chain).
        per_chain: (n_chains, *batch), each chain's own estimate.
        rhat: split R-hat of the loss trace.
        ess: effective number of draws of the loss trace, all chains together.
        below: share of draws with a loss below L(w*).
        drift: estimate from the second half of the draws less that from the first.
        acceptance: mean acceptance probability that a Metropolis correction would have had (MALA):
            near 1 the discretisation error is small. NaN for anything but plain SGLD.
        kept: number of chains kept.
        verdict: an index into VERDICTS; `verdicts` has the words.
        trace: (n_draws, n_chains, *batch), the losses of the draws.
    """

    mean: Tensor
    stderr: Tensor
    per_chain: Tensor
    rhat: Tensor
    ess: Tensor
    below: Tensor
    drift: Tensor
    acceptance: Tensor
    kept: Tensor
    verdict: Tensor
    trace: Tensor

    @property
    def verdicts(self) -> Any:
        """The verdicts in words, as a nested list over (*batch)."""
        words = np.array(VERDICTS, dtype=object)[self.verdict.numpy()]
        return np.asarray(words, dtype=object).tolist()


def estimate_llc(
    loss: Callable[..., Tensor],
    *params: Tensor | Mapping[str, Tensor],
    nbeta: float | Tensor,
    lr: float | Tensor | None = None,
    localization: float | Tensor,
    n_chains: int,
    n_draws: int,
    n_burnin: int,
    seed: int | streams.Keys,
    discard: float | None = None,
    sampler: SamplerFactory | HMC = SGLD,
) -> LLC:
    """Local learning coefficients at any number of parameters at once.

    Args:
        loss: maps stacked parameters to losses (n_chains, *batch), each of which depends on its own
            parameters only and is the same at every call. Its `value_and_grad` method is used if
            it has one, else autograd. For a single w* without leading axes a `torch.vmap` of the
            loss of one parameter will do.
        params: w*, one tensor for each parameter with the same leading axes *batch, the shape of
            loss(*params): W (*batch, n_hidden, n_features) and b (*batch, n_features) for the
            losses of kgon. Or one dict of such tensors, which the loss then takes. Chains run in
            the parameters' dtype; losses are kept and averaged in float64.
        nbeta: inverse temperature times the number of samples, usually n / log n. Like lr and
            localization a number, or a tensor that broadcasts to *batch: a value for each w*.
        lr: step size of Langevin dynamics (eps). Not used by HMC, which adapts its own.
        localization: strength of the pull towards w* (gamma).
        n_chains: chains at each w*.
        n_draws: draws that each chain keeps, after n_burnin that it discards.
        seed: of the noise. An integer, or stream keys (*batch) if the noise at a w* must not
            depend on the others.
        discard: leave out chains with more than this share of draws below L(w*) (the paper: 0.05);
            None keeps all.
        sampler: `SGMCMC.sgld`, `SGMCMC.rmsprop_sgld`, or a partial of one with devinterp's options
            (a `mask` is a list with a tensor for each parameter, of a shape that broadcasts to that
            of w*, or one tensor where there is one parameter); or `HMC()`, whose draws have no step
            bias: it gives the expectation at this nbeta and localization up to its standard error.

    Returns:
        Estimates over (*batch). The verdict is the first of these that applies:
        *diverged*: a draw of some chain is not finite;
        *escaped*: more than a share BELOW of all draws lie below L(w*), or no chain was kept: the
        chains have left the neighbourhood of w* for lower losses;
        *unconverged*: split R-hat above RHAT, or the halves of the draws differ by more than DRIFT
        standard errors;
        *ok*: none of these.

    Raises:
        ValueError: an argument out of range, more draws than fit into memory, NaN in w*,
            parameters that share storage (each would get its own noise: the tied weights of
            devinterp's notebook give 13.3 instead of 8.3), a loss that does not return one value
            for each w*, differs from call to call or does not depend on one of the parameters, or
            a sampler or option that would not do on a stack of chains what devinterp says.
    """
    check_settings(nbeta, lr, localization, n_chains, n_draws, n_burnin)
    loss, w_star = _unpacked(loss, params)
    _check_params(w_star)
    on_cpu = all(p.device.type == "cpu" for p in w_star)
    if isinstance(loss, PopulationLoss | EmpiricalLoss) and on_cpu:
        loss = CompiledLoss(loss, w_star[0].shape[-1])
    # Inference mode, if the caller is in it, would allow no gradients.
    with torch.inference_mode(False), torch.no_grad():
        reference = loss_at(loss, w_star)
        batch = reference.shape
        check_memory(n_draws, n_chains, math.prod(batch))
        settings = {
            name: _setting(name, value, batch)
            for name, value in {"nbeta": nbeta, "localization": localization}.items()
        }
        keys = subkeys(seed, batch, n_chains)
        if isinstance(sampler, HMC):
            trace, acceptance = sampler.sample(loss, w_star, keys, n_draws, n_burnin, **settings)
        else:
            settings["lr"] = _setting("lr", _langevin_lr(lr), batch)
            trace, acceptance = sample(loss, w_star, keys, n_draws, n_burnin, sampler, **settings)
        return _summarise(trace, reference, acceptance.mean(0), settings["nbeta"], discard)


def loss_at(loss: Callable[..., Tensor], w_star: tuple[Tensor, ...]) -> Tensor:
    """The loss at w*, (*batch) in float64, once it is known that chains can run on it.

    Raises:
        ValueError: the loss does not return a tensor with one value for each w*, fails where it is
            given an axis of chains, or differs from call to call.
    """
    if isinstance(loss, CompiledLoss):
        return loss(*w_star)
    shapes = [tuple(p.shape) for p in w_star]

    def with_chain(*params: Tensor) -> Tensor:
        try:
            return loss(*(p.unsqueeze(0) for p in params))
        except Exception as error:
            raise ValueError(
                f"loss fails on parameters of shapes {[(1, *shape) for shape in shapes]}, chains "
                f"first: {error}. It must take any number of leading axes. A torch.vmap of a loss "
                "takes one, that of the chains, which is enough for a single w*; for several nest "
                "another vmap"
            ) from error

    with torch.no_grad():
        try:
            value = loss(*w_star)
        except Exception:
            # A torch.vmap needs the axis of chains.
            value = with_chain(*w_star)
            if value.shape[:1] != (1,):
                raise
            value = value[0]
            checked = with_chain
        else:
            with_chain(*w_star)
            checked = loss
        if not isinstance(value, Tensor):
            raise ValueError(
                f"loss returned {type(value).__name__}, not a tensor with one value for each w*"
            )
        if any(shape[: value.ndim] != value.shape for shape in shapes):
            raise ValueError(
                f"loss returned shape {tuple(value.shape)}, but the parameters' shapes {shapes} do "
                "not start with it: it must return one value for each w*"
            )
        check_repeatable(checked, w_star)
    return value.double()


def _langevin_lr(lr: float | Tensor | None) -> float | Tensor:
    if lr is None:
        raise ValueError("lr must be given: only sampler=hmc adapts its step size")
    return lr


def _unpacked(
    loss: Callable[..., Tensor], params: tuple[Tensor | Mapping[str, Tensor], ...]
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of tensors, and the tensors; a dict of tensors is taken apart."""
    if len(params) == 1 and isinstance(params[0], Mapping):
        names = list(params[0])
        return (
            lambda *tensors: loss(dict(zip(names, tensors, strict=True))),
            tuple(params[0].values()),
        )
    tensors = tuple(p for p in params if isinstance(p, Tensor))
    if len(tensors) < len(params):
        raise ValueError(
            "the parameters must be tensors, or one dict of tensors; got "
            + ", ".join(type(p).__name__ for p in params)
        )
    return loss, tensors


def _setting(name: str, value: float | Tensor, batch: tuple[int, ...]) -> float | Tensor:
    """A setting as a number, or as a value for each w*, (*batch)."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return float(value)
    try:
        return value.double().expand(batch)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be a number or broadcast to the "
            f"shape of the loss at w*, {tuple(batch)}"
        ) from None


def check_memory(n_draws: int, n_chains: int, n_estimates: int) -> None:
    """ValueError if the losses of all draws would not fit into memory."""
    # 8 bytes each, and as much again to summarise them.
    check_fits(
        2 * 8 * n_draws * n_chains * n_estimates,
        f"the losses of {n_estimates} estimates with n_chains={n_chains} and n_draws={n_draws}",
        "take fewer draws, chains or estimates",
    )


def subkeys(seed: int | streams.Keys, batch: tuple[int, ...], n_chains: int) -> streams.Keys:
    """The chains' stream keys, (n_chains, *batch)."""
    keys = streams.seed_keys(seed, batch, "llc")
    return np.ascontiguousarray(np.moveaxis(streams.subkeys(keys, n_chains), -1, 0))


def check_settings(
    nbeta: float | Tensor,
    lr: float | Tensor | None,
    localization: float | Tensor,
    n_chains: int,
    n_draws: int,
    n_burnin: int,
) -> None:
    """Check the settings of the chains.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """
    for name, count in {"n_chains": n_chains, "n_draws": n_draws, "n_burnin": n_burnin}.items():
        if not isinstance(count, Integral):
            raise ValueError(f"{name} must be a whole number, got {count}")
    positive = {"nbeta": nbeta, "lr": lr, "n_chains": n_chains, "n_draws": n_draws}
    for name, value in positive.items():
        for v in _each(value):
            if not 0 < v < math.inf:
                raise ValueError(f"{name} must be positive, got {v}")
    for name, value in {"localization": localization, "n_burnin": n_burnin}.items():
        for v in _each(value):
            if not 0 <= v < math.inf:
                raise ValueError(f"{name} must be >= 0, got {v}")


def _each(value: float | Tensor | None) -> list[float]:
    if value is None:
        return []
    return value.flatten().tolist() if isinstance(value, Tensor) else [value]


def _check_params(params: tuple[Tensor, ...]) -> None:
    if not params:
        raise ValueError("estimate_llc needs at least one parameter tensor")
    if len({p.dtype for p in params}) > 1:
        raise ValueError(
            f"the parameters must have one dtype, got {', '.join(str(p.dtype) for p in params)}"
        )
    if any(not p.is_floating_point() for p in params):
        raise ValueError(
            f"the parameters must be floating-point tensors, got {params[0].dtype}: a chain takes "
            "real steps"
        )
    if any(not bool(p.isfinite().all()) for p in params):
        raise ValueError("w* holds NaN or infinite values")
    for i, p in enumerate(params):
        if any(_share_elements(p, q) for q in params[:i]):
            raise ValueError(
                "two parameters share storage (tied weights), but each would get its own noise. "
                "Pass one tensor and tie inside the loss, W.mT @ W for instance"
            )


def _share_elements(p: Tensor, q: Tensor) -> bool:
    storage = p.untyped_storage()
    if storage.data_ptr() != q.untyped_storage().data_ptr() or not p.numel() * q.numel():
        return False
    places = torch.arange(storage.nbytes() // p.element_size())
    mine, other = (places.as_strided(t.shape, t.stride(), t.storage_offset()) for t in (p, q))
    return bool(torch.isin(mine, other).any())


def _summarise(
    trace: Tensor,
    reference: Tensor,
    acceptance: Tensor,
    nbeta: float | Tensor,
    discard: float | None,
) -> LLC:
    mean_loss = trace.mean(0)
    finite = mean_loss.isfinite()  # a single draw that is not finite spoils the mean
    per_chain = nbeta * (mean_loss - reference)
    below = (trace < reference).sum(0) / len(trace)
    keep = finite if discard is None else finite & (below <= discard)
    kept = keep.sum(0)
    mean, stderr = _mean_over_chains(per_chain, keep)
    half = len(trace) // 2
    halves = nbeta * (trace[half:].mean(0) - trace[: max(half, 1)].mean(0))
    drift, drift_error = _mean_over_chains(halves, finite)
    rhat, ess = convergence(trace)
    diverged = ~finite.all(0)
    escaped = (below.mean(0) > BELOW) | (kept == 0)
    unconverged = (rhat > RHAT) | (drift.abs() > DRIFT * drift_error)
    verdict = torch.where(unconverged, 1, 0)
    verdict = torch.where(escaped, 2, verdict)
    verdict = torch.where(diverged, 3, verdict)
    return LLC(
        mean=mean,
        stderr=stderr,
        per_chain=per_chain,
        rhat=rhat,
        ess=ess,
        below=below.mean(0),
        drift=drift,
        acceptance=acceptance,
        kept=kept,
        verdict=verdict,
        trace=trace,
    )


def _mean_over_chains(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over the chains (first axis) that are kept; NaN without enough."""
    kept = keep.sum(0)
    mean = x.where(keep, 0.0).sum(0) / kept
    variance = (x - mean).square().where(keep, 0.0).sum(0) / (kept - 1)
    return mean, (variance / kept).sqrt().where(kept > 1, math.nan)
