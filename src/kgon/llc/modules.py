"""Local learning coefficients of any torch module, on data kept in memory.

The loss is `loss_fn(module, batch)`, the mean over the samples of a batch that stays the same. At
the parameters of a chain it is called with these in the module's place (`functional_call`), for
several chains at once by `vmap`. The module, its buffers, its gradients and the global generator
are left as they were.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.flop_counter import FlopCounterMode

from kgon import streams
from kgon.compiled.machine import one_torch_thread
from kgon.llc.estimate import LLC, check_sampler, estimate_llc
from kgon.llc.inputs import N_CHAINS, check_params, default_localization
from kgon.llc.minibatches import Rows, check_mean, map_tensors
from kgon.theory.repeatable import check_repeatable

ModuleLoss = Callable[[Any, Any], Tensor]
"""A function of a module and a batch; for a loss, the mean over the batch's samples."""

_FOR_ONE_THREAD = 3e7
"""Floating-point operations of a gradient of all chains below which torch takes one thread: two
gain a tenth to a third on an idle machine, and lose a factor of two to seven on a busy one."""


def estimate_module_llc(
    module: nn.Module,
    data: Any,
    loss_fn: ModuleLoss,
    *,
    seed: int | streams.Keys,
    parameters: Sequence[str] | None = None,
    nbeta: float | None = None,
    localization: float | None = None,
    chains_at_once: int | None = None,
    batch_size: int | None = None,
    observables: Mapping[str, ModuleLoss] | None = None,
    **settings: Any,
) -> LLC:
    """The local learning coefficient of a module at its present parameters.

    Args:
        module: in the mode in which it is to be evaluated, usually `module.eval()`.
        data: a batch, whatever `loss_fn` takes; or a DataLoader or Dataset, whose samples become
            one batch.
        loss_fn: maps the module and the batch to the loss, a scalar: the mean over the samples. It
            must be the same at every call, and must not log.
        seed: of the chains' noise.
        parameters: names, or patterns such as "layers.0.*", of the parameters that chains move
            (a weight-refined coefficient). None: all that require a gradient.
        nbeta: inverse temperature times n; None for n / log n with n the length of the batch's
            first tensor.
        localization: None for `default_localization` of nbeta.
        chains_at_once: chains that are evaluated together, which bounds the memory; None for all,
            or for one where vmap cannot map the module.
        batch_size: chains take the gradients of minibatches of so many samples, each chain its own
            at each step; for `sampler=SGMCMC.sgld` with `lr` (`kgon.llc.minibatches`). Draws are
            max(16, 2 n / batch_size) steps apart; their losses are of all samples, batch_size at a
            time. n_burnin, budget and `gradients` count minibatches.
        observables: functions of the module and the batch, as loss_fn, of any shape.
        settings: others of `estimate_llc`: n_chains, target, budget, sampler, lr, n_draws, ...

    Returns:
        The estimate, with its error and verdict, as `estimate_llc` gives it.

    Raises:
        ValueError: a module, parameters, loss or data of which there is no such estimate
            (docs/own_model.md lists them), and what `estimate_llc` refuses.
    """
    check_sampler(settings.get("sampler"), settings.get("lr"), batch_size)
    batch = one_batch(data)
    if nbeta is None:
        n = n_samples(batch)
        nbeta = n / math.log(n)
    loss = LossOfParameters(module, batch, loss_fn, parameters, chains_at_once, batch_size)
    at_once = loss.chains_at_once or settings.get("n_chains", N_CHAINS)
    # Among small tensors torch's threads wait for each other.
    with one_torch_thread() if at_once * loss.flops < _FOR_ONE_THREAD else nullcontext():
        return estimate_llc(
            loss,
            *loss.w_star,
            nbeta=nbeta,
            localization=default_localization(nbeta) if localization is None else localization,
            seed=seed,
            observables={name: loss.of(function) for name, function in (observables or {}).items()},
            **settings,
        )


