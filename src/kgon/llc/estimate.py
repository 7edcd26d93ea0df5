r"""Local learning coefficients, each with an error and a verdict.

The estimator (Lau et al. 2023, arXiv 2308.12108) at a parameter w* is

    llc = nbeta (E[L_n(w)] - L_n(w*)),   w ~ exp(-nbeta L_n(w) - (localization / 2) |w - w*|^2),

with nbeta = n / log n for n samples. The verdict `ok` says that this expectation, at this nbeta and
localization, lies within two stated errors 19 times out of 20 (`kgon.llc.verdict`;
docs/coverage.md has measurements). How far it is from the learning coefficient, the limit of large
n, is another question.

Chains of all w* are one stack (`kgon.llc.stack`). They are drawn by Hamiltonian Monte Carlo
(`kgon.llc.hmc`), which has no step bias, or by devinterp's `SGMCMC` (`kgon.llc.langevin`). Each w*
may have its own nbeta, lr and localization.

Shapes: parameters are (*batch, ...), a stack of chains (n_chains, *batch, ...); a loss maps
parameters to (n_chains, *batch).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.llc.hmc import HMC, HMCChains
from kgon.llc.inputs import (
    BUDGET,
    N_CHAINS,
    TARGET,
    THIN,
    check_memory,
    check_params,
    check_settings,
    loss_at,
    per_point,
    unpacked,
)
from kgon.llc.langevin import SGLD, LangevinChains, SamplerFactory, is_plain_sgld
from kgon.llc.observables import Functions, Observable
from kgon.llc.observables import summarise as summarise_observables
from kgon.llc.stack import Stack
from kgon.llc.verdict import (
    REASONS,
    VERDICTS,
    Draws,
    Premises,
    Summary,
    acceptance_for,
    smaller_step,
    summarise,
    verdict,
    words,
)
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

_FIRST_DRAWS = 48
"""Draws of each chain before the first look at the errors."""
_GROWTH = 1.5
"""Factor by which chains grow from one look to the next."""
_WARM_UP = 1 / 4
"""Share of a chain's draws that is left out at each look."""
_DESCENT = 200
"""Steps of gradient descent that show whether w* is near a minimum."""
_FINE = torch.tensor([VERDICTS.index(word) for word in ("ok", "unchecked")])
"""Verdicts that still ask for the error to be below the target."""


@dataclass(frozen=True)
class LLC(Summary):
    """Estimates of local learning coefficients, each field over (*batch) unless it says otherwise.

    Attributes:
        mean: the estimate, the mean over the draws of all chains that were kept.
        stderr: its total error, sampling_error + bias / 2; NaN for a single chain.
        sampling_error: the error from the finite number of draws.
        bias: the most that the step size may have shifted the estimate; 0 for HMC, and for samplers
            whose bias is not known (verdict *unchecked*).
        noise: the part of bias that comes from minibatches (`kgon.llc.minibatches`).
        variance: nbeta^2 Var L, which estimates the same coefficient without L(w*).
        variance_error: its total error. The step shifts the variance by up to 2 bias.
        per_chain: (n_chains, *batch), each chain's own estimate.
        rhat: rank-normalised split R-hat, the larger of those of the loss and of |w - w*|^2.
        ess: bulk effective number of draws of the loss, all chains together.
        below: share of draws below L(w*) by more than chance explains.
        acceptance: mean Metropolis acceptance; for SGLD what a correction would have had (MALA).
            NaN for other samplers.
        kept: number of chains kept.
        step: the step size, lr of SGLD or that of the leapfrog steps.
        draws: draws of each chain that count.
        gradients: gradients that each chain took, warm-up included.
        reason: an index into REASONS, what the verdict rests on; `reasons` has the words.
        trace: (n_draws, n_chains, *batch), losses of the draws; NaN after the last draw of a w*
            whose chains ended before others.
        observables: by name, what was asked for besides the loss, over the same draws.
    """

    step: Tensor
    draws: Tensor
    gradients: Tensor
    trace: Tensor
    observables: dict[str, Observable] = field(default_factory=dict)

    @property
    def verdict(self) -> Tensor:
        """Indices into VERDICTS, (*batch)."""
        return verdict(self.reason)

    @property
    def verdicts(self) -> Any:
        """The verdicts in words, as a nested list over (*batch)."""
        return words(self.verdict, VERDICTS).tolist()

    @property
    def reasons(self) -> Any:
        """The reasons in words, as a nested list over (*batch); empty where the verdict is ok."""
        found = words(self.reason, REASONS)
        enough = smaller_step(self.step, self.acceptance, self.bias, self.mean)
        for at in np.ndindex(found.shape):
            if found[at] == "step too large":
                found[at] = f"step too large: lr={float(enough[at]):.1g} would do"
            if found[at] == "noise of minibatches":
                found[at] += f": lr={float(enough[at]):.1g} would do, or larger minibatches"
        return found.tolist()


