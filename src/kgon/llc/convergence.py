r"""Whether chains have converged: split R-hat and effective sample size.

The definitions are those of Vehtari et al. (2021, arXiv 1903.08008). ArviZ computes them for one
quantity at a time (3 ms each), this module for a tensor of quantities; a test compares the two.
Each chain is cut in two halves. With m half chains of n draws, W the mean of the variances inside
them and B / n the variance of their means,

    R-hat^2 = (W (n - 1) / n + B / n) / W,        ESS = m n / tau,
    tau = -1 + 2 sum_t rho_t,    rho_t = 1 - (W - mean autocovariance at lag t) / (R-hat^2 W),

where the sum goes on by pairs of lags as long as they are positive, and a pair counts at most as
much as the one before it (Geyer 1992). The rank-normalised R-hat and the bulk ESS are those of
z = Phi^-1((r - 3/8) / (S + 1/4)) for a draw of rank r among the S draws of all chains.

Shapes: draws are (n_draws, n_chains, *batch); results are (*batch). Inside, chains are (m, *batch,
n): draws that lie side by side are transformed faster.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_RESOLUTION = 1e-15
"""Range of draws below which they count as equal."""

_AT_ONCE = 2**15
"""Most draws transformed at once (at least one half chain). Buffers of this size are reused by the
allocator; larger ones are returned to the system after each call, which costs more than the
transform."""


@dataclass(frozen=True)
class Diagnostics:
    """Convergence of some quantities, each field (*batch).

    Attributes:
        rhat: rank-normalised split R-hat, the larger of those of the draws and of their distances
            from the median.
        ess_bulk: effective number of draws, of the rank-normalised draws.
        ess_mean: effective number of draws for the mean.
    """

    rhat: Tensor
    ess_bulk: Tensor
    ess_mean: Tensor


def diagnose(draws: Tensor) -> Diagnostics:
    """Rank-normalised R-hat and effective sample sizes of draws (n_draws, n_chains, *batch).

    NaN where a draw is not finite or chains have fewer than four draws.
    """
    n = len(draws) // 2
    if n < 2:
        unknown = draws.new_full(draws.shape[2:], math.nan)
        return Diagnostics(unknown, unknown, unknown)
    halves = torch.cat([draws[:n], draws[-n:]])
    middle = halves.flatten(0, 1).sort(0).values[[n * draws.shape[1] - 1, n * draws.shape[1]]]
    rhat_bulk, ess_bulk = convergence(_normal_scores(halves))
    rhat_folded, _ = convergence(_normal_scores((halves - middle.mean(0)).abs()))
    _, ess_mean = convergence(draws)
    # Draws at two equally frequent values are all as far from the median: no R-hat there.
    return Diagnostics(torch.fmax(rhat_bulk, rhat_folded), ess_bulk, ess_mean)


def _normal_scores(draws: Tensor) -> Tensor:
    """Normal scores of the ranks of draws (n_draws, n_chains, *batch) among those of all chains.

    Equal draws get their mean rank. NaN where a draw is not finite.
    """
    flat = draws.movedim((0, 1), (-2, -1)).flatten(-2).contiguous()
    ordered = flat.sort(-1).values
    rank = torch.searchsorted(ordered, flat) + torch.searchsorted(ordered, flat, right=True) + 1
    z: Tensor = torch.special.ndtri((rank.double() / 2 - 3 / 8) / (flat.shape[-1] + 1 / 4))
    z = z.where(flat.isfinite().all(-1, keepdim=True), math.nan)
    return z.reshape(*flat.shape[:-1], *draws.shape[:2]).movedim((-2, -1), (0, 1))


def convergence(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Split R-hat and effective number of draws of each quantity.

    Args:
        draws: (n_draws, n_chains, *batch), float64.

    Returns:
        R-hat and ESS, (*batch). NaN where a draw is not finite or chains have fewer than four
        draws; the ESS of draws that are all equal is their number. (ArviZ gives no R-hat for a
        single chain; its two halves have one.)
    """
    n_draws, n_chains, *batch = draws.shape
    if n_draws < 4:
        unknown = draws.new_full(batch, math.nan)
        return unknown, unknown.clone()
    n = n_draws // 2
    # Sums over draws that lie side by side do not depend on the other quantities, bit by bit.
    chains = draws.movedim(0, -1).contiguous()
    halves = chains[..., :n], chains[..., -n:]
    means = [half.mean(-1) for half in halves]
    power = _power(halves[0], means[0]) + _power(halves[1], means[1])
    covariance = torch.fft.irfft(power, 2 * n)[..., :n] / (2 * n_chains * n)
    within = covariance[..., 0] * n / (n - 1)
    pooled = covariance[..., 0] + variance(torch.cat(means).movedim(0, -1).contiguous())
    rho = 1 - (within.unsqueeze(-1) - covariance) / pooled.unsqueeze(-1)
    rho[..., 0] = 1.0
    ess = 2 * n_chains * n / _tau(rho, 2 * n_chains * n)
    high, low = chains.amax(-1).amax(0), chains.amin(-1).amin(0)
    ess = torch.where(high - low < _RESOLUTION, 2.0 * n_chains * n, ess)
    return (pooled / within).sqrt(), ess


