"""The posterior's sampler against annealed importance sampling, with which it shares the loss only:
phases, evidence and mean loss for several sample sizes, models, priors and noise levels."""

import itertools
import math

import numpy as np
import pytest
import torch

from kgon import streams
from kgon.compiled.exact_loss import CompiledLoss
from kgon.data import SingleFeature, draw
from kgon.posterior.labels import output_labels, quench, quench_labels
from kgon.posterior.smc import sample_posterior
from kgon.theory.loss import DirectLoss, EmpiricalLoss

pytestmark = pytest.mark.slow


class Annealed:
    """Annealed importance sampling (Neal 2001) of exp(-strength L) N(w; 0, prior_std^2 I).

    Particles that never meet go from the prior to the posterior along a ladder fixed beforehand,
    one Hamiltonian trajectory of fixed length a rung; nothing is resampled or adapted, no rotation
    or permutation is proposed. So weights are independent, their mean is an unbiased estimate of
    the evidence, and the errors below are those of importance sampling.
    """

    def __init__(self, loss, strength, prior_std, n_hidden, n_features, n, n_rungs, seed):
        rng = np.random.default_rng(seed)
        size = n_hidden * n_features

        def parts(w):
            w = torch.from_numpy(w)
            return w[:, :size].reshape(-1, n_hidden, n_features), w[:, size:].contiguous()

        def value_and_grad(w):
            value, dW, db = loss.value_and_grad(*parts(w))
            return value.numpy(), np.concatenate([dW.reshape(n, -1), db], 1)

        w = prior_std * rng.standard_normal((n, size + n_features))
        value, grad = value_and_grad(w)
        log_weight = np.zeros(n)
        ladder = (np.arange(n_rungs + 1) / n_rungs) ** 3 * strength
        for before, now in itertools.pairwise(ladder):
            log_weight -= (now - before) * value
            # Curvatures of L are below about 2, whatever the number of features.
            h = 0.9 * rng.uniform(0.3, 1.0, (n, 1)) / math.sqrt(prior_std**-2 + 2 * now)
            p = rng.standard_normal(w.shape)
            new_w, new_value, new_grad = w, value, grad
            start = now * value + 0.5 * (w**2 / prior_std**2 + p**2).sum(1)
            for _ in range(4):
                p = p - 0.5 * h * (now * new_grad + new_w / prior_std**2)
                new_w = new_w + h * p
                new_value, new_grad = value_and_grad(new_w)
                p = p - 0.5 * h * (now * new_grad + new_w / prior_std**2)
            end = now * new_value + 0.5 * (new_w**2 / prior_std**2 + p**2).sum(1)
            accepted = np.log(rng.random(n)) < start - end
            w = np.where(accepted[:, None], new_w, w)
            grad = np.where(accepted[:, None], new_grad, grad)
            value = np.where(accepted, new_value, value)
        self.W, self.b = parts(w)
        self.loss = torch.from_numpy(value)
        log_weight = torch.from_numpy(log_weight)
        self.weight = log_weight.softmax(0)
        self.effective = 1 / float(self.weight.square().sum())
        self.log_evidence = log_weight.logsumexp(0) - math.log(n)
        # The delta method: the relative error of the mean weight.
        self.log_evidence_stderr = math.sqrt(n) * self.weight.std()

    def mean(self, f):
        f = f.double()
        mean = (self.weight * f).sum()
        return mean, (self.weight * (f - mean)).square().sum().sqrt()


SETTINGS = [
    # n_samples, n_features, n_hidden, noise_std, prior_std, importance
    (600, 6, 2, 1.0, 1.0, None),
    (200, 7, 2, 0.8, 0.8, None),
    (200, 5, 3, 1.0, 1.0, [1.0, 0.9, 0.8, 0.7, 0.6]),
]


@pytest.mark.parametrize(
    ("n_samples", "n_features", "n_hidden", "noise_std", "prior_std", "importance"), SETTINGS
)
def test_phases_and_evidence(n_samples, n_features, n_hidden, noise_std, prior_std, importance):
    x = draw(SingleFeature(n_features), streams.member_keys(5, [0], "data"), 0, n_samples)[0]
    weights = None if importance is None else torch.tensor(importance, dtype=torch.float64)
    loss = EmpiricalLoss(x, weights)
    smc = sample_posterior(
        loss, n_hidden=n_hidden, noise_std=noise_std, prior_std=prior_std, n_particles=512,
        n_replicates=6, seed=11,
    )  # fmt: skip
    ais = Annealed(
        CompiledLoss(loss, n_features), n_samples / (2 * noise_std**2), prior_std, n_hidden,
        n_features, n=1024, n_rungs=1500, seed=12,
    )  # fmt: skip
    assert smc.verdicts == "ok" and ais.effective > 200
    # The sum over the sample, for both.
    few = slice(0, 20)
    direct = DirectLoss(x, weights)
    torch.testing.assert_close(ais.loss[few], direct(ais.W[few], ais.b[few]), rtol=1e-9, atol=0)

    def agree(ours, theirs):
        (p, p_error), (q, q_error) = ours, theirs
        # Six replicates: an error with Student's factor for 5 degrees of freedom. Four of it are
        # exceeded once in 300.
        assert float(abs(p - q)) < 4 * float((p_error**2 + q_error**2).sqrt()), (ours, theirs)

    agree(
        (smc.log_evidence, smc.log_evidence_stderr),
        (ais.log_evidence, ais.log_evidence_stderr),
    )
    agree(smc.mean(smc.loss), ais.mean(ais.loss))
    if n_hidden == 2:
        mine, other = (quench_labels(quench(s.W, s.b)) for s in (smc, ais))
    else:
        mine, other = output_labels(smc.W, smc.b), output_labels(ais.W, ais.b)
    families = [k for k in mine.k.unique() if float(smc.mean(mine.k == k)[0]) > 0.05]
    assert len(families) > 1, "a posterior on one phase compares nothing"
    for k in families:
        agree(smc.mean(mine.k == k), ais.mean(other.k == k))