def estimate_llc(
    loss: Callable[..., Tensor],
    *params: Tensor | Mapping[str, Tensor],
    nbeta: float | Tensor,
    localization: float | Tensor,
    seed: int | streams.Keys,
    n_chains: int = N_CHAINS,
    target: float = TARGET,
    budget: int = BUDGET,
    lr: float | Tensor | None = None,
    n_draws: int | None = None,
    n_burnin: int | None = None,
    discard: float | None = None,
    sampler: HMC | SamplerFactory | None = None,
    observables: Functions | None = None,
) -> LLC:
    """Local learning coefficients at any number of parameters at once.

    Chains run until the total error is below `target` and they have mixed, or until `budget` is
    spent. Given n_draws and n_burnin they make so many draws instead.

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
        localization: strength of the pull towards w* (gamma).
        seed: of the noise. An integer, or stream keys (*batch) if the noise at a w* must not
            depend on the others.
        n_chains: chains at each w*.
        target: total error at which the chains of a w* end, relative to the estimate, or to 1 if
            that is larger.
        budget: gradients of a chain after which it is not continued.
        lr: step size of Langevin dynamics (eps). None adapts it to the target: at a learning
            coefficient of a quarter of the number of parameters, the bias takes half of the target.
        n_draws: draws that each chain keeps, after n_burnin that it discards. Both or neither.
        discard: leave out chains with more than this share of draws below L(w*) (the paper: 0.05);
            None keeps all.
        sampler: `HMC()`, whose draws have no step bias, is the default; `SGMCMC.sgld`, the default
            where lr is given; `SGMCMC.rmsprop_sgld`; or a partial of one of the two with
            devinterp's options (a `mask` is a list with a tensor for each parameter, of a shape
            that broadcasts to that of w*, or one tensor where there is one parameter).
        observables: functions by name, each of which maps what the loss takes to (n_chains, *batch,
            ...): their means, variances and covariances with the loss over the draws, with errors.
            The chains, `target` and the verdict do not depend on them. On the exact losses HMC
            stays compiled; SGLD is stepped by the optimizer, with the same noise.

    Returns:
        Estimates over (*batch). The verdict is the first of these that applies:
        *diverged*: more than half of the chains have a draw that is not finite; up to half are left
        out, and `kept` says how many are left;
        *escaped*: more than a share BELOW of the draws lie below L(w*) by more than chance
        explains, no chain was kept, gradient descent from w* falls that far, or the mean is below
        0 by more than chance and three errors explain: the estimate does not belong to w*;
        *biased*: the step size may have shifted the estimate by more than a share BIAS, or the
        acceptance of SGLD is below ACCEPTANCE;
        *unconverged*: R-hat above RHAT, fewer than ESS effective draws, a single chain, or the
        budget was spent before the target was reached;
        *unchecked*: the step bias of the sampler is not known: compare with `HMC()`;
        *ok*: none of these.

    Raises:
        ValueError: an argument out of range, more draws than fit into memory, NaN in w*,
            parameters that share storage (each would get its own noise: the tied weights of
            devinterp's notebook give 13.3 instead of 8.3), a loss that does not return one value
            for each w*, differs from call to call or does not depend on one of the parameters, or
            a sampler or option that would not do on a stack of chains what devinterp says. An
            observable that does not return a value for each chain and w*.
    """
    check_settings(nbeta, localization, n_chains, target, budget, lr, n_draws, n_burnin)
    if sampler is None:
        sampler = HMC() if lr is None else SGLD
    check_sampler(sampler, lr)
    loss, w_star, functions = unpacked(loss, params, observables or {})
    check_params(w_star)
    on_cpu = all(p.device.type == "cpu" for p in w_star)
    if isinstance(loss, PopulationLoss | EmpiricalLoss) and on_cpu:
        loss = CompiledLoss(loss, w_star[0].shape[-1])
    # Inference mode, if the caller is in it, would allow no gradients.
    with torch.inference_mode(False), torch.no_grad():
        reference = loss_at(loss, w_star)
        batch = tuple(reference.shape)
        stack = Stack(loss, w_star, batch, functions)
        check_memory(n_draws, budget, n_chains, math.prod(batch), stack.observables.size)
        strength = per_point("nbeta", nbeta, batch)
        chains: HMCChains | LangevinChains
        keys = subkeys(seed, batch, n_chains).reshape(n_chains, -1)
        pull = per_point("localization", localization, batch)
        if isinstance(sampler, HMC):
            chains = HMCChains(sampler, stack, keys, strength, pull)
        else:
            chains = LangevinChains(
                sampler, stack, keys, strength, pull,
                None if lr is None else per_point("lr", lr, batch),
                acceptance=acceptance_for(target * stack.size / 4, stack.size),
                thin=_thin(stack, n_draws),
            )  # fmt: skip
        premises = Premises(
            nbeta=strength,
            reference=reference.flatten(),
            drop=stack.drop(_DESCENT),
            size=stack.size,
            step_bias=_step_bias(sampler),
            discard=discard,
        )
        if n_draws is None:
            draws, summary, observed, n_kept = _until_done(chains, premises, target, budget)
        else:
            chains.warm_up(n_burnin or 0)
            draws = chains.draw(n_draws, torch.ones(stack.n_points, dtype=torch.bool))
            summary = summarise(draws, premises)
            observed = summarise_observables(draws, premises)
            n_kept = torch.full((stack.n_points,), n_draws)
    shaped = vars(summary) | {
        "step": chains.step, "draws": n_kept, "gradients": chains.n_gradients, "trace": draws.loss,
    }  # fmt: skip
    return LLC(
        **{name: v.reshape((*v.shape[:-1], *batch)) for name, v in shaped.items()},
        observables=stack.observables.named(observed),
    )


