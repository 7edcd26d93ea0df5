"""What Langevin chains are made of besides devinterp's optimizer: their settings, the noise of each
chain, Metropolis's rule, and the compiled loop on kgon's exact losses.

Shapes: as in `kgon.llc.langevin`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kgon import streams
from kgon.compiled.exact_loss import Kernel
from kgon.llc.stack import Stack, square
from kgon.llc.verdict import Draws


@dataclass(frozen=True)
class Settings:
    """A sampler and its settings, each (n_points,)."""

    sampler: Callable[..., Any]
    nbeta: Tensor
    localization: Tensor


def shaped(value: Tensor, w: Tensor) -> Tensor:
    """A setting (n_points,), shaped to multiply a stack (n_chains, n_points, size)."""
    return value[:, None].to(w)


@dataclass(frozen=True)
class State:
    """Chains at a place w: the energy nbeta L + localization / 2 |w - w*|^2, w, the energy's
    gradient, the loss L, and |w - w*|^2."""

    energy: Tensor
    w: Tensor
    force: Tensor
    loss: Tensor
    distance: Tensor


def metropolis(old: State, new: State, lr: Tensor) -> Tensor:
    """The Metropolis acceptance min(1, pi(w') q(w | w') / (pi(w) q(w' | w))) of a Langevin step
    from w (`old`) to w' (`new`)."""
    half = shaped(lr, old.w) / 2
    forth = square(new.w - old.w + half * old.force)
    back = square(old.w - new.w + half * new.force)
    log_ratio = old.energy - new.energy + (forth - back) / (2 * lr)
    return log_ratio.double().clamp(max=0).exp()


class ChainNoise(TorchFunctionMode):
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


class Compiled:
    """The same chains in the compiled loop."""

    def __init__(self, stack: Stack, keys: streams.Keys, settings: Settings):
        assert stack.kernel is not None
        self.kernel: Kernel = stack.kernel
        self.keys = np.ascontiguousarray(keys)
        self.centre = tuple(stack.points)
        self.W, self.b = stack.start(len(keys))
        self.settings = settings

    def draw(self, first_step: int, n_draws: int, thin: int, lr: Tensor) -> Draws:
        loss, distance, acceptance = self.kernel.langevin(
            self.W, self.b, n_draws, keys=self.keys, centre=self.centre, lr=lr,
            nbeta=self.settings.nbeta, localization=self.settings.localization,
            first_step=first_step, thin=thin,
        )  # fmt: skip
        observed = loss.new_empty(n_draws, 0, *loss.shape[:2])
        none = torch.zeros_like(acceptance)
        return Draws(loss.movedim(-1, 0), distance.movedim(-1, 0), acceptance, none, observed)
