"""What an estimate is given: its checks, and the forms in which it is taken."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral

import torch
from torch import Tensor

from kgon.compiled.exact_loss import CompiledLoss
from kgon.compiled.machine import check_fits
from kgon.theory.repeatable import check_repeatable

N_CHAINS = 16
"""Chains at each w*."""
TARGET = 0.02
"""Total error, relative to the estimate or to 1, at which chains end."""
BUDGET = 100_000
"""Gradients of a chain after which it is not continued."""
THIN = 16
"""Langevin steps from draw to draw of chains whose length is not given."""


def default_localization(nbeta: float) -> float:
    """0.6 sqrt(nbeta). It was chosen for k-gons; relative to nbeta it vanishes for large n.

    With it chains stay at the minima of 5 to 12 features from n = 1,000 to 500,000. At
    0.4 sqrt(nbeta) exact chains leave 5 at n = 5,000. At the paper's 1 they leave 4-gons at
    n = 1,000, and at its 0.1 they leave 5 and 5+ at n = 5,000.
    """
    return 0.6 * math.sqrt(nbeta)


def check_settings(
    nbeta: float | Tensor,
    localization: float | Tensor,
    n_chains: int,
    target: float = TARGET,
    budget: int = BUDGET,
    lr: float | Tensor | None = None,
    n_draws: int | None = None,
    n_burnin: int | None = None,
) -> None:
    """Check the settings of the chains.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """
    if (n_draws is None) != (n_burnin is None):
        raise ValueError(
            f"n_draws and n_burnin must be given both or neither, got n_draws={n_draws} and "
            f"n_burnin={n_burnin}"
        )
    counts = {"n_chains": n_chains, "budget": budget, "n_draws": n_draws, "n_burnin": n_burnin}
    for name, count in counts.items():
        if count is not None and not isinstance(count, Integral):
            raise ValueError(f"{name} must be a whole number, got {count}")
    positive = {
        "nbeta": nbeta, "lr": lr, "target": target, "n_chains": n_chains, "budget": budget,
        "n_draws": n_draws,
    }  # fmt: skip
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


def check_memory(
    n_draws: int | None, budget: int, n_chains: int, n_estimates: int, n_observed: int = 0
) -> None:
    """ValueError if the draws of all chains, with n_observed values of observables at each, would
    not fit into memory.

    Chains without n_draws are taken to keep a draw for every THIN gradients of their budget.
    """
    n_draws = n_draws or budget // THIN
    # The loss and the distance of each draw, 8 bytes each, and as much again to summarise them.
    check_fits(
        (4 + 2 * n_observed) * 8 * n_draws * n_chains * n_estimates,
        f"{n_estimates} estimates with n_chains={n_chains} and n_draws={n_draws}"
        + (f" of {n_observed} values of observables" if n_observed else ""),
        "take fewer draws, chains or estimates",
    )


def unpacked(
    loss: Callable[..., Tensor],
    params: tuple[Tensor | Mapping[str, Tensor], ...],
    observables: Mapping[str, Callable[..., Tensor]],
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], Mapping[str, Callable[..., Tensor]]]:
    """The loss as a function of tensors, the tensors, and the observables as functions of them; a
    dict of tensors is taken apart."""
    if len(params) == 1 and isinstance(params[0], Mapping):
        names = list(params[0])

        def of_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda *tensors: function(dict(zip(names, tensors, strict=True)))

        each = {name: of_tensors(function) for name, function in observables.items()}
        return of_tensors(loss), tuple(params[0].values()), each
    tensors = tuple(p for p in params if isinstance(p, Tensor))
    if len(tensors) < len(params):
        raise ValueError(
            "the parameters must be tensors, or one dict of tensors; got "
            + ", ".join(type(p).__name__ for p in params)
        )
    return loss, tensors, observables


def check_params(params: tuple[Tensor, ...]) -> None:
    """ValueError for parameters on which chains cannot run."""
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


def per_point(name: str, value: float | Tensor, batch: tuple[int, ...]) -> Tensor:
    """A setting as a value for each point, (n_points,)."""
    try:
        return torch.as_tensor(value, dtype=torch.float64).expand(batch).flatten()
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(torch.as_tensor(value).shape)}; it must be a number or "
            f"broadcast to the shape of the loss at w*, {tuple(batch)}"
        ) from None
