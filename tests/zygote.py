"""kgon commands in processes of their own, at the cost of a fork.

A fresh interpreter needs several seconds for its imports. This one imports them once, computes
nothing itself, and forks for every command: so a test can kill a job at any moment, often.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SOURCE = str(Path(__file__).parents[1] / "src")


class Zygote:
    """The process that forks; what it started is a `Started`."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": f"{SOURCE}:{Path(__file__).parent}",
                "COLUMNS": "120",
                "WANDB_MODE": "offline",
            },
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder: Path, *words: str, **environment: str) -> "Started":
        folder.mkdir(parents=True, exist_ok=True)
        request = {"argv": ["kgon", *words], "cwd": str(folder), "environment": environment}
        return Started(self, **self._ask(request))

    def run(self, folder: Path, *words: str, **environment: str) -> "Started":
        """Start and wait."""
        started = self.start(folder, *words, **environment)
        started.wait()
        return started

    def _ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Started:
    """A command at work, or its end: `status` as of subprocess, None while it runs."""

    def __init__(self, zygote: Zygote, pid: int, log: str):
        self.zygote = zygote
        self.pid = pid
        self.log = Path(log)
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            self.status = self.zygote._ask({"wait": self.pid})["status"]
        return self.status

    def wait(self, timeout: float = 240) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                raise TimeoutError(self.output)
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the command and whatever it started."""
        if self.poll() is None:
            os.killpg(self.pid, signum)

    @property
    def output(self) -> str:
        return self.log.read_text()


def _serve() -> None:
    import kgon.cli.llc
    import kgon.cli.posterior
    import kgon.cli.report
    import kgon.cli.runs
    import kgon.cli.train  # noqa: F401

    print("ready", flush=True)
    count = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            print(
                json.dumps({"status": os.waitstatus_to_exitcode(status) if pid else None}),
                flush=True,
            )
            continue
        count += 1
        log = Path.cwd() / f"command-{count}.log"
        pid = os.fork()
        if pid == 0:
            _be(request, log)
        while os.getpgid(pid) != pid:  # until the child leads a group that can be signalled
            time.sleep(0.001)
        print(json.dumps({"pid": pid, "log": str(log)}), flush=True)


def _be(request: dict, log: Path) -> None:
    os.setpgid(0, 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, file), (2, file)):
        os.dup2(source, target)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    status = 1
    try:
        from kgon.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


if __name__ == "__main__":
    _serve()
