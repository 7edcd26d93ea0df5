"""Langevin chains on the losses of stacked parameters, by devinterp's `SGMCMC`.

The step of `SGMCMC.sgld` (Lau et al. 2023, arXiv 2308.12108) is

    w <- w - (lr / 2) (nbeta grad L(w) + localization (w - w*)) + sqrt(lr) N(0, 1).

It is elementwise, so one optimizer on a stack of parameters runs as many independent chains. Its
time is mostly dispatch, so on kgon's exact losses plain SGLD runs in one compiled loop instead
(`exact_loss.Kernel.langevin`). The first call for a model size compares steps of the loop with
those of the optimizer and raises an error if they differ; a test compares whole chains.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from devinterp.optim import SGMCMC
from devinterp.optim.preconditioner import (
    CompositePreconditioner,
    IdentityPreconditioner,
    Preconditioner,
    PreconditionerCoefs,
)
from devinterp.optim.prior import CompositePrior
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss, Kernel
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

CHUNK = 36_000
"""Most numbers in a stack of chains for one optimizer: 2,000 chains of a 6-gon, whose parameters,
gradient, noise and temporary results fill a cache of 2 MB. A chain-step took 2.6 us with stacks of
300 chains, 1.3 us with 1,000, 1.05 us with 2,000 and 1.09 us with 10,000."""

COMPILED_CHUNK = 2**22
"""Most numbers in a stack of compiled chains, which need no temporary arrays per chain."""

SamplerFactory = Callable[..., SGMCMC]

SGLD: SamplerFactory = SGMCMC.sgld


def sample(
    loss: Callable[..., Tensor],
    w_star: tuple[Tensor, ...],
    keys: streams.Keys,
    n_draws: int,
    n_burnin: int,
    sampler: SamplerFactory,
    nbeta: float | Tensor,
    lr: float | Tensor,
    localization: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Run chains that start at w* and are pulled towards it by `localization`.

    Args:
        loss: maps stacked parameters to losses (n_chains, *batch). Its `value_and_grad` method is
            used if it has one, else autograd.
        w_star: one tensor (*batch, ...) for each parameter.
        keys: (n_chains, *batch), streams of the chains' noise.
        n_draws: draws that each chain keeps, after n_burnin that it discards.
        sampler: `SGMCMC.sgld`, `SGMCMC.rmsprop_sgld`, or a partial of one. A `mask` is a list with
            a tensor for each parameter, of a shape that broadcasts to that of w*, or one tensor
            where there is one parameter.
        nbeta, lr, localization: numbers, or a value for each w*, (*batch).

    Returns:
        The losses of the draws (n_draws, n_chains, *batch), float64, and the chains' MALA
        acceptance (n_chains, *batch), the mean over all steps from draw to draw; NaN for a single
        draw and for anything but plain SGLD.

    Raises:
        RuntimeError: the step of devinterp's SGLD differs from that of the compiled loop.
        ValueError: the loss does not return one value for each chain and w*, or does not depend on
            one of the parameters; or an option of the sampler that stacked chains do not have.
    """
    _check_options(sampler)
    # The draws of a chain are contiguous, in the order in which they are written and read.
    trace = torch.empty(*keys.shape, n_draws, dtype=torch.float64)
    acceptance = torch.empty(keys.shape, dtype=torch.float64)
    settings = _Settings(sampler, nbeta, lr, localization, n_burnin)
    double = all(p.dtype == torch.float64 for p in w_star)
    if settings.is_plain_sgld and isinstance(loss, CompiledLoss) and double:
        _check_rule(SGLD, *w_star[0].shape[-2:], loss.tables.population)
        chains: Callable[..., tuple[Tensor, Tensor]] = _compiled
        numbers = COMPILED_CHUNK
    else:
        chains, numbers = _stepped, CHUNK
    at_once = max(1, numbers // max(sum(p.numel() for p in w_star), 1))
    for start in range(0, len(keys), at_once):
        chunk = slice(start, start + at_once)
        _, acceptance[chunk] = chains(loss, w_star, keys[chunk], trace[chunk], settings)
    return trace.movedim(-1, 0), acceptance


@dataclass(frozen=True)
class _Settings:
    """A sampler and its settings.

    nbeta, lr and localization are numbers, or a value for each w*, (*batch).
    """

    sampler: SamplerFactory
    nbeta: float | Tensor
    lr: float | Tensor
    localization: float | Tensor
    n_burnin: int

    @property
    def is_plain_sgld(self) -> bool:
        """Whether the sampler is SGLD without weight decay or other additions."""
        sampler = self.sampler
        if isinstance(sampler, functools.partial):
            return sampler.func == SGLD and not sampler.args and not sampler.keywords
        return sampler == SGLD

    def optimizer(self, w: Tensor, w_star: tuple[Tensor, ...]) -> SGMCMC:
        """The optimizer of a stack w (n_chains, *batch, size) of chains that start at w*.

        The constructors of `SGMCMC` take numbers only: they test nbeta == 1 and localization > 0.
        If a setting is a tensor, the optimizer is built with placeholders, which the settings then
        replace.
        """
        nbeta, lr, localization = self.nbeta, self.lr, self.localization
        options: dict[str, Any] = {}
        if (mask := _options(self.sampler).get("mask")) is not None:
            options["mask"] = _stacked_mask(mask, w_star, w)
        if not any(isinstance(value, Tensor) for value in (nbeta, lr, localization)):
            return self.sampler([w], lr=lr, nbeta=nbeta, localization=localization, **options)
        optimizer = self.sampler([w], lr=1.0, nbeta=2.0, localization=1.0, **options)
        (group,) = optimizer.param_groups
        group["nbeta"] = _shaped(nbeta, w)
        for prior in group["prior"].priors:
            if prior.center == "initial":  # the pull, not the sampler's own weight decay
                prior.localization = _shaped(localization, w)
        steps = StepSizes(torch.as_tensor(_shaped(lr, w)).to(w))
        group["preconditioner"] = CompositePreconditioner([group["preconditioner"], steps])
        return optimizer


def _options(sampler: SamplerFactory) -> dict[str, Any]:
    """The options that a partial of one of devinterp's samplers fixes."""
    return sampler.keywords if isinstance(sampler, functools.partial) else {}


def _check_options(sampler: SamplerFactory) -> None:
    """ValueError for what would not do on stacked chains what devinterp says."""
    method = sampler.func if isinstance(sampler, functools.partial) else sampler
    if method == SGMCMC.sgnht:
        raise ValueError(
            "sampler SGMCMC.sgnht has one thermostat for a whole stack of chains and no "
            "localization: use SGMCMC.sgld or SGMCMC.rmsprop_sgld"
        )
    for name, value in _options(sampler).items():
        if name in ("lr", "nbeta", "localization"):
            raise ValueError(
                f"the sampler fixes {name}={value}: pass {name} to the estimate itself"
            )
        if name in ("save_metrics", "sketch_dim") and value:
            raise ValueError(
                f"the sampler has {name}={value}, but stacked chains keep the losses of the draws "
                "only: leave it out"
            )


def _stacked_mask(mask: Any, w_star: tuple[Tensor, ...], w: Tensor) -> Tensor:
    """devinterp's mask, one tensor for each parameter, for the stack w (n_chains, *batch, size)."""
    masks = [mask] if isinstance(mask, Tensor) else list(mask)
    shapes = [tuple(p.shape) for p in w_star]
    batch = w.shape[1:-1]
    try:
        each = [
            torch.as_tensor(m).expand(p.shape).reshape(*batch, -1)
            for m, p in zip(masks, w_star, strict=True)
        ]
    except (RuntimeError, ValueError):
        raise ValueError(
            f"the sampler's mask must have one tensor for each parameter, which broadcasts to its "
            f"shape, of {shapes}; got {[tuple(torch.as_tensor(m).shape) for m in masks]}"
        ) from None
    return torch.cat(each, -1).expand(w.shape)


def _is_plain(optimizer: SGMCMC) -> bool:
    """Whether the optimizer makes the module's step: Metropolis's rule is known for no other."""
    (group,) = optimizer.param_groups
    return (
        type(optimizer) is SGMCMC
        and isinstance(group["preconditioner"], IdentityPreconditioner | StepSizes)
        and group["noise_level"] == 1.0
        and group["bounding_box_size"] is None
        and isinstance(group["prior"], CompositePrior)
        and all(prior.center == "initial" for prior in group["prior"].priors)
    )


def _shaped(value: float | Tensor, w: Tensor) -> Any:
    """A setting, shaped to multiply a stack (n_chains, *batch, size)."""
    return value[..., None].to(w) if isinstance(value, Tensor) else value


def _stepped(
    loss: Callable[..., Tensor],
    w_star: tuple[Tensor, ...],
    keys: streams.Keys,
    trace: Tensor,
    settings: _Settings,
) -> tuple[Tensor, Tensor]:
    """Run the chains of `keys` (n_chains, *batch) by the optimizer's steps.

    Fills `trace` (n_chains, *batch, n_draws) with the losses of the draws. Returns the last
    parameters of the chains (n_chains, *batch, size) and their mean MALA acceptance
    (n_chains, *batch).
    """
    # The optimizer steps one tensor, (n_chains, *batch, size), which holds all parameters of a
    # chain; the loss gets `params`, views of it.
    centre = torch.cat([p.detach().reshape(*keys.shape[1:], -1) for p in w_star], -1)
    w = centre.expand(len(keys), *centre.shape).clone()
    sizes = [math.prod(p.shape[keys.ndim - 1 :]) for p in w_star]
    params = [
        piece.view(len(keys), *p.shape)
        for piece, p in zip(torch.split(w, sizes, -1), w_star, strict=True)
    ]
    optimizer = settings.optimizer(w, w_star)
    noise = _ChainNoise(keys, w)
    accepted = torch.zeros(keys.shape, dtype=torch.float64)
    plain = _is_plain(optimizer)
    previous: tuple[Tensor, Tensor, Tensor] | None = None
    for t in range(settings.n_burnin + trace.shape[-1]):
        with torch.no_grad():
            value, *grads = value_and_grad(loss, params, keys.shape)
            w.grad = torch.cat([g.reshape(*keys.shape, -1) for g in grads], -1)
            draw = t - settings.n_burnin
            if draw >= 0:
                trace[..., draw] = value
            if plain and draw >= 0:
                away = w - centre
                nbeta, localization = settings.nbeta, settings.localization
                force = _shaped(nbeta, w) * w.grad + _shaped(localization, w) * away
                energy = nbeta * value.double() + localization / 2 * _square(away)
                if previous:
                    accepted += _acceptance(previous, (energy, w, force), settings.lr)
                previous = (energy, w.clone(), force)
            noise.draw(t)
            with noise:
                optimizer.step()
    n_steps = trace.shape[-1] - 1
    return w, accepted / n_steps if plain and n_steps else accepted + math.nan


def value_and_grad(
    loss: Callable[..., Tensor], params: list[Tensor], shape: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """The loss and its gradient with respect to each parameter.

    Raises:
        ValueError: the loss does not have this shape, or does not depend on a parameter.
    """
    if hasattr(loss, "value_and_grad"):
        value, *grads = loss.value_and_grad(*params)
    else:
        leaves = [p.detach().contiguous().requires_grad_() for p in params]
        with torch.enable_grad():
            value = loss(*leaves)
            grads = [None] * len(leaves)
            if value.requires_grad:
                grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    if value.shape != shape:
        raise ValueError(
            f"loss returned shape {tuple(value.shape)} for parameters with batch axes "
            f"{tuple(shape)} (chains first): it must return one value for each"
        )
    for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
        if grad is None:
            own = tuple(param.shape[len(shape) :])
            raise ValueError(
                f"loss does not depend on parameter {i}, of shape {own}: pass only parameters on "
                "which it depends"
            )
    return value.detach(), *grads


def _square(x: Tensor) -> Tensor:
    return x.double().square().sum(-1)


def _acceptance(
    old: tuple[Tensor, Tensor, Tensor], new: tuple[Tensor, Tensor, Tensor], lr: float | Tensor
) -> Tensor:
    """The Metropolis acceptance min(1, pi(w') q(w | w') / (pi(w) q(w' | w))) of a Langevin step.

    The step is from w (`old`) to w' (`new`), each given as (energy, w, force).
    """
    half = _shaped(lr, old[1]) / 2
    forth = _square(new[1] - old[1] + half * old[2])
    back = _square(old[1] - new[1] + half * new[2])
    log_ratio = old[0] - new[0] + (forth - back) / (2 * lr)
    return log_ratio.double().clamp(max=0).exp()


class _ChainNoise(TorchFunctionMode):
    """Makes `SGMCMC.step` use noise from each chain's own stream.

    devinterp draws the noise of the whole stack in one call of torch.normal, so a chain's noise
    would depend on the other chains in the stack.
    """

    def __init__(self, keys: streams.Keys, w: Tensor):
        super().__init__()
        self.keys = keys.ravel()
        self.like = w
        self.width = w.shape[-1] + w.shape[-1] % 2
        self.block = torch.empty(keys.size, self.width, dtype=torch.float64)
        self.noise = w

    def draw(self, step: int) -> None:
        """Draw the noise of one step."""
        streams.normals(self.keys, step * self.width, self.block.numpy())
        self.noise = self.block[:, : self.like.shape[-1]].reshape(self.like.shape).to(self.like)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.normal:
            return self.noise * kwargs["std"]  # the sampler's noise_level
        return func(*args, **(kwargs or {}))


class StepSizes(Preconditioner):
    """A step size for each chain; `SGMCMC` itself takes one number.

    With the preconditioner G = s and lr = 1, the update of `SGMCMC` is that with lr = s.
    """

    def __init__(self, s: Tensor):
        self.coefficients = PreconditionerCoefs(s, s, s.sqrt(), 1.0)

    def get_coefficients(
        self, param: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> PreconditionerCoefs:
        return self.coefficients


def _compiled(
    loss: CompiledLoss,
    w_star: tuple[Tensor, ...],
    keys: streams.Keys,
    trace: Tensor,
    settings: _Settings,
) -> tuple[Tensor, Tensor]:
    """The same as `_stepped`, in the compiled loop."""
    n_chains, batch = len(keys), keys.shape[1:]
    contiguous = torch.contiguous_format
    W, b = (p.detach().expand(n_chains, *p.shape).clone(memory_format=contiguous) for p in w_star)
    W, b = W.view(n_chains, -1, *W.shape[-2:]), b.view(n_chains, -1, b.shape[-1])
    n_runs = W.shape[1]

    # Contiguous even for a single number, because numba compiles again for other array layouts.
    def of_runs(setting: float | Tensor) -> Tensor:
        return torch.as_tensor(setting, dtype=torch.float64).expand(batch).flatten().contiguous()

    acceptance = Kernel(loss.tables, n_runs).langevin(
        W, b, trace.view(n_chains, n_runs, -1), keys=keys.reshape(n_chains, n_runs),
        nbeta=of_runs(settings.nbeta), lr=of_runs(settings.lr),
        localization=of_runs(settings.localization), n_burnin=settings.n_burnin,
    )  # fmt: skip
    return torch.cat([W.flatten(2), b], -1).view(*keys.shape, -1), acceptance.view(keys.shape)


@functools.cache
def _check_rule(sampler: SamplerFactory, n_hidden: int, n_features: int, population: bool) -> None:
    """Compare two steps of the optimizer with those of the compiled loop.

    Two, because the localization has no effect on the first step, which starts at the centre.

    Raises:
        RuntimeError: they differ.
    """
    of_a_sample = EmpiricalLoss(torch.eye(n_features, dtype=torch.float64))
    loss = CompiledLoss(PopulationLoss() if population else of_a_sample, n_features)
    values = torch.linspace(-1.0, 1.0, (n_hidden + 1) * n_features, dtype=torch.float64)
    w_star = values[n_features:].view(n_hidden, n_features), values[:n_features]
    keys = streams.member_keys(0, [0], "rule")
    settings = _Settings(sampler, nbeta=10.0, lr=0.01, localization=2.0, n_burnin=0)
    draws = torch.empty(1, 2, dtype=torch.float64)
    looped, stepped = (
        chains(loss, w_star, keys, draws, settings)[0] for chains in (_compiled, _stepped)
    )
    # Rounding of a few terms is far below this tolerance, and another rule far above it.
    if not torch.allclose(looped, stepped, rtol=1e-9, atol=1e-12):
        raise RuntimeError(
            "the installed devinterp's SGMCMC.sgld does not make the step of kgon's compiled "
            "chains, w - lr/2 (nbeta grad L + localization (w - w*)) + sqrt(lr) N(0, 1)"
        )
