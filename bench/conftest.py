"""Benchmarks measure CPU time on one thread: ratios on a shared machine, not wall clock."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def per_step(benchmark):
    """Time `run`, which makes `steps` steps of `members` members, and note what it was."""

    def measure(run, *, what, who, members, steps, rounds=3, **about):
        benchmark.extra_info.update(what=what, who=who, members=members, steps=steps, **about)
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)

    return measure
