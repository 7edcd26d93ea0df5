"""Benchmarks measure CPU time on one thread: ratios on a shared machine, not wall clock."""

import time

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


@pytest.fixture
def in_turns(benchmark):
    """Time runs by the size of something, as `per_step` does, each once a round: a machine whose
    speed changes between them would make a ratio of its own."""

    def measure(runs, *, what, who, column, members, steps, rounds=12):
        least = dict.fromkeys(runs, float("inf"))
        for run in runs.values():
            run()
        for _ in range(rounds):
            for size, run in runs.items():
                start = time.process_time()
                run()
                least[size] = min(least[size], time.process_time() - start)
        about = dict(what=what, who=who, column=column, seconds=least, members=members, steps=steps)
        benchmark.extra_info.update(about)
        benchmark.pedantic(lambda: None, rounds=1)

    return measure
