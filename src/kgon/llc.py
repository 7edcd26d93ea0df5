r"""Local learning coefficients by Langevin dynamics, with a verdict on every estimate.

The estimator (Lau et al. 2023, arXiv 2308.12108) at a parameter w* is

    llc = nbeta (E[L_n(w)] - L_n(w*)),   w ~ exp(-nbeta L_n(w) - (localization / 2) |w - w*|^2),

with nbeta = n / log n for n samples. The draws are devinterp's: one `SGMCMC` optimizer on
parameters that stack all chains of all points, which is exactly as many independent chains because
its update is elementwise.

Shapes: parameters are (*batch, ...), a stack of chains (n_chains, *batch, ...); a loss maps
parameters to (n_chains, *batch).
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from devinterp.optim import SGMCMC
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kgon import streams
from kgon.loss import EmpiricalLoss, PopulationLoss
from kgon.moment_kernels import CompiledLoss

VERDICTS = ("ok", "unconverged", "escaped", "diverged")

BELOW = 0.05
"""The paper discards a chain with more than this share of draws below L(w*) (App. K)."""
RHAT = 1.2
"""Split R-hat above which chains disagree. Flat directions of k-gons mix slowly, and the loss,
the only thing that is averaged, feels them little: the usual 1.1 or 1.01 would reject runs whose
standard error is already small."""
DRIFT = 4.0
"""Standard errors by which the two halves of the draws may differ."""

SamplerFactory = Callable[..., SGMCMC]


@dataclass(frozen=True)
class LLC:
    """Estimates of local learning coefficients, each field over (*batch) unless it says otherwise.

    Attributes:
        mean: the estimate, the mean of `per_chain` over the chains that were kept.
        stderr: its standard error over chains (NaN for a single chain).
        per_chain: (n_chains, *batch), each chain's own estimate.
        rhat: split R-hat of the loss trace (ArviZ).
        ess: effective number of draws of the loss trace, all chains together (ArviZ).
        below: share of draws with a loss below L(w*).
        drift: mean of the second half of the draws less the first's, in LLC units.
        acceptance: mean acceptance probability that a Metropolis correction would have had (MALA):
            near 1 the discretisation error is small. NaN for preconditioned samplers.
        kept: number of chains kept.
        verdict: code of the verdict, an index into VERDICTS; `verdicts` has the words.
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


