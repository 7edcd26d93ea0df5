"""Samples a phase diagram cell by cell; finished cells are stored and not sampled again."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kgon.files import write_text
from kgon.posterior.cell import Settings, check_whole, sample_cell
from kgon.posterior.phase_diagram import PhaseDiagram, Tables


def check_sizes(n_samples: Any, n_datasets: Any) -> None:
    """ValueError unless n_samples is a list of different sizes and n_datasets a count."""
    sizes = list(n_samples) if isinstance(n_samples, Sequence) else []
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes)
    if not sizes or not whole:
        raise ValueError(
            f"n_samples must be a list of whole numbers >= 1 such as [100,200], got {n_samples}"
        )
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"n_samples contains a number twice: {sizes}")
    check_whole("n_datasets", n_datasets, 1)


def sample_phase_diagram(
    folder: Path,
    n_samples: Sequence[int],
    n_datasets: int,
    settings: Settings,
    *,
    workers: int = 1,
    progress: Callable[[int, int, Tables], None] | None = None,
) -> PhaseDiagram:
    """Sample the posterior of every data set at every n, except for cells stored before.

    Args:
        folder: finished cells are written there, as n<n>-d<data set>.json.
        n_samples: the sample sizes, in any order.
        n_datasets: the number of data sets, on which no data set depends.
        settings: of every cell.
        workers: cells sampled at a time, each on one core; results do not depend on it.
        progress: called after each cell with the numbers of finished and of all cells, and the
            cell.

    Raises:
        ValueError: sizes or workers out of range, or a folder with cells of other settings.
    """
    check_sizes(n_samples, n_datasets)
    check_whole("workers", workers, 1)
    folder.mkdir(parents=True, exist_ok=True)
    places = [(n, d) for n in sorted(n_samples) for d in range(n_datasets)]
    plain = json.loads(json.dumps(asdict(settings)))
    cells: dict[tuple[int, int], Tables] = {}
    for n, d in places:
        file = _file(folder, n, d)
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["settings"] != plain:
                raise ValueError(f"{file} was sampled with other settings: {stored['settings']}")
            cells[n, d] = Tables.from_rows(stored)

    def finish(n: int, d: int) -> Tables:
        cell = sample_cell(n, d, settings)
        text = json.dumps({"settings": plain, **asdict(cell)}, allow_nan=False)
        write_text(_file(folder, n, d), text)
        return cell

    # The largest first, so that the last worker does not finish long after the others.
    waiting = [place for place in reversed(places) if place not in cells]
    # Workers with one thread each are faster than several threads on one cell.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        running = {pool.submit(finish, *place): place for place in waiting}
        for future in as_completed(running):
            place = running[future]
            cells[place] = future.result()
            if progress:
                progress(len(cells), len(places), cells[place])
    finally:
        pool.shutdown(cancel_futures=True)
    return PhaseDiagram.joined(
        [cells[place] for place in places],
        n_draws=settings.smc["n_particles"] * settings.smc["n_replicates"],
    )


def _file(folder: Path, n: int, d: int) -> Path:
    return folder / f"n{n:06d}-d{d:03d}.json"
