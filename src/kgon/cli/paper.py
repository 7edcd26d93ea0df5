"""kgon paper: run every experiment of the paper, and write the page that compares the numbers."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from omegaconf import DictConfig, OmegaConf

from kgon.launch import command_line
from kgon.launch import config as configs
from kgon.paper.items import ITEMS, check_names
from kgon.paper.jobs import JOBS, Job, Results
from kgon.paper.page import write_page
from kgon.paper.rows import VERDICTS
from kgon.paper.section import Item
from kgon.record import run_directory


def main() -> None:
    """Console entry: Hydra overrides, and --quick for quick=true."""
    sys.argv = ["quick=true" if word == "--quick" else word for word in sys.argv]
    command_line.run("paper", task, check)


def check(config: DictConfig) -> None:
    """Everything that can be refused before a job starts; ValueError says what."""
    if not isinstance(config.quick, bool):
        raise ValueError(f"quick must be true or false, got {config.quick}")
    check_names(_names(config))
    loggers = sorted(path.stem for path in (configs.CONF / "logger").glob("*.yaml"))
    if config.runs.logger not in loggers:
        raise ValueError(
            f"runs.logger must be one of {', '.join(loggers)}, got {config.runs.logger}"
        )


def _names(config: DictConfig) -> list[str]:
    if config.item is None:
        return [item.name for item in ITEMS]
    return list(config.item) if OmegaConf.is_list(config.item) else [str(config.item)]


def task(config: DictConfig) -> None:
    """Run what is not finished, job by job, then write the page from all that is."""
    chosen = [item for item in ITEMS if item.name in _names(config)]
    needed = list(dict.fromkeys(name for item in chosen for name in item.needs))
    with _told_to_stop():
        folders = {name: _directories(job, config) for name, job in JOBS.items()}
        for i, name in enumerate(needed):
            _run(f"[{i + 1}/{len(needed)}]", JOBS[name], folders[name], config)
        _write(config, folders, chosen)


def _write(config: DictConfig, folders: dict[str, list[Path]], chosen: list[Item]) -> None:
    done = {name: paths for name, paths in folders.items() if all(map(_finished, paths))}
    results = Results(done, config.quick, Path(config.runs.dir) / "paper")
    sections = {}
    for item in ITEMS:
        ready = all(name in done for name in item.needs)
        # What needs no run is computed for the page in any case; it takes seconds.
        print(f"{item.name}: " + ("computed" if ready else "not run"), flush=True)
        sections[item.name] = item.make(results) if ready else None
    out = Path(config.out or (f"{config.runs.dir}/paper-quick" if config.quick else "docs/paper"))
    seconds = sum(_seconds(path) for paths in done.values() for path in paths)
    count = sum(map(len, done.values()))
    version = "the quick version, `kgon paper --quick`" if config.quick else "`make paper`"
    how = (
        f"Written by {version} from {count} runs, {seconds / 60:.0f} minutes of computing in all."
        + (" **A quick version: fewer runs, larger errors.**" if config.quick else "")
    )
    written = write_page(out, sections, how)
    for verdict in VERDICTS:
        print(f"{written['verdicts'][verdict]:4d} {verdict}")
    print(f"\n  {out}/README.md")


def _directories(job: Job, config: DictConfig) -> list[Path]:
    """Where each run of the job goes, by the same config and resolvers as the job itself."""
    found = []
    for overrides in job.runs(config.quick):
        words = [*overrides, f"runs.dir={config.runs.dir}"]
        composed = hydra.compose(job.command, words, return_hydra_config=True)
        found.append(Path(composed.hydra.run.dir))
    return found


def _finished(path: Path) -> bool:
    return run_directory.RunDirectory(path).status()["state"] == "finished"


def _seconds(path: Path) -> float:
    return float(run_directory.RunDirectory(path).status()["seconds"] or 0.0)


def _run(place: str, job: Job, directories: list[Path], config: DictConfig) -> None:
    """The job in a process of its own, unless all of its runs are finished.

    One that has outlived a killed `kgon paper` is waited for (runs.busy=wait), its work not lost.
    """
    line = job.text(config.quick)
    missing = [path for path in directories if not _finished(path)]
    if not missing:
        print(f"{place} finished: {line}", flush=True)
        return
    print(f"{place} {line}", flush=True)
    clock = time.monotonic()
    words = [
        *job.words(config.quick),
        f"logger={config.runs.logger}",
        f"runs.dir={config.runs.dir}",
        "runs.busy=wait",
        "runs.retry=failed",
    ]
    log = Path(config.runs.dir) / "paper" / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kgon", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait()
        finally:
            # Interrupted: the job writes its status before it ends.
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
    if code or not all(map(_finished, directories)):
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        print(f"kgon paper: error: {line} ended with status {code}; the output above is its own. "
              "What is finished is kept.", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    print(f"      {time.monotonic() - clock:.0f} s", flush=True)


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM ends this process in order, its job first."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
