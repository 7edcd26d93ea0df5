"""Langevin chains on the losses of stacked parameters, by devinterp's `SGMCMC`.

The step of `SGMCMC.sgld` (Lau et al. 2023, arXiv 2308.12108) is

    w <- w - (lr / 2) (nbeta grad L(w) + localization (w - w*)) + sqrt(lr) N(0, 1).

It is elementwise, so one optimizer on a stack of parameters runs as many independent chains. Its
time is mostly dispatch, so on kgon's exact losses plain SGLD runs in one compiled loop instead
(`exact_loss.Kernel.langevin`). The first call for a model size compares steps of the loop with
those of the optimizer and raises an error if they differ; a test compares whole chains.

Shapes: parameters are (n_chains, n_points, ...), see `kgon.llc.stack`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

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

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.llc.langevin_steps import ChainNoise, Compiled, Settings, State, metropolis, shaped
from kgon.llc.stack import Stack, rows, square
from kgon.llc.verdict import Draws, ratio_spread
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

CHUNK = 36_000
"""Most numbers in a stack of chains for one optimizer: 2,000 chains of a 6-gon, whose parameters,
gradient, noise and temporary results fill a cache of 2 MB."""

_ADAPTATION = (40, 16)
"""How often the step sizes are adapted before any draw, and after how many steps each time."""

SamplerFactory = Callable[..., SGMCMC]

SGLD: SamplerFactory = SGMCMC.sgld


def is_plain_sgld(sampler: SamplerFactory) -> bool:
    """Whether the sampler is SGLD without weight decay or other additions."""
    if isinstance(sampler, functools.partial):
        return sampler.func == SGLD and not sampler.args and not sampler.keywords
    return sampler == SGLD


class _Chunk(Protocol):
    """Some of the chains, which can be continued."""

    def draw(self, first_step: int, n_draws: int, thin: int, lr: Tensor) -> Draws:
        """Make thin * n_draws steps; points with lr 0 do not move, and their draws are NaN."""
        ...


class LangevinChains:
    """Chains that start at the points of a stack, are drawn to them, and can be continued.

    Args:
        sampler: `SGMCMC.sgld`, `SGMCMC.rmsprop_sgld`, or a partial of one. A `mask` is a list with
            a tensor for each parameter, of a shape that broadcasts to that of w*, or one tensor
            where there is one parameter.
        stack: the loss and the points.
        keys: (n_chains, n_points), streams of the chains' noise.
        nbeta, localization: (n_points,).
        lr: (n_points,), or None to adapt it to an acceptance.
        acceptance: the mean MALA acceptance that step sizes are adapted to.
        thin: steps from draw to draw.

    Attributes:
        step: (n_points,), the step sizes lr.
        n_gradients: (n_points,), gradients of each chain until now; of minibatches, if it has such.

    Raises:
        RuntimeError: the step of devinterp's SGLD differs from that of the compiled loop.
        ValueError: an option of the sampler that stacked chains do not have.
    """

    def __init__(
        self,
        sampler: SamplerFactory,
        stack: Stack,
        keys: streams.Keys,
        nbeta: Tensor,
        localization: Tensor,
        lr: Tensor | None,
        acceptance: float,
        thin: int,
    ):
        _check_options(sampler)
        plain = is_plain_sgld(sampler)
        self.adapts = lr is None
        self.step = 0.1 / (nbeta + localization) if lr is None else lr
        self.acceptance = acceptance
        self.thin = thin
        self.minibatches = stack.minibatches
        self.n_gradients = torch.zeros_like(nbeta, dtype=torch.int64)
        self.first_step = 0
        settings = Settings(sampler, nbeta, localization)
        self.chunks: list[_Chunk]
        # The compiled loop makes all of its steps at once; observables need each draw.
        if plain and stack.kernel is not None and not stack.observables.size:
            _check_rule(SGLD, *stack.points[0].shape[-2:], stack.kernel.tables.population)
            self.chunks = [Compiled(stack, keys, settings)]
        else:
            at_once = max(1, CHUNK // max(stack.n_points * stack.size, 1))
            kind = _OnMinibatches if stack.minibatches else _Stepped
            self.chunks = [
                kind(stack, keys[start : start + at_once], settings, self.step)
                for start in range(0, len(keys), at_once)
            ]

    def warm_up(self, n_draws: int) -> None:
        """Adapt the step sizes if they were not given, then make n_draws steps."""
        if self.adapts:
            turns, n_steps = _ADAPTATION
            asked = ratio_spread(torch.tensor(self.acceptance, dtype=torch.float64))
            for turn in range(turns):
                acceptance = self._steps(1, n_steps, self.step).acceptance.mean(0)
                # The spread grows as lr^(3/2).
                change = (asked / ratio_spread(acceptance)).log() * 2 / 3
                change = change.clamp(-1.0, 1.0) / math.sqrt(1 + turn)
                # Chains that have diverged do not say how much smaller the step must be.
                self.step = self.step * change.exp().nan_to_num(0.5)
        if n_draws:
            self._steps(1, n_draws, self.step)

    def draw(self, n_draws: int, moving: Tensor) -> Draws:
        """The next n_draws draws of the points in the mask `moving` (n_points,).

        Their acceptance is NaN for a single step and for anything but plain SGLD.
        """
        return self._steps(n_draws, self.thin, self.step.where(moving, 0.0))

    def _steps(self, n_draws: int, thin: int, lr: Tensor) -> Draws:
        draws = [each.draw(self.first_step, n_draws, thin, lr) for each in self.chunks]
        self.first_step += n_draws * thin
        looks = 2 * self.minibatches.passes if self.minibatches else 0
        self.n_gradients += (lr > 0) * n_draws * (thin + looks)
        return Draws(
            torch.cat([each.loss for each in draws], 1),
            torch.cat([each.distance for each in draws], 1),
            torch.cat([each.acceptance for each in draws]),
            torch.cat([each.noise for each in draws]),
            torch.cat([each.observed for each in draws], 2),
        )


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


def _stacked_mask(mask: Any, stack: Stack, w: Tensor) -> Tensor:
    """devinterp's mask, a tensor for each parameter, for a stack w (n_chains, n_points, size)."""
    masks = [mask] if isinstance(mask, Tensor) else list(mask)
    shapes = [(*stack.batch, *p.shape[1:]) for p in stack.points]
    try:
        each = [
            torch.as_tensor(m).expand(shape).reshape(stack.n_points, -1)
            for m, shape in zip(masks, shapes, strict=True)
        ]
    except (RuntimeError, ValueError):
        raise ValueError(
            f"the sampler's mask must have one tensor for each parameter, which broadcasts to its "
            f"shape, of {shapes}; got {[tuple(torch.as_tensor(m).shape) for m in masks]}"
        ) from None
    return torch.cat(each, -1).expand(w.shape)


