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
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.publish import replace_file
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import HEADER_BYTES, ORDER, ORDER_FLAGS
from fsqueue.engine.reserve import is_full
from fsqueue.errors import CorruptRefError, LockTimeoutError, LockUnsupportedError, QueueConfigError

if TYPE_CHECKING:
    from filelock import SoftFileLease

GET_PATIENCE_S = 2.0
PUT_TIMEOUT_S = 30.0
STUCK_FOR_S = 10.0
LEASE_DURATION_S = 15.0
_LEASE_ROUNDS = 4
_FIRST_PAUSE_S = 0.00005
_LONGEST_PAUSE_S = 0.02
_BRISK_S = 0.1
_BRISK_PAUSE_S = 0.002
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class StaleLockWarning(RuntimeWarning):
    """Warn that the order lock was held for so long that its file was replaced."""


class Hold:
    """Take the lock at the beginning of a with block and give it back at its end; its value says whether it is held.

    Nothing else takes or gives it. An exception in the midst of either lets go of everything.
    """

    __slots__ = ("_give", "_take")

    def __init__(self, take: Callable[[], bool], give: Callable[[], None]) -> None:
        self._take = take
        self._give = give

    def __enter__(self) -> bool:
        return self._take()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._give()


class OrderFile:
    """Hold order.lock open, and lock it.

    Attributes:
        fd: its descriptor; valid while the lock is held.
        size: its length in bytes when the lock was taken.
        soon: holds the lock for a with block, or lets it go on without where it cannot be had in `GET_PATIENCE_S`
            seconds. After one such failure it is only tried, not waited for, for `STUCK_FOR_S` seconds, unless its
            holder moves on.
        surely: holds the lock for a with block, and replaces its file where a holder has not moved on for
            `PUT_TIMEOUT_S` seconds. Raises a LockTimeoutError in mode ``lease``, where a dead holder's claim expires
            and a live one's does not.
    """

    def __init__(self, ops: FileOps, root: Directory, mode: str, remote: bool) -> None:
        self._remote = remote
        self._inode = 0
        self.ops = ops
        self.root = root
        self.fd = -1
        self.size = 0
        self._mode = mode
        self.soon = Hold(self._take_soon, self._give)
        self.surely = Hold(self._take_surely, self._give)
        self._mutex = threading.RLock()
        self._inside: set[int] = set()  # the threads that take, hold or give the lock
        self._stuck_until = 0.0
        self._stuck_at: tuple[int, int, bytes] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._lease: SoftFileLease | None = None
        if mode == "lease":
            from filelock import SoftFileLease

            self._lease = SoftFileLease(
                os.path.join(root.path, "order.lease"), lease_duration=LEASE_DURATION_S, thread_local=False
            )

    def _take_soon(self) -> bool:
        stuck = self._stuck_at is not None and self.ops.monotonic() < self._stuck_until
        stuck = stuck and self._look() == self._stuck_at
        if self._take_if_room(0.0 if stuck else GET_PATIENCE_S):
            self._stuck_at = None
            return True
        if not stuck:
            self._stuck_at, self._stuck_until = self._look(), self.ops.monotonic() + STUCK_FOR_S
            if self._lease is not None:
                self._break_stale_lease(self._lease.lock_file)
        return False

    def _take_if_room(self, patience_s: float) -> bool:
        """Do as `_take`; a full disk that has no room for the file that is to be locked counts as a lock not had."""
        try:
            return self._take(patience_s)
        except OSError as error:
            if not is_full(error):
                raise
            return False

    def _take_surely(self) -> bool:
        rounds = 0
        while not self._take(PUT_TIMEOUT_S, after_threads=True):
            rounds += 1
            self._replace(rounds)
        return True

    def _take(self, patience_s: float, after_threads: bool = False) -> bool:
        """Take the lock within patience_s seconds of its holder's last sign of life, or return False.

        Args:
            after_threads: wait for other threads of this process in any case: what they hold is not stuck.

        Raises:
            LockUnsupportedError: the mount has no such lock.
        """
        thread = threading.get_ident()
        if thread in self._inside:
            self.drop_leftovers()
        self._inside.add(thread)
        try:
            if not self._mutex.acquire(timeout=-1 if after_threads else patience_s):
                self._inside.discard(thread)
                return False
            if self._lease is None and self._try_lock(0.0) and self._is_linked():
                self._pause_s = max(_FIRST_PAUSE_S, self._pause_s / 4)
                return True
            if self._take_within(patience_s):
                return True
            self._leave(thread)
            return False
        except BaseException:
            self.drop_leftovers()
            raise

    def _give(self) -> None:
        thread = threading.get_ident()
        if thread not in self._inside:
            return  # it was not had; or a signal handler that ran in the midst of the block has let go of it
        try:
            if self._lease is not None:
                self._lease.release()
            elif self._mode == "flock":
                self.ops.unlock(self.fd)
            # NFS: without a lock on this very file, a kept descriptor would go on showing old content.
            if self._mode != "flock":
                self._drop()
        except BaseException:
            self.drop_leftovers()
            raise
        self._leave(thread)

    def _leave(self, thread: int) -> None:
        try:
            self._mutex.release()
        except RuntimeError:
            if thread in self._inside:
                raise
            return  # a signal handler that ran just now has closed this
        self._inside.discard(thread)

    def drop_leftovers(self) -> None:
        """Let go of what an interrupted call of this thread has left locked, if anything.

        An exception may come between any two lines: a signal handler's, for instance. Closing the descriptor drops its
        lock too, whatever state it was left in.
        """
        thread = threading.get_ident()
        try:
            if thread in self._inside and self._mutex.acquire(blocking=False):
                self._unlock_quietly()
        finally:
            with suppress(RuntimeError):  # as often as it was acquired; an RLock says when it is not held any more
                while True:
                    self._mutex.release()
            self._inside.discard(thread)

    def probe(self) -> None:
        """Find out whether the mount has the lock at all.

        Raises:
            LockUnsupportedError: it has not.
        """
        if self._take_if_room(0.0):
            self._give()

    def close(self) -> None:
        """Close the descriptor; never wait for this thread itself, which a signal handler may have interrupted."""
        self.drop_leftovers()
        mine = self._mutex.acquire(timeout=GET_PATIENCE_S)
        try:
            self._drop()
        finally:
            if mine:
                self._mutex.release()

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

    def _take_within(self, patience_s: float) -> bool:
        """Take the lock, or return False when its holder has not moved on for patience_s seconds."""
        monotonic = self.ops.monotonic
        started = monotonic()
        deadline, pause_s = started + patience_s, self._pause_s
        seen, looked = None, False
        while True:
            if self._try_lock(max(0.0, deadline - monotonic())):
                if self._is_linked():
                    self._pause_s = max(_FIRST_PAUSE_S, pause_s / 4)
                    return True
                # The file was deleted or replaced under this handle: its lock excludes nobody any more.
                self._unlock_dropped()
                continue
            now = monotonic()
            if patience_s and not looked and now >= deadline - patience_s / 2:
                seen, looked = self._look(), True
            if now >= deadline:
                if self._was_replaced():
                    self._drop()
                else:
                    before, seen = seen, self._look()
                    if not patience_s or seen == before:
                        return False
                deadline = monotonic() + patience_s
                continue
            self.ops.sleep(pause_s * (0.5 + self.ops.random()))
            brisk = not self._remote and now - started < _BRISK_S
            pause_s = min(2 * pause_s, _BRISK_PAUSE_S if brisk else _LONGEST_PAUSE_S)

    def _look(self) -> tuple[int, int, bytes] | None:
        """Return what a holder that moves on changes: which file it is, its size and header; None where unreadable.

        Not the mtime: everybody who reads the filesystem's clock touches it.
        """
        try:
            fd = self.ops.open(ORDER, ORDER_FLAGS, 0o666, dir_fd=self.root.fd)
            try:
                status = self.ops.fstat(fd)
                return status.st_ino, status.st_size, self.ops.pread(fd, HEADER_BYTES, 0)
            finally:
                self.ops.close(fd)
        except OSError:
            return None

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
            from filelock import LeaseSettingsMismatch

            try:
                self._lease.acquire(timeout=patience_s, poll_interval=_LONGEST_PAUSE_S)
            except TimeoutError:
                return False
            except LeaseSettingsMismatch as error:
                raise QueueConfigError(
                    self.root.path,
                    f"is locked by a program with another lease duration than the {LEASE_DURATION_S:g} s of FORMAT.md "
                    f"({error}): let it use SoftFileLease(order.lease, lease_duration={LEASE_DURATION_S:g})",
                ) from error
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

    def _unlock_quietly(self) -> None:
        """Unlock first: an interrupt within `_drop` leaves a descriptor open that nobody knows any more."""
        if self._lease is not None:
            self._lease.release(force=True)
        with suppress(OSError):
            if self._mode == "flock" and self.fd >= 0:
                self.ops.unlock(self.fd)
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

    def _break_stale_lease(self, path: str, rounds: int = 0) -> None:
        """Remove a lease file that nobody refreshes, such as the empty one of a process killed while making it.

        Args:
            rounds: how often a put has waited `PUT_TIMEOUT_S` seconds for it.

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
