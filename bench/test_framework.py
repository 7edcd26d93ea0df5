"""What Lightning and the command line cost: the default job's loop, the way to its first step."""

import resource
import subprocess
import sys
import time
import warnings

import lightning as L
import pytest
import torch
from test_training import SGD

from kgon.callbacks import LLCEstimates
from kgon.data import SingleFeature
from kgon.llc.hmc import HMC
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import train
from kgon.training.init import KGon
from kgon.training.model import TMS
from kgon.training.steps import minibatch_steps

MEMBERS, BLOCK = 100, 500
STEPS = 22_500  # a tenth of the default job, which stops, and is looked at, as often on its way
SNAPSHOTS = range(2250, STEPS + 1, 2250)


def job():
    """The default job's ensemble and data."""
    members = range(MEMBERS)
    model = TMS(6, 2, members, 0, KGon("4", 0.01, 1.0), SGD)
    stops = sorted({*range(BLOCK, STEPS + 1, BLOCK), *SNAPSHOTS})
    data = EnsembleData(SingleFeature(6), 1000, 20, 0, members, stops, BLOCK, torch.float64)
    return model, data


def llc_at_every_snapshot():
    """With the settings of conf/callbacks/llc.yaml."""
    return LLCEstimates(
        SNAPSHOTS, nbeta=None, localization=None, n_chains=4, target=0.1, budget=10_000,
        sampler=HMC(),
    )  # fmt: skip


@pytest.mark.parametrize("llc", [False, True], ids=["alone", "with LLC"])
def test_lightning(per_step, tmp_path, llc):
    def run():
        model, data = job()
        trainer = L.Trainer(
            max_steps=STEPS, max_epochs=1, num_sanity_val_steps=0, logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[llc_at_every_snapshot()] if llc else [],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model, data, trainer, tmp_path)

    who = "with LLC estimates" if llc else "through Lightning"
    per_step(run, what="framework", who=who, members=MEMBERS, steps=STEPS)


def test_bare_loop(per_step):
    def run():
        model, data = job()
        optimizer = SGD([model.W, model.b])
        rate = optimizer.param_groups[0]["lr"]
        for block in data.blocks(0):
            rates = torch.full((block.n_steps,), rate, dtype=torch.float64)
            minibatch_steps(model.W, model.b, optimizer, rates, block, None)

    per_step(run, what="framework", who="bare loop", members=MEMBERS, steps=STEPS)


DEFAULT_JOB = """
import sys, time
import torch
from kgon.cli import main, train as command
fit = command.train
def timed(*job):
    start = time.process_time()
    fit(*job)
    print("seconds", time.process_time() - start, flush=True)
command.train = timed
torch.set_num_threads(1)
sys.argv = ["kgon", "train", "logger=none", "runs.figures=false", *sys.argv[1:]]
main()
"""


def test_default_job(benchmark, tmp_path):
    seconds = {}
    for estimates in (0, 100) * 2:
        llc = f"schedule.n_llc={estimates}" if estimates else "~callbacks.llc"
        words = [sys.executable, "-c", DEFAULT_JOB, f"runs.dir={tmp_path}", "runs.overwrite=true"]
        done = subprocess.run([*words, llc], check=True, capture_output=True, text=True)
        (took,) = (line for line in done.stdout.splitlines() if line.startswith("seconds"))
        seconds[estimates] = min(seconds.get(estimates, float("inf")), float(took.split()[1]))
    about = dict(what="job", who="default job", column="estimates", seconds=seconds)
    benchmark.extra_info.update(**about, members=MEMBERS, steps=225_000)
    benchmark.pedantic(lambda: None, rounds=1)


FIRST_STEP = """
import os, sys, time
import lightning, torch
wall, cpu = time.perf_counter(), time.process_time()
from kgon.cli import main
from kgon.training.model import TMS
def first(self, batch):
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
    os._exit(0)
TMS.training_step = first
sys.argv = ["kgon", "train", "members=100", "logger=none", f"runs.dir={sys.argv[1]}"]
main()
"""


def seconds_of(words):
    """The least wall clock and CPU time of a command, of five."""
    walls, cpus = [], []
    for _ in range(5):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(walls), min(cpus)


def note(benchmark, who, wall, cpu):
    benchmark.extra_info.update(what="start", who=who, wall=wall, cpu=cpu, members=1, steps=1)
    benchmark.pedantic(lambda: None, rounds=1)


def test_help(benchmark):
    note(benchmark, "`kgon --help`", *seconds_of([sys.executable, "-m", "kgon", "--help"]))


def test_imports(benchmark):
    words = [sys.executable, "-c", "import torch, lightning"]
    note(benchmark, "importing torch and Lightning", *seconds_of(words))


def test_first_step(benchmark, tmp_path):
    measured = []
    for i in range(5):
        words = [sys.executable, "-c", FIRST_STEP, str(tmp_path / str(i))]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        measured.append([float(word) for word in done.stdout.split()[-2:]])
    wall, cpu = (min(values) for values in zip(*measured, strict=True))
    note(benchmark, "from there to the first step of `kgon train`", wall, cpu)