def variance(x: Tensor) -> Tensor:
    """The variance over the last axis of a contiguous x. torch's own depends on the other rows in
    its last bits."""
    return (x - x.mean(-1, keepdim=True)).square().sum(-1) / (x.shape[-1] - 1)


def _power(chains: Tensor, mean: Tensor) -> Tensor:
    """Power spectrum (*batch, n + 1) of chains (m, *batch, n) about their means (m, *batch), summed
    over m: n times the Fourier transform of their autocovariances at lags 0 to n - 1."""
    m, *batch, n = chains.shape
    size = math.prod(batch)
    total = torch.zeros(size, n + 1, dtype=torch.float64)
    some = max(1, _AT_ONCE // n)
    chains, mean = chains.reshape(m, size, n), mean.reshape(m, size)
    for start in range(0, size, some):
        here = slice(start, start + some)
        # As many zeros keep the ends from wrapping around; rfft's own padding is slow.
        padded = chains.new_zeros(len(total[here]), 2 * n)
        # One half chain after the other: the sum's order does not depend on the batch.
        for draws, average in zip(chains[:, here], mean[:, here], strict=True):
            torch.sub(draws, average.unsqueeze(-1), out=padded[:, :n])
            spectrum = torch.view_as_real(torch.fft.rfft(padded))
            total[here] += spectrum[..., 0].square() + spectrum[..., 1].square()
    return total.view(*batch, n + 1)


def _tau(rho: Tensor, n_all: int) -> Tensor:
    """Autocorrelation time (*batch) from autocorrelations rho (*batch, n) at lags 0, 1, ..."""
    last = max(0, (rho.shape[-1] - 3) // 2)  # the last pair that may count
    even = rho[..., 0 : 2 * last + 1 : 2]
    pairs = even + rho[..., 1 : 2 * last + 2 : 2]
    ended = pairs <= 0
    ended[..., -1] = True
    end = ended.to(torch.int8).argmax(-1, keepdim=True)  # the first pair that does not count
    counts = torch.arange(last + 1) < end
    total = 2 * pairs.cummin(-1).values.where(counts, 0.0).sum(-1)
    # The first lag of the first pair that does not count improves the sum if it is positive.
    rest, whole = even.gather(-1, end)[..., 0], pairs.gather(-1, end)[..., 0]
    tau = -1 + total + torch.where(whole >= 0, rest, rest.clamp(min=0))
    # The ESS of antithetic chains is limited to n log10 n.
    return tau.clamp(min=1 / math.log10(n_all)).where(rho.isfinite().all(-1), math.nan)
