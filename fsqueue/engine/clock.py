"""Tell the time that leases are measured by.

`FilesystemClock` is the server's: files are stamped by `utime` without a time, and *now* is read by touching
the order file and reading its mtime back, so that no host's wall clock is involved. `InjectedClock` replaces
all of it in tests: files are stamped with its time, explicitly.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, silently_remove
from fsqueue.disk.publish import own_name
from fsqueue.engine.layout import ORDER, ORDER_FLAGS
from fsqueue.engine.settings import SETTINGS
from fsqueue.errors import ReadOnlyError

_TRIES = 3
_UNUSABLE = (
    errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.EBADF,
    errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip


class Clock(Protocol):
    """Stamps files and tells the time by one and the same clock, in seconds.

    Attributes:
        injected: true for a caller's clock, which the filesystem knows nothing of.
    """

    injected: bool

    def now(self) -> float: ...

    def stamp(self, directory: Directory, name: str) -> bool:
        """Set a file's mtime to now; False where there is no such file."""


class FilesystemClock:
    """Tell the time of the filesystem that holds the queue."""

    injected = False

    def __init__(self, ops: FileOps, root: Directory) -> None:
        self._ops = ops
        self._root = root

    def now(self) -> float:
        """Return the time, at the cost of one modification and one fresh read of an mtime.

        Where the order file cannot be touched and read, nor be made, the settings serve as well, which are always
        there; where they are somebody else's, a file that is made for the purpose.
        """
        for way in (self._by_the_order, self._by_the_settings):
            try:
                found = way()
            except OSError as error:
                if error.errno not in _UNUSABLE:
                    raise
            else:
                if found is not None:
                    return found
        return self._by_a_new_file()

    def _by_the_order(self) -> float | None:
        """Return the time; None where somebody deletes the order file as often as it is made."""
        for _ in range(_TRIES):
            if not self.stamp(self._root, ORDER):
                # Somebody deleted the order file; a new one is stamped by its creation.
                self._ops.close_read(self._ops.open(ORDER, ORDER_FLAGS, 0o666, dir_fd=self._root.fd))
            mtime = self._ops.fresh_mtime(self._root.fd, ORDER)
            if mtime is not None:
                return mtime
        return None

    def _by_the_settings(self) -> float | None:
        self.stamp(self._root, SETTINGS)
        return self._ops.fresh_mtime(self._root.fd, SETTINGS)

    def _by_a_new_file(self) -> float:
        name = own_name(self._ops, f".{ORDER}")
        try:
            fd = self._ops.create(self._root.fd, name, b"")
            try:
                return self._ops.fstat(fd).st_mtime
            finally:
                self._ops.close_read(fd)
        finally:
            silently_remove(self._ops, self._root.fd, [name])

    def stamp(self, directory: Directory, name: str) -> bool:
        try:
            self._ops.utime(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


class OnlookersClock:
    """Tell about the time to somebody who may not write: this host's, or the newest stamp of what every get touches."""

    injected = False

    def __init__(self, ops: FileOps, root: Directory) -> None:
        self._ops = ops
        self._root = root

    def now(self) -> float:
        newest = self._ops.status(self._root.fd, ORDER)
        return max(self._ops.time(), newest.st_mtime if newest else 0.0)

    def stamp(self, directory: Directory, name: str) -> bool:
        raise ReadOnlyError(directory.path, "a stamp")


class InjectedClock:
    """Tell the time of a caller's ``clock()``, in seconds."""

    injected = True

    def __init__(self, ops: FileOps, clock: Callable[[], float]) -> None:
        self._ops = ops
        self.now = clock

    def stamp(self, directory: Directory, name: str) -> bool:
        now_ns = int(self.now() * 1e9)
        try:
            self._ops.utime(name, ns=(now_ns, now_ns), dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True
