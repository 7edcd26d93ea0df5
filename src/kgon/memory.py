"""What fits into memory, before it is asked for."""

import os
from pathlib import Path


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