def _until_done(
    chains: HMCChains | LangevinChains, premises: Premises, target: float, budget: int
) -> tuple[Draws, Summary, Tensor, Tensor]:
    """Draw until every point's error is below the target, or its budget is spent.

    Returns:
        All draws, the summary of those that count and that of their observables, and how many
        draws of each chain these are, (n_points,).
    """
    moving = torch.ones_like(premises.nbeta, dtype=torch.bool)
    n_kept = torch.zeros_like(chains.n_gradients)
    chains.warm_up(0)
    draws = chains.draw(_FIRST_DRAWS, moving)
    whole: Summary | None = None
    while True:
        first = int(_WARM_UP * len(draws.loss))
        counting = draws.at(moving).after(first)
        summary = summarise(counting, premises.at(moving))
        unsure = verdict(summary.reason) == VERDICTS.index("unconverged")
        fine = torch.isin(verdict(summary.reason), _FINE)
        large = ~(summary.stderr <= target * summary.mean.abs().clamp(min=1.0))
        summary.reason[fine & large] = list(REASONS).index("error above target")
        if whole is None:
            whole = summary
            observed = summarise_observables(counting, premises)
        else:
            whole.replace_at(moving, summary)
            observed[..., moving] = summarise_observables(counting, premises.at(moving))
        n_kept[moving] = len(draws.loss) - first
        more = (unsure | (fine & large)) & (chains.n_gradients[moving] < budget)
        moving[moving.clone()] = more
        if not moving.any():
            return draws, whole, observed, n_kept
        draws = draws.and_then(chains.draw(int((_GROWTH - 1) * len(draws.loss)), moving))


def check_sampler(
    sampler: HMC | SamplerFactory | None,
    lr: float | Tensor | None,
    batch_size: int | None = None,
) -> None:
    """ValueError if the sampler does not take lr or minibatches, or needs an lr."""
    if sampler is None:
        sampler = HMC() if lr is None else SGLD
    if batch_size is not None:
        if isinstance(sampler, HMC):
            raise ValueError(
                f"batch_size={batch_size} is for sampler=SGMCMC.sgld with lr: hmc accepts a "
                "trajectory by the loss of all samples, and by a minibatch's it would sample "
                "another density"
            )
        if lr is None or not is_plain_sgld(sampler):
            raise ValueError(
                f"batch_size={batch_size} is for plain SGMCMC.sgld with lr: the bias by the noise "
                "of minibatches is known for no other sampler, and no step size is adapted to it"
            )
    if isinstance(sampler, HMC):
        if lr is not None:
            raise ValueError(f"lr={lr} is for sampler=sgld: hmc adapts its own step size")
    elif lr is None and not is_plain_sgld(sampler):
        raise ValueError("lr must be given: it is adapted for plain sgld and for hmc only")


def _thin(stack: Stack, n_draws: int | None) -> int:
    """Langevin steps from draw to draw."""
    if stack.minibatches:
        # A draw looks twice at the whole sample. This should not take longer than the steps.
        return max(THIN, 2 * stack.minibatches.passes)
    return THIN if n_draws is None else 1


def _step_bias(sampler: HMC | SamplerFactory) -> str:
    if isinstance(sampler, HMC):
        return "none"
    return "bounded" if is_plain_sgld(sampler) else "unknown"


def subkeys(seed: int | streams.Keys, batch: tuple[int, ...], n_chains: int) -> streams.Keys:
    """The chains' stream keys, (n_chains, *batch)."""
    keys = streams.seed_keys(seed, batch, "llc")
    return np.ascontiguousarray(np.moveaxis(streams.subkeys(keys, n_chains), -1, 0))
