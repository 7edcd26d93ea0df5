"""The paper's own protocol for the posterior: the No-U-Turn sampler, by numpyro (an extra).

Same posterior as `posterior.sample_posterior`, by chains that have to start somewhere. While chains
cross between phases, up to some 1000 samples at noise_std = 1, the two agree; beyond that ever
fewer do, and in the end occupancy is that of the starts, with an R-hat of 1.00 if all started in
one phase. So this module repeats what the paper did, and shows where it stops being a measurement.

numpyro and JAX are imported when a function is called, nowhere else.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.loss import DirectLoss


@dataclass(frozen=True, eq=False)
class NUTS:
    """Draws of some chains.

    Attributes:
        W: (n_draws, n_chains, n_hidden, n_features).
        b: (n_draws, n_chains, n_features).
        loss: (n_draws, n_chains), the empirical loss of each draw.
        rhat: split R-hat of the loss over chains (numpyro).
        ess: effective number of draws of the loss (numpyro).
        divergences: number of divergent trajectories.
        leapfrogs: leapfrog steps of all draws after warm-up.
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
    """Chains from the posterior of w = (W, b) given inputs x, started where the caller says.

    The default numbers are those of the script from which the paper's is likely descended.

    Args:
        x: (n_samples, n_features), any number of active features.
        noise_std, prior_std: as in `sample_posterior`.
        start: (W, b) where every chain starts, a critical point for instance; None draws each
            chain's start from the prior.
        seed: of the starts and of the chains.

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
    draws, extra, rhat, ess = _run(x, W, b, noise_std, prior_std, n_warmup, n_draws, seed)
    W, b = (torch.from_numpy(np.array(draws[name])).movedim(0, 1) for name in ("W", "b"))
    return NUTS(
        W=W,
        b=b,
        loss=torch.stack(
            [DirectLoss(x)(*row) for row in zip(W.unsqueeze(2), b.unsqueeze(2), strict=True)]
        ).squeeze(-1),
        rhat=rhat,
        ess=ess,
        divergences=int(np.sum(extra["diverging"])),
        leapfrogs=int(np.sum(extra["num_steps"])),
    )


def log_likelihood(x: Tensor, W: Tensor, b: Tensor, *, noise_std: float = 1.0) -> float:
    """-n L_n(w) / (2 noise_std^2) as the chains see it, summed over the sample by JAX."""
    import jax

    with jax.enable_x64(True):
        arrays = (t.double().numpy() for t in (x, W, b))
        data, weight, bias = (jax.numpy.asarray(a) for a in arrays)
        return float(_log_likelihood(data, weight, bias, noise_std))


def _log_likelihood(x: Any, W: Any, b: Any, noise_std: float) -> Any:
    import jax

    residual = jax.nn.relu(x @ W.T @ W + b) - x
    return -(residual**2).sum() / (2 * noise_std**2)


def _run(
    x: Tensor, W: Tensor, b: Tensor, noise_std: float, prior_std: float, n_warmup: int,
    n_draws: int, seed: int,
) -> tuple[dict[str, Any], dict[str, Any], float, float]:  # fmt: skip
    import jax
    import numpyro.diagnostics
    import numpyro.infer

    with jax.enable_x64(True):
        data = jax.numpy.asarray(x.double().numpy())

        def potential(w: dict[str, Any]) -> Any:
            prior = ((w["W"] ** 2).sum() + (w["b"] ** 2).sum()) / (2 * prior_std**2)
            return prior - _log_likelihood(data, w["W"], w["b"], noise_std)

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
        mcmc.run(
            jax.random.PRNGKey(seed),
            init_params=init,
            extra_fields=("diverging", "num_steps", "potential_energy"),
        )
        draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
        extra = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(group_by_chain=True).items()}
        trace = extra["potential_energy"]
        rhat = float(numpyro.diagnostics.split_gelman_rubin(trace))
        ess = float(numpyro.diagnostics.effective_sample_size(trace))
    return draws, extra, rhat, ess
