"""Lock order.lock, which orders put and get: by filelock's own primitive, polled, never waited on for good.

No promise but FIFO order and deduplication rests on it. Where it cannot be had, get goes on without it, and
put replaces the file, whose lock a dead node may keep for minutes, by a fresh one.

Modes: ``flock`` locks order.lock itself, which on NFS also makes its cached content fresh; ``lease`` takes
filelock's SoftFileLease on order.lease; ``none`` takes nothing.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.publish import replace_file
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import ORDER, ORDER_FLAGS
from fsqueue.errors import CorruptRefError, LockTimeoutError, LockUnsupportedError

if TYPE_CHECKING:
    from filelock import SoftFileLease

GET_PATIENCE_S = 2.0
PUT_TIMEOUT_S = 30.0
STUCK_FOR_S = 10.0
LEASE_DURATION_S = 15.0
_LEASE_ROUNDS = 4
_FIRST_PAUSE_S = 0.00005
_LONGEST_PAUSE_S = 0.02
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class StaleLockWarning(RuntimeWarning):
    """Warn that the order lock was held for so long that its file was replaced."""


class OrderFile:
    """Hold order.lock open, and lock it.

    Attributes:
        fd: its descriptor; valid while the lock is held.
        size: its length in bytes when the lock was taken.
    """

    def __init__(self, ops: FileOps, root: Directory, mode: str, remote: bool) -> None:
        self._remote = remote
        self._inode = 0
        self.ops = ops
        self.root = root
        self.fd = -1
        self.size = 0
        self._mode = mode
        self._mutex = threading.Lock()
        self._stuck_until = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._lease: SoftFileLease | None = None
        if mode == "lease":
            from filelock import SoftFileLease

            self._lease = SoftFileLease(
                os.path.join(root.path, "order.lease"), lease_duration=LEASE_DURATION_S, thread_local=False
            )

    def acquire_soon(self) -> bool:
        """Take the lock within `GET_PATIENCE_S` seconds, or return False.

        After one such failure it is only tried, not waited for, for the next `STUCK_FOR_S` seconds.
        """
        stuck = self.ops.monotonic() < self._stuck_until
        if self.acquire(0.0 if stuck else GET_PATIENCE_S):
            return True
        if not stuck:
            self._stuck_until = self.ops.monotonic() + STUCK_FOR_S
        return False

    @contextmanager
    def held_soon(self) -> Iterator[bool]:
        """Hold the lock, or go on without it where it cannot be had soon; say which."""
        held = self.acquire_soon()
        try:
            yield held
        finally:
            if held:
                self.release()

    def acquire_surely(self) -> None:
        """Take the lock, replacing the file where it could not be had for `PUT_TIMEOUT_S` seconds.

        Raises:
            LockTimeoutError: in mode ``lease``, where a dead holder's claim expires and a live one's does not.
        """
        self._mutex.acquire()
        try:
            rounds = 0
            while not self._acquire_within(PUT_TIMEOUT_S):
                rounds += 1
                self._replace(rounds)
        except BaseException:
            self._give_up()
            raise

    def acquire(self, patience_s: float) -> bool:
        """Take the lock within patience_s seconds, or return False.

        Raises:
            LockUnsupportedError: the mount has no such lock.
        """
        if not self._mutex.acquire(timeout=patience_s):
            return False
        try:
            if self._acquire_within(patience_s):
                return True
        except BaseException:
            self._give_up()
            raise
        self._mutex.release()
        return False

    def _give_up(self) -> None:
        """Let go after an error: closing the descriptor drops its lock too, whatever state it was left in."""
        try:
            if self._lease is not None:
                self._lease.release(force=True)
            self._drop_quietly()
        finally:
            self._mutex.release()

    def release(self) -> None:
        try:
            if self._lease is not None:
                self._lease.release()
            elif self._mode == "flock":
                self.ops.unlock(self.fd)
            # NFS: without a lock on this very file, a kept descriptor would go on showing old content.
            if self._mode != "flock":
                self._drop()
        except BaseException:
            self._drop_quietly()
            raise
        finally:
            self._mutex.release()

    def probe(self) -> None:
        """Find out whether the mount has the lock at all.

        Raises:
            LockUnsupportedError: it has not.
        """
        if self.acquire(0.0):
            self.release()

    def close(self) -> None:
        with self._mutex:
            self._drop()

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):  # a handle that was dropped without close()
            self._drop()

    def abandon_in_child(self) -> None:
        """Close the child's copy of the descriptor, without the mutex that a thread of the parent may hold.

        Closing it does not unlock: the lock belongs to the open file, which the parent still has.
        """
        self._drop()

    def peek(self) -> tuple[int, int]:
        """Return which file it is (by inode) and its size, without the lock.

        NFS: a stat is answered from the cache, seconds old; open + fstat asks the server.
        """
        if not self._remote:
            status = self.ops.stat(ORDER, dir_fd=self.root.fd, follow_symlinks=False)
            return status.st_ino, status.st_size
        fd = self.ops.open(ORDER, ORDER_FLAGS, 0o666, dir_fd=self.root.fd)
        try:
            status = self.ops.fstat(fd)
            return status.st_ino, status.st_size
        finally:
            self.ops.close(fd)

    def _acquire_within(self, patience_s: float) -> bool:
        deadline = self.ops.monotonic() + patience_s
        pause_s = self._pause_s
        while True:
            if self._try_lock(max(0.0, deadline - self.ops.monotonic())):
                if self._is_linked():
                    self._pause_s = max(_FIRST_PAUSE_S, pause_s / 4)
                    return True
                # The file was deleted or replaced under this handle: its lock excludes nobody any more.
                self._unlock_dropped()
                continue
            if self.ops.monotonic() >= deadline:
                if not self._was_replaced():
                    return False
                self._drop()
                deadline = self.ops.monotonic() + patience_s
                continue
            self.ops.sleep(pause_s * (0.5 + self.ops.random()))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _is_linked(self) -> bool:
        """Return whether the locked file is still the one that goes by the name; note its size.

        NFS: the name may be a remembered one and its size with it; the descriptor's are fresh under the lock.
        """
        try:
            if self._remote:
                status = self.ops.fstat(self.fd)
            else:
                status = self.ops.stat(ORDER, dir_fd=self.root.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            return False
        self.size = status.st_size
        return status.st_nlink > 0 and status.st_ino == self._inode

    def _try_lock(self, patience_s: float) -> bool:
        if self._lease is not None:
            try:
                self._lease.acquire(timeout=patience_s, poll_interval=_LONGEST_PAUSE_S)
            except TimeoutError:
                return False
        if self.fd < 0:
            self.fd = self.ops.open(ORDER, ORDER_FLAGS, 0o666, dir_fd=self.root.fd)
            self._inode = self.ops.fstat(self.fd).st_ino
        if self._mode != "flock":
            return True
        try:
            return self.ops.lock(self.fd)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise LockUnsupportedError(os.path.join(self.root.path, ORDER), error) from error
            if error.errno != errno.ESTALE:
                raise
            self._drop()
            return False

    def _unlock_dropped(self) -> None:
        if self._lease is not None:
            self._lease.release()
        self._drop()

    def _drop(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.ops.close(fd)

    def _drop_quietly(self) -> None:
        with suppress(OSError):
            self._drop()

    def _was_replaced(self) -> bool:
        if self.fd < 0:
            return False
        self.root.refresh()
        try:
            now = self.ops.stat(ORDER, dir_fd=self.root.fd, follow_symlinks=False)
            return now.st_ino != self.ops.fstat(self.fd).st_ino
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return True

    def _replace(self, rounds: int) -> None:
        """Put a fresh copy of the order file in the place of one whose lock does not come free.

        RACE: waiters that come second find another inode and wait for its lock. Two that replace at the same instant
        may both go on, which costs order and deduplication, nothing else.
        """
        if self._lease is not None:
            self._break_stale_lease(self._lease.lock_file, rounds)
            return
        if self._was_replaced():
            self._drop()
            return
        try:
            content = self.ops.read_file(self.root.fd, ORDER)
        except CorruptRefError:
            content = b""  # too long to copy: the order is rebuilt from a listing
        replace_file(self.ops, self.root, ORDER, content, durable=False)
        self._drop()
        path = os.path.join(self.root.path, ORDER)
        warnings.warn(
            f"the lock on {path} was held by another process for {PUT_TIMEOUT_S:.0f} s, perhaps on a node that died; "
            "replaced it and went on",
            StaleLockWarning,
            stacklevel=2,
        )

    def _break_stale_lease(self, path: str, rounds: int) -> None:
        """Remove a lease file that nobody refreshes, such as the empty one of a process killed while making it.

        Raises:
            LockTimeoutError: its holder lives.
        """
        name = os.path.basename(path)
        refreshed_at = self.ops.fresh_mtime(self.root.fd, name)
        if refreshed_at is None:
            return
        if FilesystemClock(self.ops, self.root).now() - refreshed_at < LEASE_DURATION_S:
            if rounds < _LEASE_ROUNDS:
                return  # each holder that was killed costs a whole lease; wait for some of them
            raise LockTimeoutError(path, rounds * PUT_TIMEOUT_S)
        self.ops.remove(self.root.fd, name)
        warnings.warn(f"removed {path}, which nobody refreshed any more", StaleLockWarning, stacklevel=3)
