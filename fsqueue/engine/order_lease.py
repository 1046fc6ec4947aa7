"""Take filelock's SoftFileLease on order.lease, for mounts that have no flock."""

from __future__ import annotations

import os
import warnings

from filelock import LeaseSettingsMismatch, SoftFileLease

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.order_content import StaleLockWarning
from fsqueue.errors import LockTimeoutError, QueueConfigError

LEASE = "order.lease"
LEASE_DURATION_S = 15.0
_LEASE_ROUNDS = 4
_POLL_S = 0.02


class OrderLease:
    """Take and give back the lease of one queue.

    It is reached from the queue's open directory, as all of its files: the path may lead to another queue by now.
    """

    def __init__(self, ops: FileOps, root: Directory) -> None:
        self._ops = ops
        self._root = root
        self._reached_by = -1
        self.path = os.path.join(root.path, LEASE)
        self._lease = self._made()

    def _made(self) -> SoftFileLease:
        self._reached_by = fd = self._root.fd
        by_fd = f"/proc/self/fd/{fd}"
        reached = os.path.join(by_fd, LEASE) if os.path.isdir(by_fd) else self.path
        return SoftFileLease(reached, lease_duration=LEASE_DURATION_S, thread_local=False)

    def acquire(self, patience_s: float) -> bool:
        """Take the lease within patience_s seconds, or return False."""
        if self._reached_by != self._root.fd:
            self._lease = self._made()  # the queue was opened anew
        try:
            self._lease.acquire(timeout=patience_s, poll_interval=_POLL_S)
        except TimeoutError:
            return False
        except LeaseSettingsMismatch as error:
            raise QueueConfigError(
                self._root.path,
                f"is locked by a program with another lease duration than the {LEASE_DURATION_S:g} s of FORMAT.md "
                f"({error}): let it use SoftFileLease({LEASE}, lease_duration={LEASE_DURATION_S:g})",
            ) from error
        return True

    def release(self, force: bool = False) -> None:
        self._lease.release(force=force)

    def break_stale(self, rounds: int = 0, waited_s: float = 0.0) -> None:
        """Remove a lease file that nobody refreshes, such as the empty one of a process killed while making it.

        Args:
            rounds: how often a put has waited for it, and for how long in all.

        Raises:
            LockTimeoutError: its holder lives.
        """
        refreshed_at = self._ops.fresh_mtime(self._root.fd, LEASE)
        if refreshed_at is None:
            return
        if FilesystemClock(self._ops, self._root).now() - refreshed_at < LEASE_DURATION_S:
            if rounds < _LEASE_ROUNDS:
                return  # each holder that was killed costs a whole lease; wait for some of them
            raise LockTimeoutError(self.path, waited_s)
        self._ops.remove(self._root.fd, LEASE)
        warnings.warn(f"removed {self.path}, which nobody refreshed any more", StaleLockWarning, stacklevel=3)
