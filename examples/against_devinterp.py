"""Learning coefficients of the examples' trained networks, by SGLD on the whole sample: kgon's
chains and devinterp's own loop at equal settings, with the CPU time of each.

python examples/against_devinterp.py
"""

import math
import time
from copy import deepcopy

import digits
import induction
import modular_addition
import torch
from devinterp.optim import SGMCMC
from devinterp.slt.sampler import sample_single_chain

import kgon

SETTINGS = dict(lr=1e-5, localization=100.0)
EXAMPLES = {"digits": (digits, 800), "modular addition": (modular_addition, 250),
            "induction": (induction, 1600)}  # fmt: skip


class Whole(torch.utils.data.Dataset):
    """A sample as one item, so that devinterp's loader does not put rows together at each step."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, _):
        return {"input_ids": self.batch[0], "rest": self.batch[1:]}


def of_devinterp(module, batch, loss, n_chains, n_draws, n_burnin, **settings):
    """Each chain's estimate, nbeta (mean loss of the draws - loss at w*)."""

    def evaluate(module, one):
        return loss(module, [x[0] for x in (one["input_ids"], *one["rest"])]), {}

    masks = {name: None for name, _ in module.named_parameters()}
    at, found = float(loss(module, batch).detach()), []
    for chain in range(n_chains):
        losses = []
        sample_single_chain(
            deepcopy(module), Whole(batch), evaluate, masks,
            num_draws=n_draws, num_burnin_steps=n_burnin, sampling_method=SGMCMC.sgld,
            sampling_method_kwargs=settings, chain=chain, seed=chain, batch_size=1,
            callbacks=[lambda loss, losses=losses, **_: losses.append(float(loss))],
        )  # fmt: skip
        found.append(settings["nbeta"] * (sum(losses) / n_draws - at))
    return torch.tensor(found)


def main(names=tuple(EXAMPLES), n_chains=16, n_draws=400, n_burnin=100, steps=None):
    chains, table = dict(n_chains=n_chains, n_draws=n_draws, n_burnin=n_burnin), {}
    for name in names:
        example, usual = EXAMPLES[name]
        module, batch = example.trained(usual if steps is None else steps)
        n = example.CHAINS.get("nbeta") or len(batch[0]) / math.log(len(batch[0]))
        settings = SETTINGS | dict(nbeta=n) | chains
        start = time.process_time()
        found = kgon.estimate_module_llc(
            module, batch, example.loss, seed=0, sampler=SGMCMC.sgld, **settings
        )
        mine, middle = found.per_chain, time.process_time()
        theirs = of_devinterp(module, batch, example.loss, **settings)
        end = time.process_time()
        mean, other = float(mine.mean()), float(theirs.mean())
        errors = [float(x.std()) / math.sqrt(n_chains) for x in (mine, theirs)]
        table[name] = mean, other, math.hypot(*errors)
        print(
            f"{name}: kgon {mean:.2f} +- {errors[0]:.2f}, {middle - start:.1f} s, {found.verdicts};"
            f" devinterp {other:.2f} +- {errors[1]:.2f}, {end - middle:.1f} s",
            flush=True,
        )
    return table


if __name__ == "__main__":
    main()