class _ChainNoise(TorchFunctionMode):
    """Gives `SGMCMC.step` the noise of each chain's own stream.

    devinterp draws its noise for the whole stack by one torch.normal a parameter, so that a
    chain's noise would depend on who stands beside it in the stack.
    """

    def __init__(self, keys: streams.Keys, params: list[Tensor]):
        super().__init__()
        self.keys = keys.ravel()
        self.stack = keys.shape
        self.sizes = [p.numel() // max(keys.size, 1) for p in params]
        self.width = sum(self.sizes) + sum(self.sizes) % 2
        self.params = params
        self.block = torch.empty(keys.size, self.width, dtype=torch.float64)
        self.turn: Iterator[Tensor] = iter(())

    def draw(self, step: int) -> None:
        """Draw the noise of one step for all parameters."""
        streams.normals(self.keys, step * self.width, self.block.numpy())
        pieces = self.block[:, : sum(self.sizes)].split(self.sizes, -1)
        self.turn = iter(
            [z.reshape(p.shape).to(p) for z, p in zip(pieces, self.params, strict=True)]
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.normal:
            return next(self.turn)
        return func(*args, **(kwargs or {}))


def estimate_llc(
    loss: Callable[..., Tensor],
    *params: Tensor,
    nbeta: float,
    lr: float,
    localization: float,
    n_chains: int,
    n_draws: int,
    n_burnin: int,
    seed: int | streams.Keys,
    discard: float | None = None,
    sampler: SamplerFactory = SGMCMC.sgld,
) -> LLC:
    """Local learning coefficients at any number of parameters at once.

    Args:
        loss: maps stacked parameters to losses (n_chains, *batch), each depending on its own
            parameters only. A `value_and_grad` method is used where there is one, else autograd.
        params: the points w*, one tensor for each parameter with the same leading axes: W
            (*batch, n_hidden, n_features) and b (*batch, n_features) for the losses of kgon. The
            batch shape is that of loss(*params).
        nbeta: inverse temperature times the number of samples; n / log n as a rule.
        lr: step size (eps of the Langevin step).
        localization: strength of the pull towards w* (gamma).
        n_chains: chains at each point.
        n_draws: draws of each chain that count, after n_burnin that do not.
        seed: of the noise. An integer, or stream keys (*batch) if a point's noise must not depend
            on which other points are estimated with it.
        discard: leave out chains with more than this share of draws below L(w*) (the paper: 0.05);
            None keeps all.
        sampler: `SGMCMC.sgld`, `SGMCMC.rmsprop_sgld`, or a partial of one.

    Returns:
        Estimates over (*batch). The first of these rules that holds gives the verdict:
        *diverged*: a draw of some chain is not finite;
        *escaped*: more than a share BELOW of all draws lie below L(w*), or no chain was kept:
        the chains found lower ground, and the number says nothing about w*;
        *unconverged*: split R-hat above RHAT, or the halves of the draws differ by more than DRIFT
        standard errors;
        *ok*: none of these.

    Raises:
        ValueError: an argument out of range, NaN in w*, parameters that share storage (each would
            get noise of its own: the tied weights of devinterp's notebook read 13.3 for 8.3), or a
            loss that does not return one value for each point.
    """
    check_settings(nbeta, lr, localization, n_chains, n_draws, n_burnin)
    _check_params(params)
    with torch.no_grad():
        reference = loss(*params).double()
    batch = reference.shape
    if any(p.shape[: len(batch)] != batch for p in params):
        raise ValueError(
            f"loss returned shape {tuple(batch)}, which is not a leading part of the parameters' "
            f"shapes {[tuple(p.shape) for p in params]}: it must give one value for each point"
        )
    on_cpu = all(p.dtype == torch.float64 and p.device.type == "cpu" for p in params)
    if isinstance(loss, PopulationLoss | EmpiricalLoss) and on_cpu:
        loss = CompiledLoss(loss, params[0].shape[-1])
    keys = subkeys(seed, batch, n_chains)
    trace, acceptance = _sample(
        loss, params, keys, nbeta, lr, localization, n_chains, n_draws, n_burnin, sampler
    )
    return _summarise(trace, reference, acceptance, nbeta, discard)


def subkeys(seed: int | streams.Keys, batch: tuple[int, ...], n_chains: int) -> streams.Keys:
    """The chains' stream keys, (n_chains, *batch)."""
    if isinstance(seed, int):
        seed = streams.member_keys(seed, range(math.prod(batch)), "llc").reshape(batch)
    if seed.shape != tuple(batch):
        raise ValueError(f"seed has keys of shape {seed.shape}, the points have {tuple(batch)}")
    return np.ascontiguousarray(np.moveaxis(streams.subkeys(seed, n_chains), -1, 0))


def check_settings(
    nbeta: float, lr: float, localization: float, n_chains: int, n_draws: int, n_burnin: int
) -> None:
    """ValueError that names the first setting out of its range."""
    positive = {"nbeta": nbeta, "lr": lr, "n_chains": n_chains, "n_draws": n_draws}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name, value in {"localization": localization, "n_burnin": n_burnin}.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def _check_params(params: tuple[Tensor, ...]) -> None:
    if not params:
        raise ValueError("estimate_llc needs at least one parameter tensor")
    if any(not bool(p.isfinite().all()) for p in params):
        raise ValueError("the parameters w* hold NaN or infinite values")
    for i, p in enumerate(params):
        if any(_share_elements(p, q) for q in params[:i]):
            raise ValueError(
                "two parameters share storage (tied weights): each would get noise of its own. "
                "Pass one tensor and tie inside the loss, W.mT @ W for instance"
            )


def _share_elements(p: Tensor, q: Tensor) -> bool:
    storage = p.untyped_storage()
    if storage.data_ptr() != q.untyped_storage().data_ptr() or not p.numel() * q.numel():
        return False
    places = torch.arange(storage.nbytes() // p.element_size())
    mine, other = (places.as_strided(t.shape, t.stride(), t.storage_offset()) for t in (p, q))
    return bool(torch.isin(mine, other).any())


def _value_and_grad(loss: Callable[..., Tensor], params: list[Tensor]) -> tuple[Tensor, ...]:
    if hasattr(loss, "value_and_grad"):
        return loss.value_and_grad(*params)
    leaves = [p.detach().requires_grad_() for p in params]
    with torch.enable_grad():
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves)


def _sample(
    loss: Callable[..., Tensor],
    points: tuple[Tensor, ...],
    keys: streams.Keys,
    nbeta: float,
    lr: float,
    localization: float,
    n_chains: int,
    n_draws: int,
    n_burnin: int,
    sampler: SamplerFactory,
) -> tuple[Tensor, Tensor]:
    """The losses of the draws (n_draws, n_chains, *batch) and the MALA acceptance (*batch)."""
    params = [p.detach().expand(n_chains, *p.shape).clone() for p in points]
    centre = [p.clone() for p in params]
    optimizer = sampler(params, lr=lr, nbeta=nbeta, localization=localization)
    noise = _ChainNoise(keys, params)
    trace = torch.empty(n_draws, *keys.shape, dtype=torch.float64)
    accepted, probes = torch.zeros(keys.shape, dtype=torch.float64), 0
    # One step in so many is probed for its acceptance: a probe costs as much as a step.
    probe_every = max(1, n_draws // 50)
    langevin = all(
        group["preconditioner"].__class__.__name__ == "IdentityPreconditioner"
        for group in optimizer.param_groups
    )
    previous: tuple[Tensor, list[Tensor], list[Tensor]] | None = None
    for t in range(n_burnin + n_draws):
        with torch.no_grad():
            value, *grads = _value_and_grad(loss, params)
            draw = t - n_burnin
            if draw >= 0:
                trace[draw] = value
            if langevin and draw >= 0 and (previous or draw % probe_every == 0):
                force = [
                    nbeta * g + localization * (p - c)
                    for p, g, c in zip(params, grads, centre, strict=True)
                ]
                energy = nbeta * value + sum(
                    (localization / 2) * _square(p - c, keys.ndim)
                    for p, c in zip(params, centre, strict=True)
                )
                if previous:
                    accepted += _acceptance(previous, (energy, params, force), lr, keys.ndim)
                    probes += 1
                    previous = None
                else:
                    previous = (energy, [p.clone() for p in params], force)
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            noise.draw(t)
            with noise:
                optimizer.step()
    acceptance = accepted / probes if probes else accepted + math.nan
    return trace, acceptance.mean(0)


def _square(x: Tensor, n_batch: int) -> Tensor:
    return x.double().square().flatten(n_batch).sum(-1) if x.ndim > n_batch else x.double().square()


def _acceptance(
    old: tuple[Tensor, list[Tensor], list[Tensor]],
    new: tuple[Tensor, list[Tensor], list[Tensor]],
    lr: float,
    n_batch: int,
) -> Tensor:
    """min(1, pi(w') q(w | w') / pi(w) q(w' | w)) of a Langevin step from old w to new w'."""
    log_ratio = old[0] - new[0]
    for w, w_new, f, f_new in zip(old[1], new[1], old[2], new[2], strict=True):
        forth = _square(w_new - w + (lr / 2) * f, n_batch)
        back = _square(w - w_new + (lr / 2) * f_new, n_batch)
        log_ratio = log_ratio + (forth - back) / (2 * lr)
    return log_ratio.double().clamp(max=0).exp()


def _summarise(
    trace: Tensor, reference: Tensor, acceptance: Tensor, nbeta: float, discard: float | None
) -> LLC:
    finite = trace.isfinite().all(0)
    excess = nbeta * (trace - reference)
    per_chain = excess.mean(0)
    below = (trace < reference).double().mean(0)
    keep = finite if discard is None else finite & (below <= discard)
    kept = keep.sum(0)
    mean, stderr = _mean_over_chains(per_chain, keep)
    half = len(trace) // 2
    halves = excess[half:].mean(0) - excess[: max(half, 1)].mean(0)
    drift, drift_error = _mean_over_chains(halves, finite)
    rhat, ess = _convergence(trace)
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


def _convergence(trace: Tensor) -> tuple[Tensor, Tensor]:
    """Split R-hat and effective sample size of each point's loss trace, by ArviZ, (*batch)."""
    with warnings.catch_warnings():
        # ArviZ announces its next major release at import, and doubts that many chains are meant.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="More chains")
        return _arviz(trace)


def _arviz(trace: Tensor) -> tuple[Tensor, Tensor]:
    import arviz

    chains = trace.movedim(0, 1)
    if chains.shape[0] * chains.shape[1] < 4 or chains.shape[1] < 4:
        unknown = torch.full(trace.shape[2:], math.nan, dtype=torch.float64)
        return unknown, unknown.clone()
    data = arviz.convert_to_dataset({"loss": chains.numpy()})
    rhat = arviz.rhat(data, method="split")["loss"].values
    ess = arviz.ess(data, method="mean")["loss"].values
    return torch.as_tensor(rhat), torch.as_tensor(ess)
