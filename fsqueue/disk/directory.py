"""Keep one directory of a queue open."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn, TypeVar

from fsqueue.disk.fileops import DIRECTORY, FileOps
from fsqueue.disk.filesystems import Filesystem, filesystem

T = TypeVar("T")

UNREACHABLE = (errno.ESTALE, errno.EIO, errno.ENOTCONN)
"""Errors of a descriptor that leads nowhere any more, as after an NFS export, or a mount by FUSE, was made anew."""


class Directory:
    """Hold a descriptor on one directory of a queue.

    A path may lead elsewhere tomorrow: a symbolic link is moved on, a queue is moved away and another one made. So the
    path is used once, for the root; whatever is opened later is reached from there, in the same queue.

    Args:
        within: the directory that it is in; opened by name from there. None: opened by its path.

    Attributes:
        name: its name in the directory that it was opened from; ``.`` for one opened by its path.
    """

    def __init__(self, ops: FileOps, path: str, within: Directory | None = None) -> None:
        self.ops = ops
        self.path = path
        self.fd = -1
        self._filesystem: Filesystem | None = None
        self._within = within
        self.name = os.path.basename(path) if within else "."
        self.fd = ops.open(path, DIRECTORY) if within is None else self.open_in(within.fd)

    @property
    def filesystem(self) -> Filesystem:
        """Return what is known of the filesystem that it lies on."""
        if self._within is not None:
            return self._within.filesystem
        if self._filesystem is None:
            self._filesystem = filesystem(self.ops.filesystem_type(self.path))
        return self._filesystem

    def open_in(self, dir_fd: int) -> int:
        """Return a new descriptor on it, or on what has its name, from one on the directory that it is in."""
        return self.ops.open(self.name, DIRECTORY, dir_fd=dir_fd)

    def _open_afresh(self) -> int:
        return self.ops.open(self.name, DIRECTORY, dir_fd=self._within.fd if self._within else self.fd)

    def refresh(self) -> None:
        """Make this client ask the server again about every name in here.

        NFS: it remembers for up to 30 s that a name was missing or present; opening the directory ends that,
        a stat of it does not.
        """
        self.ops.close_read(self._open_afresh())

    def listing(self) -> list[str]:
        """Return the names in here, read afresh."""
        fd, ops = self._open_afresh(), self.ops
        try:
            return ops.listdir(fd)
        finally:
            ops.close_read(fd)

    def any_name(self, accept: Callable[[str], bool]) -> bool:
        """Return whether some name in here is accepted; read no further than to the first."""
        return self.afresh(lambda fd: self.ops.scan_until(fd, accept))

    def some_names(self, count: int, accept: Callable[[str], bool] = bool) -> list[str]:
        """Return the first count names in here that are accepted; whatever there is, read no further."""
        found: list[str] = []

        def take(name: str) -> bool:
            if accept(name):
                found.append(name)
            return len(found) >= count

        self.afresh(lambda fd: self.ops.scan_until(fd, take))
        return found

    def changed_at_ns(self) -> int:
        """Return the directory's own mtime, read afresh."""
        return self.afresh(lambda fd: self.ops.fstat(fd).st_mtime_ns)

    def afresh(self, read: Callable[[int], T]) -> T:
        """Return what is read through a new descriptor."""
        fd = self._open_afresh()
        try:
            return read(fd)
        finally:
            self.ops.close_read(fd)

    def mount(self) -> int:
        """Return a number that all directories on one mount share: the device's."""
        return self.ops.fstat(self.fd).st_dev

    def sync(self) -> None:
        """Make the names in here durable."""
        self.ops.fsync(self.fd)

    def exchange(self, fd: int) -> int:
        """Go on with another descriptor; return the former one, for the caller to close."""
        former, self.fd = self.fd, fd
        return former

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.ops.close_read(fd)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied: a copy would close this one's descriptor with its own end."""
        raise TypeError(f"{self.path} is open here and cannot be copied or pickled: open it anew where it is used")

    def __del__(self) -> None:
        try:  # noqa: SIM105  # no name of this module is left when the interpreter exits
            self.close()
        except (OSError, AttributeError):  # a handle that was dropped without close()
            pass


def located(error: BaseException, source: Directory, target: Directory | None = None) -> None:
    """Have an error name its files with the directories that they are in, relative to the one above.

    Args:
        target: where a rename leads to.
    """
    if isinstance(error, OSError):
        error.filename = _within(source, error.filename)
        if error.filename2 is not None:
            error.filename2 = _within(target or source, error.filename2)


def _within(directory: Directory, name: object) -> object:
    return f"{directory.name}/{name}" if isinstance(name, str) and "/" not in name and directory.name != "." else name


class locating:
    """Do so with what a block raises."""

    __slots__ = ("_source", "_target")

    def __init__(self, source: Directory, target: Directory | None = None) -> None:
        self._source, self._target = source, target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            located(error, self._source, self._target)
