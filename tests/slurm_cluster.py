"""A real Slurm with two nodes on this machine, on loopback, for the time of some tests.

Run as a script, it prints the environment of a cluster and keeps it until its input ends:

    python tests/slurm_cluster.py FOLDER
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")

CONF = """\
ClusterName=kgon
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=86400
KillWait=5
SlurmdTimeout=10
InactiveLimit=0
ReturnToService=2
MaxArraySize={max_array_size}
MailProg=/bin/true
NodeName=n[1-2] NodeAddr=127.0.0.1 NodeHostname={host} Port=[{first}-{last}] CPUs=2 RealMemory=16000
PartitionName=main Nodes=n[1-2] Default=YES State=UP MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes=n[1-2] State=UP MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine has not."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


class Cluster:
    """Two nodes, n1 and n2, of two processors each; partitions `main` and `urgent`.

    A job of `urgent` preempts jobs of `main`. Root only.
    """

    def __init__(self, folder: Path, max_array_size: int = 9):
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self.daemons: dict[str, subprocess.Popen] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(exist_ok=True)
        port, first, last = _free_ports()
        (folder / "slurm.conf").write_text(
            CONF.format(
                folder=folder,
                host=socket.gethostname().split(".")[0],
                port=port,
                first=first,
                last=last,
                max_array_size=max_array_size,
            )
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        folder.chmod(0o755)

    def start(self) -> None:
        """Start the daemons; return when both nodes take jobs."""
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munge.pid",
            f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed",
            "--num-threads=2",
        )  # fmt: skip
        _until(lambda: (self.folder / "munge.socket").exists(), "munge answers")
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        _until(lambda: self.node_states() == ["idle", "idle"], "both nodes are idle")

    def start_controller(self) -> None:
        self._daemon("slurmctld", "-D")

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def kill(self, name: str) -> None:
        """Kill slurmctld, n1 or n2, with whatever a node runs."""
        daemon = self.daemons.pop(name)
        for pid in [*_descendants(daemon.pid), daemon.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        daemon.wait()

    def stop(self) -> None:
        for job in self.ask("squeue", "--noheader", "--format=%A").split():
            self.ask("scancel", "--signal=KILL", job)
        for name in reversed(list(self.daemons)):
            daemon = self.daemons[name]
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                self.kill(name)

    def ask(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        return done.stdout

    def node_states(self) -> list[str]:
        return self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t").split()

    def jobs(self) -> dict[str, str]:
        """The state of every job, by id."""
        lines = self.ask(
            "squeue", "--noheader", "--array", "--states=all", "--format=%i %T"
        ).splitlines()
        return dict(line.split() for line in lines)

    def _daemon(self, *words: str, name: str | None = None) -> None:
        log = (self.folder / f"{name or words[0]}.out").open("ab")
        self.daemons[name or words[0]] = subprocess.Popen(
            words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()


def _free_ports() -> tuple[int, int, int]:
    """A port for the controller, and two neighbours for the nodes, that nobody listens on."""
    for port in range(17000 + os.getpid() % 1000 * 10, 60000, 10):
        try:
            for offset in range(3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
            return port, port + 1, port + 2
        except OSError:
            continue
    raise RuntimeError("no free ports")


def _descendants(pid: int) -> list[int]:
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout.split()
    return [p for child in map(int, children) for p in (*_descendants(child), child)]


def _until(condition, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    cluster = Cluster(Path(sys.argv[1]).absolute())
    cluster.start()
    print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
    sys.stdin.read()
    cluster.stop()
