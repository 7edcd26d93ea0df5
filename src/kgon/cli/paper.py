"""kgon paper: run every experiment of the paper, and write the page that compares the numbers."""

import subprocess
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from kgon.launch import command_line
from kgon.launch import config as configs
from kgon.launch.jobs import signals_stop
from kgon.launch.options import CONF
from kgon.launch.overrides import Composer
from kgon.paper.items import ITEMS, check_names
from kgon.paper.jobs import JOBS, Job, Results
from kgon.paper.page import write_page
from kgon.paper.rows import VERDICTS
from kgon.record.run_directory import RunDirectory


def main() -> None:
    """Console entry: Hydra overrides, and --quick for quick=true."""
    sys.argv = ["quick=true" if word == "--quick" else word for word in sys.argv]
    command_line.run("paper", task, check)


def check(config: DictConfig) -> None:
    """ValueError for a value that is not allowed, before any job starts."""
    if not isinstance(config.quick, bool):
        raise ValueError(f"quick must be true or false, got {config.quick}")
    check_names(_names(config))
    loggers = sorted(path.stem for path in (CONF / "logger").glob("*.yaml"))
    if config.runs.logger not in loggers:
        raise ValueError(
            f"runs.logger must be one of {', '.join(loggers)}, got {config.runs.logger}"
        )


def _names(config: DictConfig) -> list[str]:
    if config.item is None:
        return [item.name for item in ITEMS]
    return list(config.item) if OmegaConf.is_list(config.item) else [str(config.item)]


def task(config: DictConfig) -> None:
    """Run the jobs that are not finished, then write the page from all that are."""
    chosen = [item for item in ITEMS if item.name in _names(config)]
    needed = list(dict.fromkeys(name for item in chosen for name in item.needs))
    with signals_stop():
        folders = {name: _directories(job, config) for name, job in JOBS.items()}
        for i, name in enumerate(needed):
            _run(f"[{i + 1}/{len(needed)}]", JOBS[name], folders[name], config)
        _write(config, folders)


def _write(config: DictConfig, folders: dict[str, list[Path]]) -> None:
    done = {name: paths for name, paths in folders.items() if all(map(_finished, paths))}
    results = Results(done, config.quick, Path(config.runs.dir) / "paper")
    sections = {}
    for item in ITEMS:
        # An item that needs no run takes seconds, but for a slow one: it is always on the page.
        ready = all(name in done for name in item.needs) and (
            item.slow is None or item.name in _names(config) or results.has(item.slow)
        )
        print(f"{item.name}: {'computed' if ready else 'not run'}", flush=True)
        sections[item.name] = item.make(results) if ready else None
    out = Path(config.out or (f"{config.runs.dir}/paper-quick" if config.quick else "docs/paper"))
    version = "the quick version, `kgon paper --quick`" if config.quick else "`make paper`"
    how = f"Written by {version}."
    if len(done) == len(JOBS):
        runs = [path for paths in done.values() for path in paths]
        minutes = sum(RunDirectory(path).status()["seconds"] or 0.0 for path in runs) / 60
        how = f"Written by {version} from {len(runs)} runs, {minutes:.0f} minutes of computing."
    if config.quick:
        how += " **A quick version: fewer runs, larger errors.**"
    written = write_page(out, sections, how)
    for verdict in VERDICTS:
        print(f"{written['verdicts'][verdict]:4d} {verdict}")
    print(f"\n  {out}/README.md")


def _directories(job: Job, config: DictConfig) -> list[Path]:
    """The directory of each of the job's runs."""
    compose = Composer(lambda w: hydra.compose(job.command, list(w), return_hydra_config=True))
    found = []
    for overrides in job.runs(config.quick):
        words = [*overrides, f"runs.dir={config.runs.dir}"]
        found.append(configs.directory(compose(words).config))
    return found


def _finished(path: Path) -> bool:
    return bool(RunDirectory(path).status()["state"] == "finished")


def _run(number: str, job: Job, directories: list[Path], config: DictConfig) -> None:
    """Run a job in a process of its own, unless all of its runs are finished.

    A job that is still running after an earlier `kgon paper` was killed is waited for.
    """
    line = job.text(config.quick)
    if all(map(_finished, directories)):
        print(f"{number} finished: {line}", flush=True)
        return
    print(f"{number} {line}", flush=True)
    started = time.monotonic()
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
        command = [sys.executable, "-m", "kgon", *words]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        finally:
            # Interrupted: let the job write its status before it ends.
            if process.poll() is None:
                process.terminate()  # it may already have had a Ctrl-C, of which two kill
                process.wait()
    if code or not all(map(_finished, directories)):
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        print(f"kgon paper: error: {line} ended with status {code}; its output is above. "
              "Finished runs are kept.", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    print(f"      {time.monotonic() - started:.0f} s", flush=True)
