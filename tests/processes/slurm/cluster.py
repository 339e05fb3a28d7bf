"""A real Slurm on this machine, for tests: its own key, ports and folder, and nothing left of it afterwards.

python tests/processes/slurm/cluster.py FOLDER    start one, print what to export, and stop it on Ctrl-C or SIGTERM
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
PR_SET_PDEATHSIG = 1  # of Linux's prctl: daemons outlive no test that is killed
NODES = ("one", "two")  # two nodes of this one machine: the second is for cells of several nodes

CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
ReturnToService=2
KillWait=20
MinJobAge=60
SlurmdTimeout=120
UnkillableStepTimeout=120
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=main Nodes=one Default=YES MaxTime=60 State=UP
PartitionName=both Nodes=one,two MaxTime=60 State=UP
"""


def available() -> bool:
    """Whether Slurm's and munge's programs are installed."""
    return all(shutil.which(name, path=SEARCH) for name in PROGRAMS)


class Cluster:
    """Slurm's daemons while it is entered: one node of 2 CPUs in partition "main", two of them in "both".

    Attributes:
        environment: with which sbatch, squeue and scancel find it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": SEARCH,
        }
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munge trusts no key in a folder that others may write to
        (self.folder / "state").mkdir()
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        conf = CONF.format(folder=self.folder, user=user, ports=free_ports(1 + len(NODES)))
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        try:
            socket_path = self.folder / "munge.socket"
            self._start(
                "munged",
                "--foreground",
                "--force",
                f"--key-file={key}",
                f"--socket={socket_path}",
                f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munged.seed",
            )
            wait_until(socket_path.exists, 20)
            self._start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            wait_until(lambda: self.run("sinfo", "-h", "-o", "%T").stdout.split() in (["idle"], ["idle", "idle"]), 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if "slurmctld" in self._running:
            with suppress(subprocess.SubprocessError, OSError):
                me = f"--user={os.getuid()}"
                self.run("scancel", "--state=PENDING", me, timeout=10)
                self.run("scancel", "--signal=KILL", "--full", me, timeout=10)
                self.run("scancel", me, timeout=10)
                wait_until(lambda: not self.run("squeue", "-h").stdout.strip(), 15)
        for name in list(self._running)[::-1]:
            self._stop(name, signal.SIGTERM)
        self._kill_stepds()

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """One of Slurm's commands."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to a node's slurmd; what it has started continues."""
        self._stop(node, signal.SIGKILL)

    def queue(self) -> list[str]:
        """Every job in the queue as "ID_INDEX STATE", array tasks one by one."""
        return self.run("squeue", "-h", "-r", "-o", "%F_%K %T").stdout.splitlines()

    def _start(self, program: str, *arguments: str, name: str | None = None) -> None:
        with (self.folder / f"{name or program}.out").open("a") as out:
            self._running[name or program] = subprocess.Popen(
                [shutil.which(program, path=SEARCH), *arguments],
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    def _stop(self, name: str, number: int) -> None:
        process = self._running.pop(name)
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _kill_stepds(self) -> None:
        """End what slurmd left behind: Slurm's own processes with this folder in their environment, and its jobs'."""
        marker = str(self.folder / "slurm.conf").encode()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                environment = (path / "environ").read_bytes()
                of_slurm = b"SLURM_JOB_ID=" in environment or (path / "comm").read_text().startswith("slurm")
                if marker in environment and of_slurm:
                    os.kill(int(path.name), signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Poll until ``condition`` holds; TimeoutError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background without Ctrl-C
        signal.signal(number, _leave)
    with suppress(KeyboardInterrupt), Cluster(Path(sys.argv[1]).resolve()) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        signal.pause()
