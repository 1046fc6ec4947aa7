"""Hold the two sides of a verification, as a check uses them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fsqueue.disk import fileops
from fsqueue.disk.filesystems import Filesystem, filesystem
from fsqueue.operate.doctor.peer import Peer, PeerError, Peers

MODULE = "fsqueue.operate.doctor.sides.tasks"
_APPEAR_S = 40.0  # sshfs believes an old listing for 20 s


@dataclass(frozen=True)
class Options:
    """Say how much is tried.

    Attributes:
        lock: the queues' lock mode.
        refs: those that each side puts in the torture.
        files: those that are raced for.
        rounds: of each look at what is fresh, and of round trips.
        lease_timeout_s: in the checks of leases; None: a few seconds, as the filesystem's time stamps allow.
        stale_limit_s: for how long an old name or stamp is watched.
        torture_s: after how many seconds the torture is given up.
    """

    lock: str = "flock"
    refs: int = 200
    files: int = 500
    rounds: int = 20
    lease_timeout_s: float | None = None
    stale_limit_s: float = 25.0
    torture_s: float = 120.0


class Sides:
    """Keep a process of this host, A, and one in the second mount or on the other node, B.

    Args:
        here, there: the directory that both work in, as A and this process see it, and as B does.
        command: what starts B; None: as A is started.

    Attributes:
        lock: the lock mode of the queues: the one asked for, or "none" once flock turned out to be missing.
    """

    def __init__(
        self, here: str, there: str, command: Sequence[str] | None, options: Options, filesystem_type: str | None
    ) -> None:
        self.directory = here
        self.options = options
        self.lock = options.lock
        self.filesystem: Filesystem = filesystem(filesystem_type)
        self._there = there
        self._command = command
        self._peers = Peers()
        self._start()

    def _start(self) -> None:
        self.a = self._peers.start("A", self.directory, module=MODULE)
        self.b = self._peers.start("B", self._there, self._command, MODULE)

    @property
    def both(self) -> tuple[Peer, Peer]:
        return self.a, self.b

    def without_flock(self) -> None:
        """Let the queues that follow have no lock, where they were to have flock."""
        if self.lock == "flock":
            self.lock = "none"

    @property
    def lease_timeout_s(self) -> float:
        """Return the lease timeout of the checks: several steps of the time stamps, and no less than 3 s."""
        return self.options.lease_timeout_s or max(3.0, 3 * self.filesystem.step_s)

    def victim(self) -> Peer:
        """Start one more process like B, to be killed."""
        return self._peers.start("victim", self._there, self._command, MODULE)

    def restart(self) -> None:
        """End both sides, whatever they are at, and start them anew."""
        self.close(at_once=True)
        self._start()

    def close(self, at_once: bool = False) -> None:
        """End all processes."""
        peers, self._peers = self._peers, Peers()
        peers.end(at_once)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return what each side is.

        Raises:
            PeerError: a side does not see the directory, or runs another version.
        """
        found = {peer.name: peer.call("hello", directory=peer.directory, patience_s=_APPEAR_S) for peer in self.both}
        for name, side in found.items():
            if not side["present"]:
                directory = (self.a if name == "A" else self.b).directory
                raise PeerError(f"{name} ({side['host']}) does not see {directory}: is it the same filesystem?")
        if found["A"]["fsqueue"] != found["B"]["fsqueue"]:
            raise PeerError(f"A runs fsqueue {found['A']['fsqueue']}, B {found['B']['fsqueue']}: install the same one")
        return found

    def make_directory(self, *names: str) -> str:
        """Make a directory, and wait until B sees it; return its path as this process sees it."""
        path = os.path.join(self.directory, *names)
        fileops.current().mkdir(path, 0o777)
        there = os.path.join(self.b.directory, *names)
        if not self.b.call("appears", directory=there, patience_s=_APPEAR_S):
            raise PeerError(f"B did not see {there} within {_APPEAR_S:.0f} s after it was made")
        return path

    def open_queue(self, name: str, **settings: Any) -> None:
        """Create a queue by A, and open it on both sides."""
        self.queue(self.a, "open", name, lock=self.lock, **settings)
        self.b.call("appears", directory=os.path.join(self.b.directory, name, "failed"), patience_s=_APPEAR_S)
        self.queue(self.b, "open", name, lock=self.lock, patience_s=_APPEAR_S, **settings)

    def queue(self, peer: Peer, call: str, name: str, **arguments: Any) -> Any:
        """Make one call on a queue, as one side sees it."""
        return peer.call(f"queue_{call}", queue=os.path.join(peer.directory, name), **arguments)

    def drain(self, peer: Peer, name: str, wanted: int, timeout_s: float) -> list[str]:
        """Get until so many refs have come, or none came for that long."""
        ids: list[str] = []
        while len(ids) < wanted:
            more = self.queue(peer, "get", name, count=wanted - len(ids), timeout_s=timeout_s)
            if not more:
                break
            ids += more
        return ids


def remote_command(prefix: str, python: str) -> list[str]:
    """Return the command that starts a side through another, such as ``ssh node2``, which takes a shell command."""
    return [*shlex.split(prefix), shlex.join([python, "-m", MODULE])]
