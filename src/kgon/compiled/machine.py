"""What the machine offers: threads for compiled loops, and memory."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

# Handing a part to a thread and waiting for it costs some 50 us.
_WORTH_A_THREAD = 200e-6


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="kgon")


def share_out(work: Callable[[slice], None], n: int, seconds_each: float) -> None:
    """Call `work` on slices that make up range(n), one a thread, as many threads as torch has.

    `work` must release the GIL for this to gain anything. What would not keep a thread busy for
    200 us, by the estimate `seconds_each`, is done here.
    """
    worth = int(n * seconds_each / _WORTH_A_THREAD)
    n_threads = max(1, min(torch.get_num_threads(), n, worth))
    cuts = [n * i // n_threads for i in range(n_threads + 1)]
    parts = [slice(a, z) for a, z in itertools.pairwise(cuts)]
    if n_threads > 1:
        others = [_pool(n_threads - 1).submit(work, part) for part in parts[1:]]
        work(parts[0])
        for other in others:
            other.result()
    else:
        work(slice(0, n))


def check_fits(needed: int, what: str, advice: str) -> None:
    """ValueError if `needed` bytes for `what` are more than this process may still take."""
    available = available_memory()
    if needed > available:
        raise ValueError(
            f"{what} need {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB are "
            f"free: {advice}"
        )


def available_memory() -> int:
    """Bytes that this process may still take, by what Linux says; elsewhere half of the memory."""
    meminfo, limit, used = (
        Path(p)
        for p in (
            "/proc/meminfo",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory.current",
        )
    )
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
