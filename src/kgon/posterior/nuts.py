"""The paper's own protocol for the posterior: the No-U-Turn sampler of numpyro (an extra).

The posterior is that of `sample_posterior`, but the result can depend on where chains start. Up to
about 1000 samples at noise_std = 1, chains cross between phases and the two samplers agree. With
more samples fewer chains cross, until the shares of phases are those of the starts; R-hat is still
1.00 if all chains started in one phase. So R-hat and effective sample size do not show that chains
are right, and `judge` says *ok* only of chains that cross between phases. This module repeats the
paper's protocol to show where it fails.

The likelihood of single-feature inputs is exact, at a cost that does not depend on the sample size:
the formula of `theory.loss` with the lookup tables of `compiled.moments`, in JAX. For other inputs
it is a sum over the sample.

numpyro and JAX are imported inside functions only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled import moments
from kgon.llc.convergence import diagnose
from kgon.posterior.smc import share_error
from kgon.theory.intervals import widening
from kgon.theory.loss import DirectLoss, EmpiricalLoss

LEAST_DRAWS = 4
"""Least number of draws of a chain: split R-hat needs the variance of each half."""

RHAT = 1.01
"""Largest rank-normalised split R-hat of chains that agree (Vehtari et al. 2021)."""
LEAST_ESS = 100
"""Least effective number of draws for each chain (Vehtari et al. 2021: 400 for four chains)."""


@dataclass(frozen=True, eq=False)
class NUTS:
    """Draws of NUTS chains.

    Attributes:
        W: (n_draws, n_chains, n_hidden, n_features).
        b: (n_draws, n_chains, n_features).
        loss: (n_draws, n_chains), the empirical loss of each draw.
        rhat, ess: of the loss over chains, rank-normalised (`llc.convergence.diagnose`).
        divergences: number of divergent trajectories.
        leapfrogs: number of leapfrog steps after warm-up.
    """

    W: Tensor
    b: Tensor
    loss: Tensor
    rhat: float
    ess: float
    divergences: int
    leapfrogs: int


def sample_nuts(
    x: Tensor,
    *,
    n_hidden: int = 2,
    noise_std: float = 1.0,
    prior_std: float = 1.0,
    start: tuple[Tensor, Tensor] | None = None,
    n_chains: int = 4,
    n_warmup: int = 500,
    n_draws: int = 1000,
    seed: int = 0,
) -> NUTS:
    """NUTS chains of the posterior of w = (W, b) given inputs x.

    The default numbers of chains and draws are those of the script on which the paper's is probably
    based.

    Args:
        x: (n_samples, n_features), any number of active features.
        noise_std, prior_std: as in `sample_posterior`.
        start: (W, b) where every chain starts, such as a critical point; None draws each chain's
            start from the prior.
        seed: of these draws and of the chains.

    Raises:
        ValueError: x or start of the wrong shape, or a number out of range.
        ModuleNotFoundError: numpyro is not installed.
    """
    for name, value in {
        "noise_std": noise_std, "prior_std": prior_std, "n_chains": n_chains,
        "n_warmup": n_warmup, "n_draws": n_draws, "n_hidden": n_hidden,
    }.items():  # fmt: skip
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if n_draws < LEAST_DRAWS:
        raise ValueError(f"n_draws must be at least {LEAST_DRAWS}, got {n_draws}")
    if x.ndim != 2:
        raise ValueError(f"x must be (n_samples, n_features), got {tuple(x.shape)}")
    n_features = x.shape[1]
    if start is None:
        keys = streams.subkeys(streams.member_keys(seed, [0], "nuts"), n_chains)[0]
        dim = n_hidden * n_features + n_features
        noise = np.empty((n_chains, dim + dim % 2))
        streams.normals(keys, 0, noise)
        w = prior_std * torch.from_numpy(noise[:, :dim])
        W, b = w[:, :-n_features].reshape(-1, n_hidden, n_features), w[:, -n_features:]
    else:
        W, b = (p.double().expand(n_chains, *p.shape) for p in start)
        if W.shape[1:] != (n_hidden, n_features) or b.shape[1:] != (n_features,):
            raise ValueError(
                f"start must be W ({n_hidden}, {n_features}) and b ({n_features},), got "
                f"{tuple(start[0].shape)} and {tuple(start[1].shape)}"
            )
    draws, extra = _run(x, W, b, noise_std, prior_std, n_warmup, n_draws, seed)
    W, b = (torch.from_numpy(np.array(draws[name])).movedim(0, 1) for name in ("W", "b"))
    evaluate = DirectLoss(x) if _several_active(x) else EmpiricalLoss(x)
    # One draw at a time: a sum over the sample takes much memory.
    each = [evaluate(*row) for row in zip(W.unsqueeze(2), b.unsqueeze(2), strict=True)]
    loss = torch.stack(each).squeeze(-1)
    found = diagnose(loss)
    return NUTS(
        W=W,
        b=b,
        loss=loss,
        rhat=float(found.rhat),
        ess=float(found.ess_bulk),
        divergences=int(np.sum(extra["diverging"])),
        leapfrogs=int(np.sum(extra["num_steps"])),
    )


def judge(chains: NUTS, k: Tensor) -> str:
    """Whether shares of phases among the chains are a measurement.

    Args:
        chains: from one start.
        k: (n_draws, n_chains), the family of each draw.

    Returns:
        The first of these that applies. *diverged*: a loss is not finite. *unconverged*: the loss
        or k has an R-hat above RHAT or fewer than LEAST_ESS effective draws for each chain.
        *unchecked*: there is one chain, or all draws are in one family, perhaps that of the start.
        *ok*: none of these.
    """
    if not bool(chains.loss.isfinite().all()):
        return "diverged"
    judged = [(chains.rhat, chains.ess)]
    one_family = bool((k == k[0, 0]).all())
    if not one_family:
        of_k = diagnose(k.double())
        judged.append((float(of_k.rhat), float(of_k.ess_bulk)))
    least = LEAST_ESS * k.shape[1]
    if not all(rhat <= RHAT and ess >= least for rhat, ess in judged):
        return "unconverged"
    return "unchecked" if one_family or k.shape[1] == 1 else "ok"


def chain_share(where: Tensor) -> tuple[float, float]:
    """The share of draws with `where` (n_draws, n_chains) and its error.

    The error is that of the mean over chains (`widening`), at least `share_error`. It is NaN for
    one chain, and if all draws agree: chains that never moved have no spread.
    """
    each = where.double().mean(0)
    mean, n = each.mean(), len(each)
    if n == 1 or bool((where == where[0, 0]).all()):
        return float(mean), math.nan
    error = each.std() / math.sqrt(n) * widening(n - 1)
    return float(mean), float(torch.maximum(error, share_error(mean, where.numel())))


def log_likelihood(x: Tensor, *, noise_std: float = 1.0) -> Callable[[Any, Any], Any]:
    """-n L_n(w) / (2 noise_std^2) as a function of JAX arrays W and b.

    Make and call it under `jax.enable_x64`.

    Args:
        x: (n_samples, n_features), any number of active features.
    """
    return _summed(x, noise_std) if _several_active(x) else _looked_up(x, noise_std)


def _several_active(x: Tensor) -> bool:
    return int((x != 0).sum(-1).amax()) > 1


def _summed(x: Tensor, noise_std: float) -> Callable[[Any, Any], Any]:
    import jax

    data = jax.numpy.asarray(x.double().numpy())

    def value(W: Any, b: Any) -> Any:
        residual = jax.nn.relu(data @ W.T @ W + b) - data
        return -(residual**2).sum() / (2 * noise_std**2)

    return value


def _looked_up(x: Tensor, noise_std: float) -> Callable[[Any, Any], Any]:
    import jax
    import jax.numpy as jnp

    n_samples, n_features = x.shape
    loss = EmpiricalLoss(x.double())
    tables = moments.tables(loss, n_features)
    assert tables is not None  # the empirical loss has a compiled form
    ordered = jnp.asarray(loss.moments.sorted.numpy())
    tails = jnp.stack([jnp.asarray(tail.numpy()) for tail in loss.moments.tails], -1)
    total = tails[:, 0]
    of_features, lines = tables.lookup.features[0], tables.lookup.lines
    low, scale, last_bucket, first_line = (
        jnp.asarray(of_features[name])
        for name in ("low", "buckets_per_unit", "last_bucket", "first_line")
    )
    # Bisection with a fixed number of halvings, enough for the fullest bucket.
    halvings = int(lines["count"].max()).bit_length()
    below = jnp.asarray(lines["first"].astype(np.int32))
    feature = jnp.arange(n_features)

    def active_moments(A: Any, b: Any) -> Any:
        """M_k of `loss`, (output, input, k)."""
        tilted = A != 0
        t = -b / jnp.where(tilted, A, 1.0)
        t = jnp.where(tilted, t, jnp.where(b > 0, -jnp.inf, jnp.inf))
        bucket = jnp.clip((t - low) * scale, 0, last_bucket).astype(jnp.int32)
        first, last = below[first_line + bucket], below[first_line + bucket + 1]
        for _ in range(halvings):
            middle = (first + last) >> 1
            above = (first < last) & (ordered[feature, middle] <= t)
            first = jnp.where(above, middle + 1, first)
            last = jnp.where(above, last, middle)
        M = tails[feature, first]
        return jnp.where((A < 0)[..., None], total - M, M)

    def value(W: Any, b: Any) -> Any:
        A, b_i = W.T @ W, b[:, None]
        # The integrand vanishes at the threshold, so derivatives treat the moments as constants.
        M = active_moments(*jax.lax.stop_gradient((A, b_i)))
        u, v = A * M[..., 2] + b_i * M[..., 1], A * M[..., 1] + b_i * M[..., 0]
        loss = (A * u + b_i * v).sum() + total[:, 2].sum() - 2 * jnp.trace(u)
        return -n_samples * loss / (2 * noise_std**2)

    return value


def _run(
    x: Tensor, W: Tensor, b: Tensor, noise_std: float, prior_std: float, n_warmup: int,
    n_draws: int, seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    import jax
    import numpyro.infer

    with jax.enable_x64(True):
        likelihood = log_likelihood(x, noise_std=noise_std)

        def potential(w: dict[str, Any]) -> Any:
            prior = ((w["W"] ** 2).sum() + (w["b"] ** 2).sum()) / (2 * prior_std**2)
            return prior - likelihood(w["W"], w["b"])

        n_chains = len(W)
        mcmc = numpyro.infer.MCMC(
            numpyro.infer.NUTS(potential_fn=potential),
            num_warmup=n_warmup,
            num_samples=n_draws,
            num_chains=n_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        init = {"W": jax.numpy.asarray(W.numpy()), "b": jax.numpy.asarray(b.numpy())}
        if n_chains == 1:
            init = {name: value[0] for name, value in init.items()}
        extra_fields = ("diverging", "num_steps")
        mcmc.run(jax.random.PRNGKey(seed), init_params=init, extra_fields=extra_fields)
        # To numpy in here: outside of this context JAX has no int64.
        draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
        extra = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    return draws, extra
