"""Hold order.lock open, and show under its lock what the last holder left in it.

On a local disk and on NFS a granted flock makes what the locked descriptor shows current. On other shared mounts its
content, its size, or both may be old. There the order is read and written through a second descriptor, opened once
the lock is granted, synced where it was written, and closed before the lock is given back, after what this client has
cached was dropped: its pages by an advice, its idea of the size by a stamp, whose answer brings the size along.
"""

from __future__ import annotations

import errno
import os
import warnings
from contextlib import suppress

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.filesystems import Filesystem
from fsqueue.engine.layout import ORDER
from fsqueue.engine.order_access import FULL, PASSING, UNREADABLE, open_order, put_fresh, reopen_order

STUCK_FOR_S = 10.0
_PASSES_S = 3.0  # for which another mount's change of the file may make this one's answers contradict each other
_FAILED_S = 1.0
_AHEAD_BYTES = 1 << 15
_LINKED_S = 1.0


class StaleLockWarning(RuntimeWarning):
    """Warn that order.lock was replaced: its lock was held for too long, or nobody could use it."""


class OrderContent:
    """Hold the descriptor of order.lock that is locked, and the one that the order is read and written through.

    Attributes:
        fd: to read and write; -1 where nothing can be read or written.
        locked_fd: the one to lock; -1: it is not open. Mostly the same one.
        size: the file's length in bytes; as of when the lock was taken.
        head: what it begins with, where that was read when the lock was taken and nothing was written since.
        is_written: something was written since the lock was taken.
        remote: whether the mount is not known to be local.
        locked: flock is what locks it, so it stays open from one hold to the next.
    """

    def __init__(self, ops: FileOps, root: Directory, filesystem: Filesystem, locked: bool) -> None:
        self.fd = -1
        self.locked_fd = -1
        self.size = 0
        self.head = b""
        self.is_written = False
        self.locked = locked
        self.doubted = not filesystem.lock_freshens
        self.remote = not filesystem.local
        self._ops = ops
        self._root = root
        self._inode = 0
        self._linked_until = 0.0
        self._second = locked and self.doubted
        self._failing_since: float | None = None
        self._unusable_until: float | None = None
        self._failed_at = self._renewed_at = -1e9

    def open(self) -> bool:
        """Open the file, unless it is; False where it cannot be had just now.

        Raises:
            OSError: the queue's directory is gone, or there is another reason that has nothing to do with the file.
        """
        if self.locked_fd >= 0:
            return True
        if self.is_unusable():
            return False
        try:
            self.fd = self.locked_fd = open_order(self._ops, self._root)
            self._inode = self._ops.fstat(self.fd).st_ino
        except OSError as error:
            self.fail(error)
            return False
        self._failing_since = None
        return True

    def is_unusable(self) -> bool:
        """Return whether there is nothing to be had for a while, so that one goes on without."""
        return self._unusable_until is not None and self._ops.monotonic() < self._unusable_until

    def is_current(self, to_take: bool = False) -> bool:
        """Return whether the locked file is still the one that goes by the name; make its content current.

        NFS: the name may be a remembered one and its size with it; the descriptor's are fresh under the lock.
        """
        try:
            if not self.remote:
                status = self._ops.stat(ORDER, dir_fd=self._root.fd, follow_symlinks=False)
                self.size = status.st_size
                return status.st_ino == self._inode
            if self.doubted:
                return self._freshen()
            self.head = b""
            if to_take and self._ops.uncached and self._reads_whole():
                return True
            status = self._ops.fstat(self.fd)
        except OSError as error:
            self.fail(error)
            return False
        self.size = status.st_size
        linked = status.st_nlink > 0 and status.st_ino == self._inode
        self._linked_until = self._ops.monotonic() + _LINKED_S if linked and self._ops.uncached else 0.0
        return linked

    def _reads_whole(self) -> bool:
        """Read the file from its start; return whether that tells its length, and it was seen linked lately.

        NFS: one round trip instead of two. For a second after an ``rm order.lock`` a handle may take places in the old
        file: refs that a new one names too, or that are found by a listing.
        """
        self.head = self._ops.pread_uncached(self.fd, _AHEAD_BYTES, 0)
        self.size = len(self.head)
        return self.size < _AHEAD_BYTES and self._ops.monotonic() < self._linked_until

    def _freshen(self) -> bool:
        ops = self._ops
        if self._second:
            self.close_second()
            self.fd = reopen_order(ops, self._root)
        ops.forget(self.fd)
        with suppress(PermissionError):
            ops.utime(ORDER, dir_fd=self._root.fd, follow_symlinks=False)
        status = ops.fstat(self.fd)
        self.size = status.st_size
        if status.st_ino != self._inode:
            return False
        if self._second and self._is_kept_out():
            self.close_second()
            self.fd = self.locked_fd
            ops.forget(self.fd)
        return True

    def _is_kept_out(self) -> bool:
        """Return whether the lock on one descriptor keeps the other from reading, as SMB's do."""
        try:
            self._ops.pread(self.fd, 1, 0)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return True
        return False

    def close_second(self) -> None:
        """Hand what was written to the server, where that takes syncing and closing, before the lock is given back.

        GlusterFS writes in the background: without the fsync, the next holder read what was there before in some of
        a hundred holds, however it opened the file.
        """
        if self.fd != self.locked_fd:
            fd, self.fd = self.fd, -1
            if self.is_written and fd >= 0:
                with suppress(OSError):
                    self._ops.fsync(fd)
            self._close(fd)
        self.is_written = False

    def drop(self) -> None:
        """Close the file."""
        fd, locked_fd, self.fd, self.locked_fd = self.fd, self.locked_fd, -1, -1
        self.size, self.head, self._linked_until = 0, b"", 0.0
        self._close(locked_fd)
        if fd != locked_fd:
            self._close(fd)

    def _close(self, fd: int) -> None:
        """Close a descriptor; whatever the mount says of that, it is closed, and at most the hint has suffered."""
        if fd >= 0:
            with suppress(OSError):
                self._ops.close(fd)

    def was_replaced(self) -> bool:
        """Return whether another file goes by the name now."""
        if self.locked_fd < 0:
            return False
        try:
            self._root.refresh()
            now = self._ops.stat(ORDER, dir_fd=self._root.fd, follow_symlinks=False)
            return now.st_ino != self._ops.fstat(self.locked_fd).st_ino
        except OSError:
            return True

    def fail(self, error: OSError) -> None:
        """Close a file that has answered with an error; put a fresh one in its place where it does so again.

        Until the lock is taken again there is nothing to read or write: this goes on without.

        Raises:
            OSError: the error, where it tells that the directory is gone, or says nothing about the file.
        """
        self.drop()
        if error.errno in PASSING:
            now = self._ops.monotonic()
            self._failing_since = self._failing_since or now
            if self._root_is_gone():
                raise error
            if now - self._failing_since >= _PASSES_S:
                self._renew(error)
        elif error.errno in FULL:
            self._unusable_until = self._ops.monotonic() + _FAILED_S
        elif error.errno in UNREADABLE:
            before, self._failed_at = self._failed_at, self._ops.monotonic()
            if self._failed_at - before < STUCK_FOR_S:  # not for an error that passes
                self._renew(error)
        else:
            raise error

    def give_up(self) -> None:
        """Do without the file for a while."""
        self.drop()
        self._unusable_until = self._ops.monotonic() + STUCK_FOR_S

    def _root_is_gone(self) -> bool:
        try:
            return self._ops.fstat(self._root.fd).st_nlink == 0
        except OSError:
            return True

    def _renew(self, error: OSError) -> None:
        """Put a fresh file in the place of one that cannot be used; do without where that fails, or was just done.

        Two users of whom neither may open what the other makes would go on replacing each other's.
        """
        now = self._ops.monotonic()
        if now - self._renewed_at < STUCK_FOR_S:
            self._unusable_until = self._renewed_at + STUCK_FOR_S
            return
        try:
            put_fresh(self._ops, self._root)
        except OSError as refusal:
            if refusal.errno in PASSING:
                raise  # that of a name of one's own: the directory is gone
            self._unusable_until = now + _FAILED_S
            return
        self._renewed_at, self._failing_since = now, None
        path = os.path.join(self._root.path, ORDER)
        code = errno.errorcode.get(error.errno or 0, "an error")
        warnings.warn(f"{path} could not be used ({code}); replaced it and went on", StaleLockWarning, stacklevel=2)
