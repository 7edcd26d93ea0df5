"""Sharing compiled loops out over the processor's cores."""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
