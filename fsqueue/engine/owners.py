"""Name the owners of leases, keep their records in owners/, and tell whether their processes live.

A handle that leases has one record, ``owners/<owner>.json``. It says on which host and boot, in which namespaces the
process runs and since when, so that another handle beside it can tell that it is gone; where the owner keeps a
heartbeat, the record's mtime is its last beat and prolongs all of the owner's leases.

"Dead" needs proof. Whatever leaves a doubt (another host of the same boot id, as cloned machines have; another pid or
time namespace; a /proc that is not that of this process's namespace) makes an owner unknown.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import read_json
from fsqueue.errors import QueueConfigError
from fsqueue.format import names

OWNER_VARIABLE = "FSQUEUE_OWNER"
Liveness = Literal["alive", "dead", "unknown"]


class Here(NamedTuple):
    """Say where this process runs, as far as that tells which processes its pids mean."""

    host: str
    boot_id: str | None
    pid_namespace: str | None
    time_namespace: str | None
    sees_itself: bool


class OwnerRecord(msgspec.Struct, frozen=True):
    """Hold the content of owners/<owner>.json.

    Attributes:
        boot_id, pid_namespace, pid_start_time, time_namespace: with host and pid, these name a process for good; None
            where the system does not tell. The time namespace shifts the start times that its processes see.
        heartbeat_s: seconds between beats; None: the owner keeps none, and the mtime means nothing.
    """

    owner: str
    host: str
    boot_id: str | None
    pid_namespace: str | None
    pid: int
    pid_start_time: str | None
    started_at: float
    heartbeat_s: float | None = None
    time_namespace: str | None = None

    def liveness(self, here: Here | None = None) -> Liveness:
        """Tell whether the owner's process runs, as far as this process, which is here, can prove."""
        here = here or whereabouts()
        if self.pid_start_time is None or not self.is_from(here) or not here.sees_itself:
            return "unknown"
        return _liveness(self.pid, self.pid_start_time)

    def is_from(self, here: Here) -> bool:
        """Tell whether the owner's pid means the same process here as where the record was written."""
        if self.boot_id is None or self.pid_namespace is None:
            return False
        return (self.host, self.boot_id, self.pid_namespace, self.time_namespace) == here[:4]


def whereabouts() -> Here:
    """Find out where this process runs."""
    return Here(os.uname().nodename, boot_id(), pid_namespace(), time_namespace(), sees_itself())


def _liveness(pid: int, start_time: str) -> Liveness:
    """Tell whether the process with this pid and start time runs; unknown where it cannot be looked at (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:
        pass
    state, found = process_stat(pid)
    if state is None:
        return "unknown"
    return "alive" if found == start_time and state not in "ZXx" else "dead"


def new_owner(name: str | None, path: str) -> str:
    """Return a name for one handle: ``<name>.<pid>.<6 hex>``, name being $FSQUEUE_OWNER, or the host's, unless given.

    Raises:
        QueueConfigError: the name is empty or longer than 64 bytes once escaped.
    """
    name = name if name is not None else os.environ.get(OWNER_VARIABLE) or None
    if name is None:
        escaped = names.owner_name(os.uname().nodename or "host")[: names.OWNER_NAME_LIMIT]
    else:
        escaped = names.owner_name(name)
        if not 0 < len(escaped) <= names.OWNER_NAME_LIMIT:
            raise QueueConfigError(
                path,
                f"takes an owner name of 1 to {names.OWNER_NAME_LIMIT} bytes once percent-encoded, "
                f"found {name!r} with {len(escaped)}: choose a shorter one",
            )
    return f"{escaped}.{os.getpid()}.{os.urandom(3).hex()}"


def describe_self(owner: str, now: float, heartbeat_s: float | None) -> OwnerRecord:
    """Return the record of a handle of this process."""
    pid = os.getpid()
    started = process_stat(pid)[1] if sees_itself() else None
    return OwnerRecord(
        owner, os.uname().nodename, boot_id(), pid_namespace(), pid, started, now, heartbeat_s, time_namespace()
    )


def read_record(owners: Directory, owner: str) -> OwnerRecord | None:
    """Return an owner's record; None where there is none that can be read."""
    return read_json(owners, names.ref_file(owner), OwnerRecord)


def boot_id() -> str | None:
    """Identify this boot of this host (Linux: /proc/sys/kernel/random/boot_id)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as f:
            return f.read().strip()
    except OSError:
        return None


def pid_namespace() -> str | None:
    """Identify the namespace of this process's pids (Linux: /proc/self/ns/pid)."""
    return _link("/proc/self/ns/pid")


def time_namespace() -> str | None:
    """Identify the namespace of this process's clocks (Linux: /proc/self/ns/time)."""
    return _link("/proc/self/ns/time")


def sees_itself() -> bool:
    """Tell whether /proc shows this process under its own pid: not where it is that of an outer pid namespace."""
    return _link("/proc/self") == str(os.getpid())


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def process_stat(pid: int) -> tuple[str, str] | tuple[None, None]:
    """Return a process's state letter and its start, in clock ticks since boot; None where they cannot be read.

    Source: proc_pid_stat(5), fields 3 (state) and 22 (starttime).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None, None
    return fields[0].decode(), fields[19].decode()