def _is_plain(optimizer: SGMCMC) -> bool:
    """Whether it makes the module's step: Metropolis's rule is known for no other."""
    (group,) = optimizer.param_groups
    return (
        type(optimizer) is SGMCMC
        and isinstance(group["preconditioner"], IdentityPreconditioner | StepSizes)
        and group["noise_level"] == 1.0
        and group["bounding_box_size"] is None
        and isinstance(group["prior"], CompositePrior)
        and all(prior.center == "initial" for prior in group["prior"].priors)
    )


class _Stepped:
    """Chains that the optimizer steps."""

    def __init__(self, stack: Stack, keys: streams.Keys, settings: Settings, lr: Tensor):
        self.stack = stack
        self.settings = settings
        # The optimizer steps one tensor, (n_chains, n_points, size), which holds all parameters of
        # a chain; the loss gets `params`, views of it.
        self.centre = rows([p[None] for p in stack.points])[0]
        self.w = self.centre.expand(len(keys), *self.centre.shape).clone()
        self.params = self.split(self.w)
        self.steps = StepSizes(shaped(lr, self.w))
        self.optimizer = _optimizer(settings, stack, self.w, self.steps)
        self.noise = ChainNoise(keys, self.w)

    def draw(self, first_step: int, n_draws: int, thin: int, lr: Tensor) -> Draws:
        record = _Record(self, n_draws, lr > 0)
        accepted = torch.zeros(self.w.shape[:2], dtype=torch.float64)
        plain = _is_plain(self.optimizer)
        previous: State | None = None
        self.steps.set(shaped(lr, self.w))
        for t in range(n_draws * thin):
            state, grad = self.look(self.w, self.params)
            if t % thin == 0:
                record.add(t // thin, state)
            if plain:
                if previous:
                    accepted += metropolis(previous, state, lr)
                previous = state
            self.step(first_step + t, grad)
        n_steps = n_draws * thin - 1
        acceptance = accepted / n_steps if plain and n_steps else accepted + math.nan
        return record.draws(acceptance, torch.zeros_like(accepted))

    def split(self, w: Tensor) -> list[Tensor]:
        """The parameters in a tensor like `w`, as views of it."""
        points = self.stack.points
        pieces = torch.split(w, [math.prod(p.shape[1:]) for p in points], -1)
        return [piece.view(len(w), *p.shape) for piece, p in zip(pieces, points, strict=True)]

    def look(self, w: Tensor, params: list[Tensor]) -> tuple[State, Tensor]:
        """What Metropolis's rule needs to know of a place, and the loss's gradient there."""
        value, grads = self.stack.value_and_grad(params)
        grad, away = rows(grads), w - self.centre
        away_square = square(away)
        nbeta, localization = self.settings.nbeta, self.settings.localization
        force = shaped(nbeta, away) * grad + shaped(localization, away) * away
        energy = nbeta * value + localization / 2 * away_square
        return State(energy, w.clone(), force, value, away_square), grad

    def step(self, step: int, grad: Tensor) -> None:
        """One step of the optimizer."""
        self.w.grad = grad
        self.noise.draw(step)
        with self.noise:
            self.optimizer.step()


class _OnMinibatches(_Stepped):
    """Chains whose gradients are those of minibatches (`kgon.llc.minibatches`).

    At each draw the whole sample gives the loss, the noise of the minibatch's gradient, and the
    acceptance of a step that the whole gradient would make.
    """

    def __init__(self, stack: Stack, keys: streams.Keys, settings: Settings, lr: Tensor):
        super().__init__(stack, keys, settings, lr)
        self.batch_keys = streams.subkeys(keys.ravel(), 1)[:, 0]

    def draw(self, first_step: int, n_draws: int, thin: int, lr: Tensor) -> Draws:
        record = _Record(self, n_draws, lr > 0)
        accepted, noise = torch.zeros((2, *self.w.shape[:2]), dtype=torch.float64)
        self.steps.set(shaped(lr, self.w))
        for t in range(n_draws * thin):
            grad = self.stack.minibatch_gradient(self.params, self.batch_keys, first_step + t)
            if t % thin == 0:
                state, whole = self.look(self.w, self.params)
                record.add(t // thin, state)
                noise += square(grad - whole)
                self.noise.draw(first_step + t)
                size = shaped(lr, self.w)
                there = self.w - size / 2 * state.force + size.sqrt() * self.noise.noise
                accepted += metropolis(state, self.look(there, self.split(there))[0], lr)
            self.step(first_step + t, grad)
        shift = lr * self.settings.nbeta.square() / 8 * noise / n_draws
        return record.draws(accepted / n_draws, shift)


class _Record:
    """The draws of some chains as they are made."""

    def __init__(self, chains: _Stepped, n_draws: int, moving: Tensor):
        shape = chains.w.shape[:2]
        self.chains, self.moving = chains, moving
        self.loss, self.distance = torch.full((2, n_draws, *shape), math.nan, dtype=torch.float64)
        size = chains.stack.observables.size
        self.observed = self.loss.new_full((n_draws, size, *shape), math.nan)

    def add(self, draw: int, state: State) -> None:
        self.loss[draw] = state.loss.where(self.moving, math.nan)
        self.distance[draw] = state.distance.where(self.moving, math.nan)
        observed = self.chains.stack.observe(self.chains.params)
        self.observed[draw] = observed.where(self.moving, math.nan)

    def draws(self, acceptance: Tensor, noise: Tensor) -> Draws:
        return Draws(self.loss, self.distance, acceptance, noise, self.observed)


def _optimizer(settings: Settings, stack: Stack, w: Tensor, steps: "StepSizes") -> SGMCMC:
    """The optimizer of a stack w (n_chains, n_points, size), with settings for each point.

    The constructors of `SGMCMC` take numbers only: they test nbeta == 1 and localization > 0. So
    the optimizer is built with placeholders, which the settings then replace.
    """
    options: dict[str, Any] = {}
    if (mask := _options(settings.sampler).get("mask")) is not None:
        options["mask"] = _stacked_mask(mask, stack, w)
    optimizer = settings.sampler([w], lr=1.0, nbeta=2.0, localization=1.0, **options)
    (group,) = optimizer.param_groups
    group["nbeta"] = shaped(settings.nbeta, w)
    for prior in group["prior"].priors:
        if prior.center == "initial":  # the pull, not the sampler's own weight decay
            prior.localization = shaped(settings.localization, w)
    group["preconditioner"] = CompositePreconditioner([group["preconditioner"], steps])
    return optimizer


class StepSizes(Preconditioner):
    """A step size for each chain; `SGMCMC` itself takes one number.

    With the preconditioner G = s and lr = 1, the update of `SGMCMC` is that with lr = s.
    """

    def __init__(self, s: Tensor):
        self.set(s)

    def set(self, s: Tensor) -> None:
        """Change the step sizes."""
        self.coefficients = PreconditionerCoefs(s, s, s.sqrt(), 1.0)

    def get_coefficients(
        self, param: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> PreconditionerCoefs:
        return self.coefficients


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
    w_star = values[n_features:].view(1, n_hidden, n_features), values[:n_features][None]
    stack = Stack(loss, w_star, (1,))
    keys = streams.member_keys(0, [0], "rule")[None]
    nbeta, lr, localization = (torch.tensor([v]).double() for v in (10.0, 0.01, 2.0))
    settings = Settings(sampler, nbeta, localization)
    compiled, stepped = Compiled(stack, keys, settings), _Stepped(stack, keys, settings, lr)
    compiled.draw(0, 2, 1, lr)
    stepped.draw(0, 2, 1, lr)
    looped = rows([compiled.W, compiled.b])
    # Rounding of a few terms is far below this tolerance, and another rule far above it.
    if not torch.allclose(looped, stepped.w, rtol=1e-9, atol=1e-12):
        raise RuntimeError(
            "the installed devinterp's SGMCMC.sgld does not make the step of kgon's compiled "
            "chains, w - lr/2 (nbeta grad L + localization (w - w*)) + sqrt(lr) N(0, 1)"
        )
