"""Threads for compiled loops, and the memory that is available."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

_WORTH_A_THREAD = 200e-6
"""Least seconds of work for a thread. Handing over a slice and waiting for it takes about 50 us."""

_threads: int | None = None
"""Most threads of a compiled loop; None for as many as torch uses."""


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """In this context torch uses one thread, and compiled loops as many as torch did before.

    An ensemble's tensors are small, so torch's threads mostly wait for each other: with two of
    them a job took seven times as long on a busy machine.
    """
    global _threads
    before, n_threads = _threads, torch.get_num_threads()
    _threads = before or n_threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        _threads = before


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="kgon")


def share_out(work: Callable[[slice], None], n: int, seconds_each: float) -> None:
    """Call `work` on slices that make up range(n), on as many threads as torch uses (see
    `one_torch_thread`) or fewer, one of which is the calling thread.

    Each gets at least _WORTH_A_THREAD of work, at `seconds_each` for one element. Threads run at
    the same time only while `work` releases the GIL.
    """
    worth = int(n * seconds_each / _WORTH_A_THREAD)
    n_threads = max(1, min(_threads or torch.get_num_threads(), n, worth))
    cuts = [n * i // n_threads for i in range(n_threads + 1)]
    own, *others = (slice(a, z) for a, z in itertools.pairwise(cuts))
    running = [_pool(n_threads - 1).submit(work, other) for other in others]
    work(own)
    for each in running:
        each.result()


def check_fits(needed: int, what: str, advice: str) -> None:
    """ValueError, ending with `advice`, unless `needed` bytes for `what` are available."""
    available = available_memory()
    if needed > available:
        raise ValueError(
            f"{what} need {needed / 2**30:.1f} GiB of memory, but only {available / 2**30:.1f} GiB "
            f"are free: {advice}"
        )


def available_memory() -> int:
    """Bytes that this process can still allocate: on Linux the free memory or what is left of the
    cgroup's limit, elsewhere half of the machine's memory."""
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
