"""Run a Slurm of one's own on this host: its daemons, its configuration and its state in a folder, on loopback only."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
SHORTEST_EXPIRY_S = 6
SLURMS_OWN_EXPIRY_S = 120
_CPUS = 64
_START_S = 60.0
_CONFIGURATION = """\
ClusterName=recipes
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expiry_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=3 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=10 MaxTime=INFINITE State=UP
"""


def lacking() -> list[str]:
    """Return the programs that this needs and cannot find."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def _free_ports() -> tuple[int, int]:
    """Return two ports of this host that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


class Slurm:
    """Start munged, slurmctld and slurmd, and stop them at the end of `with`.

    A job that was requeued may start again once the credentials of its steps have expired: Slurm's own
    AuthInfo=cred_expire is 120 s, and values of 5 s and less are not heeded.

    Args:
        folder: an empty folder for all that they write, with a short path: it holds a socket.
        expiry_s: how long these credentials hold.
    """

    def __init__(self, folder: Path, expiry_s: int = SHORTEST_EXPIRY_S) -> None:
        self._folder = folder
        self.restart_delay_s = expiry_s + 1
        port, slurmd_port = _free_ports()
        text = _CONFIGURATION.format(
            host=os.uname().nodename,
            port=port,
            slurmd_port=slurmd_port,
            folder=folder,
            expiry_s=expiry_s,
            cpus=_CPUS,
        )
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o700)
        self._configuration = folder / "slurm.conf"
        self._configuration.write_text(text, encoding="utf-8")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def __enter__(self) -> Slurm:
        try:
            munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
            munge |= {"log-file": "munged.log", "seed-file": "munged.seed"}
            self._start("munged", "--force", *(f"--{name}={self._folder / file}" for name, file in munge.items()))
            self.start_controller()
            self._start("slurmd", "-f", str(self._configuration), "-N", os.uname().nodename)
            self._wait_until_idle()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _start(self, *command: str) -> None:
        done = subprocess.run(command, env=self._environment({}), capture_output=True, text=True, timeout=_START_S)
        if done.returncode:
            raise RuntimeError(f"{command[0]} does not start: {done.stderr.strip()}; its log is in {self._folder}")

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + _START_S
        while "idle" not in self._ask("sinfo", "--noheader", "--format=%T", check=False):
            if time.monotonic() > deadline:
                raise RuntimeError(f"slurmd does not register; see the logs in {self._folder}")
            time.sleep(0.2)

    def start_controller(self) -> None:
        self._start("slurmctld", "-f", str(self._configuration))

    def kill_controller(self) -> None:
        """SIGKILL slurmctld, and wait until it is gone."""
        self._end("slurmctld", signal.SIGKILL)

    def stop(self) -> None:
        """Cancel all jobs, and end the daemons."""
        with suppress(subprocess.SubprocessError):
            self._ask("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 20.0
            while self._ask("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in ("slurmd", "slurmctld", "munged"):
            self._end(daemon, signal.SIGTERM)

    def _end(self, daemon: str, number: int) -> None:
        """Signal a daemon until it is gone; in the end by SIGKILL."""
        try:
            pid = int((self._folder / f"{daemon}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return
        deadline = time.monotonic() + 15.0
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            while Path(f"/proc/{pid}").exists():
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("SLURM")}
        return inherited | {"SLURM_CONF": str(self._configuration)} | dict(more)

    def _ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self._environment({}), capture_output=True, text=True, timeout=_START_S, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Run sbatch with these arguments in a folder; return the job's id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *command],
            cwd=folder,
            env=self._environment(environment),
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"sbatch {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def requeue(self, job: str) -> None:
        self._ask("scontrol", "requeue", job)

    def cancel(self, job: str) -> None:
        self._ask("scancel", job)

    def signal(self, job: str, name: str) -> None:
        """Send a signal to the steps of a job, as `scancel --signal` does."""
        self._ask("scancel", f"--signal={name}", job)

    def live(self, jobs: Sequence[str]) -> list[str]:
        """Return `id state` of those of these jobs that wait or run; squeue waits for a slurmctld that just starts."""
        lines = self._ask("squeue", "--noheader", "--format=%F %i %T").splitlines()
        return [line.partition(" ")[2] for line in lines if line.split()[0] in jobs]

    def shown(self, job: str) -> str:
        """Return all that Slurm says of a job, each task of an array included."""
        return self._ask("scontrol", "--oneliner", "show", "job", job, check=False)
