"""Who holds leases: owner names, their records in owners/, and whether their process lives.

A handle that leases has one record, ``owners/<owner>.json``. It says on which host, boot and pid namespace the
process runs and since when, so that another handle on the same host can tell that it is gone; where the owner
keeps a heartbeat, the record's mtime is its last beat and prolongs all of the owner's leases.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Literal

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.errors import CorruptRefError, QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import UNDECODABLE

Liveness = Literal["alive", "dead", "unknown"]


class OwnerRecord(msgspec.Struct, frozen=True):
    """What owners/<owner>.json says.

    Attributes:
        boot_id, pid_namespace, pid_start_time: with pid, these name a process for good; None where the
            system does not tell.
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

    def liveness(self) -> Liveness:
        """Whether the owner's process runs, as far as this host can know."""
        if self.boot_id is None or self.pid_namespace is None or self.pid_start_time is None:
            return "unknown"
        if (self.boot_id, self.pid_namespace) != (boot_id(), pid_namespace()):
            return "unknown"
        return _liveness(self.pid, self.pid_start_time)


def _liveness(pid: int, start_time: str) -> Liveness:
    """Whether the process with this pid and start time runs on this host.

    A process that is there but cannot be looked at (another user's, under hidepid) is unknown, not dead.
    """
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
    """A name for one handle: ``<name>.<pid>.<6 hex>``, name being the host's unless given.

    Raises:
        QueueConfigError: the name is empty or longer than 64 bytes once escaped.
    """
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
    """The record of a handle of this process."""
    pid = os.getpid()
    return OwnerRecord(
        owner, os.uname().nodename, boot_id(), pid_namespace(), pid, process_stat(pid)[1], now, heartbeat_s
    )


def read_record(ops: FileOps, owners: Directory, owner: str) -> OwnerRecord | None:
    """An owner's record; None where there is none that can be read."""
    try:
        return msgspec.json.decode(ops.read_file(owners.fd, names.ref_file(owner)), type=OwnerRecord)
    except (FileNotFoundError, CorruptRefError, *UNDECODABLE):
        return None


@lru_cache(maxsize=1)
def boot_id() -> str | None:
    """This boot of this host (Linux: /proc/sys/kernel/random/boot_id)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as f:
            return f.read().strip()
    except OSError:
        return None


def pid_namespace() -> str | None:
    """The namespace that this process's pids are numbers of (Linux: /proc/self/ns/pid)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def process_stat(pid: int) -> tuple[str, str] | tuple[None, None]:
    """A process's state letter and when it started, in clock ticks since boot; None where it cannot be read.

    Source: proc_pid_stat(5), fields 3 (state) and 22 (starttime).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None, None
    return fields[0].decode(), fields[19].decode()