class LossOfParameters:
    """The loss as a function of stacked parameters (n_chains, ...), or of those of one chain.

    Chains live on the CPU; the module's device evaluates them.

    Attributes:
        names: of the parameters.
        w_star: the module's parameters.
        minibatches: the samples, if there is a batch_size, or None.
        flops: floating-point operations of a gradient of one chain.
    """

    def __init__(
        self, module: nn.Module, batch: Any, loss_fn: ModuleLoss,
        parameters: Sequence[str] | None = None, chains_at_once: int | None = None,
        batch_size: int | None = None,
    ):  # fmt: skip
        if chains_at_once is not None and chains_at_once < 1:
            raise ValueError(f"chains_at_once must be a whole number >= 1, got {chains_at_once}")
        check_mode(module)
        chosen = select(module, parameters)
        self.names = list(chosen)
        self.device = next(iter(chosen.values())).device
        self.w_star = tuple(p.detach().cpu() for p in chosen.values())
        self.chains_at_once = chains_at_once
        self.minibatches = None if batch_size is None else Rows(batch, batch_size)
        self._module, self._batch, self._loss_fn = module, batch, loss_fn
        w_star = self._moved(self.w_star)
        with FlopCounterMode(display=False) as counter:
            self._value_and_grad(w_star, next(self._pieces())[0])
        self.flops = counter.get_total_flops()
        if self.minibatches:
            with torch.no_grad():
                check_mean(self.minibatches, lambda rows: self._one(loss_fn, rows, *w_star))
        check_repeatable(self, self.w_star)
        if chains_at_once != 1:
            stacked = [torch.stack([p, p]) for p in self.w_star]
            try:
                self(*stacked)
                self.value_and_grad(*stacked)
                if self.minibatches:
                    index = torch.arange(self.minibatches.size).repeat(2, 1)
                    self.minibatch_gradient(index, *stacked)
            except RuntimeError as error:
                if chains_at_once is not None:
                    raise ValueError(
                        f"chains_at_once={chains_at_once}: torch.vmap cannot evaluate several "
                        "chains of this module at once; leave it out, and they are evaluated one "
                        f"by one. Its error: {error}"
                    ) from error
                self.chains_at_once = 1

    def __call__(self, *params: Tensor) -> Tensor:
        return _sum(
            (share, (self._evaluate(self._loss_fn, batch, params),))
            for batch, share in self._pieces()
        )[0]

    def of(self, function: ModuleLoss) -> Callable[..., Tensor]:
        """A function of the module and the batch as one of stacked parameters."""
        return lambda *params: self._evaluate(function, self._batch, params)

    def value_and_grad(self, *params: Tensor) -> tuple[Tensor, ...]:
        """The loss and its gradient by each parameter."""
        return _sum(
            (share, self._values_and_grads(batch, params, of_each=False))
            for batch, share in self._pieces()
        )

    def minibatch_gradient(self, index: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        """The gradients of each chain's own samples, at index (n_chains, batch_size)."""
        assert self.minibatches is not None
        found = []
        step = self.chains_at_once or len(index)
        for start in range(0, len(index), step):
            some = slice(start, start + step)
            rows = self.minibatches.take(index[some])
            found.append(self._values_and_grads(rows, [p[some] for p in params], of_each=True))
        return tuple(torch.cat(each) for each in zip(*found, strict=True))[1:]

    def _pieces(self) -> Iterator[tuple[Any, float]]:
        """The whole sample, as much of it as is evaluated at once, and each piece's share."""
        return self.minibatches.pieces() if self.minibatches else iter([(self._batch, 1.0)])

    def _evaluate(self, function: ModuleLoss, batch: Any, params: Sequence[Tensor]) -> Tensor:
        """A function of a batch at stacked parameters, or at those of one chain."""
        with torch.no_grad():
            if params[0].ndim == self.w_star[0].ndim:
                return self._one(function, batch, *self._moved(params)).cpu()
            if 1 in (self.chains_at_once, len(params[0])):
                chains = (self._moved(w) for w in zip(*params, strict=True))
                return torch.stack([self._one(function, batch, *w).cpu() for w in chains])
            mapped = torch.vmap(lambda *w: self._one(function, batch, *w))
            return torch.cat([mapped(*some).cpu() for some in self._chunks(params)])

    def _values_and_grads(
        self, batch: Any, params: Sequence[Tensor], of_each: bool
    ) -> tuple[Tensor, ...]:
        """The loss and its gradients at stacked parameters, of one batch or of each chain's own."""
        if 1 in (self.chains_at_once, len(params[0])):  # without vmap that is twice as fast

            def own(chain: int) -> Any:
                return map_tensors(batch, lambda x: x[chain]) if of_each else batch

            found = [
                self._value_and_grad(self._moved(w), own(chain))
                for chain, w in enumerate(zip(*params, strict=True))
            ]
            return tuple(torch.stack(each).cpu() for each in zip(*found, strict=True))
        where = tuple(range(1, 1 + len(params)))
        one = torch.func.grad_and_value(
            lambda batch, *w: self._one(self._loss_fn, batch, *w), argnums=where
        )
        in_dims = (0 if of_each else None, *(0 for _ in params))
        found = [
            (value.cpu(), *(g.cpu() for g in grads))
            for grads, value in (
                torch.vmap(one, in_dims)(batch, *some) for some in self._chunks(params)
            )
        ]
        return tuple(torch.cat(each) for each in zip(*found, strict=True))

    def _one(self, function: ModuleLoss, batch: Any, *params: Tensor) -> Tensor:
        """The function of one chain's parameters."""
        # What the loss writes to buffers is forgotten: it gets a copy at each call.
        buffers = {name: b.detach().clone() for name, b in self._module.named_buffers()}
        replaced = buffers | dict(zip(self.names, params, strict=True))
        inside = {f"module.{name}": value for name, value in replaced.items()}
        call = _Call(self._module, function)
        return torch.func.functional_call(call, inside, (batch,))  # type: ignore[no-any-return]

    def _value_and_grad(self, params: Sequence[Tensor], batch: Any) -> tuple[Tensor, ...]:
        leaves = [p.detach().requires_grad_() for p in params]
        with torch.enable_grad():
            value = self._one(self._loss_fn, batch, *leaves)
        if not isinstance(value, Tensor) or value.ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss_fn(module, batch) must return a scalar tensor, the mean over the samples; "
                f"got {got}"
            )
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if value.requires_grad:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
        for name, grad in zip(self.names, grads, strict=True):
            if grad is None:
                raise ValueError(
                    f"the loss does not depend on the parameter {name!r}: choose those on which "
                    "it depends by parameters=[...]"
                )
        return value.detach(), *(g for g in grads if g is not None)

    def _moved(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [p.to(self.device) for p in params]

    def _chunks(self, params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        step = self.chains_at_once or len(params[0])
        for start in range(0, len(params[0]), step):
            yield self._moved([p[start : start + step] for p in params])


def _sum(pieces: Iterable[tuple[float, tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
    """The sum of tensors, each by its share."""
    total: tuple[Tensor, ...] = ()
    for share, each in pieces:
        new = [share * x for x in each]
        total = tuple(a + b for a, b in zip(total, new, strict=True)) if total else tuple(new)
    return total


class _Call(nn.Module):
    """A function of a module as a module of its own, whose parameters can be replaced."""

    def __init__(self, module: nn.Module, function: ModuleLoss):
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.module, batch)


def select(module: nn.Module, parameters: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The parameters that chains move, by name; ValueError if there are none that can."""
    kind, of_module = type(module).__name__, dict(module.named_parameters())
    if not of_module:
        raise ValueError(f"{kind} has no parameters: chains have nothing to move")
    chosen = {name: p for name, p in of_module.items() if p.requires_grad}
    if parameters is not None:
        chosen = {}
        for pattern in [parameters] if isinstance(parameters, str) else parameters:
            found = {n: p for n, p in of_module.items() if fnmatch.fnmatchcase(n, pattern)}
            if not found:
                names = ", ".join(of_module)
                raise ValueError(
                    f"parameters: {pattern!r} is no parameter of {kind}; it has {names}"
                )
            chosen |= found
        frozen = [name for name, p in chosen.items() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"parameters: {', '.join(frozen)} frozen (requires_grad=False); leave out what "
                "training does not move, or unfreeze it"
            )
        if not chosen:
            raise ValueError("parameters is empty: chains have nothing to move")
    if not chosen:
        raise ValueError(f"all {len(of_module)} parameters of {kind} are frozen: nothing to move")
    for what in ("device", "dtype"):
        several = {str(getattr(p, what)) for p in chosen.values()}
        if len(several) > 1:
            raise ValueError(
                f"the parameters must have one {what}, got {', '.join(sorted(several))}; choose "
                "some by parameters=[...]"
            )
    check_params(tuple(chosen.values()))
    return chosen


def check_mode(module: nn.Module) -> None:
    """ValueError if dropout or batch norm would make the loss random, or one of the batch."""
    for name, each in module.named_modules():
        if not each.training:
            continue
        drops = each.p if isinstance(each, _DropoutNd) else getattr(each, "dropout", 0.0)
        norm = isinstance(each, _NormBase) and each.track_running_stats
        if norm or (isinstance(drops, float) and drops > 0):
            raise ValueError(
                f"{name or 'module'} ({type(each).__name__}) is in training mode: the loss would "
                "not be a function of the parameters; call module.eval() first (in a callback: "
                "eval_mode=True)"
            )


def one_batch(data: Any) -> Any:
    """The samples of a DataLoader or Dataset as one batch, in order; any other data as it is. No
    random number is drawn unless the dataset draws one."""
    if isinstance(data, Dataset):
        data = DataLoader(data)
    if not isinstance(data, DataLoader):
        return data
    if isinstance(data.dataset, IterableDataset) or data.batch_sampler is None:
        raise ValueError("data: this DataLoader has no fixed batches to join; pass one batch")
    samples: Any = data.dataset
    if not len(samples):
        raise ValueError("data: this DataLoader is empty; a loss needs samples")
    with torch.random.fork_rng([]):
        return data.collate_fn([samples[i] for i in range(len(samples))])


def n_samples(batch: Any) -> int:
    """The length of the first tensor in a batch."""
    if isinstance(batch, Tensor) and batch.ndim and len(batch) > 1:
        return len(batch)
    if isinstance(batch, Mapping | Sequence) and len(batch) and not isinstance(batch, str):
        return n_samples(next(iter(batch.values() if isinstance(batch, Mapping) else batch)))
    raise ValueError(
        "nbeta=None is n / log n, but n >= 2 samples cannot be counted in a batch that starts with "
        f"{tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__}: set nbeta"
    )
