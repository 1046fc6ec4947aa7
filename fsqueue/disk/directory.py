"""Keep one directory of a queue open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fsqueue.disk.fileops import DIRECTORY, FileOps

T = TypeVar("T")


class Directory:
    """Hold a descriptor on one directory of a queue."""

    def __init__(self, ops: FileOps, path: str) -> None:
        self.ops = ops
        self.path = path
        self.fd = ops.open(path, DIRECTORY)

    def refresh(self) -> None:
        """Make this client ask the server again about every name in here.

        NFS: it remembers for up to 30 s that a name was missing or present; opening the directory ends that,
        a stat of it does not.
        """
        self.ops.close(self.ops.open(self.path, DIRECTORY))

    def listing(self) -> list[str]:
        """Return the names in here, read afresh."""
        return self._afresh(self.ops.listdir)

    def any_name(self, accept: Callable[[str], bool]) -> bool:
        """Return whether some name in here is accepted; read no further than to the first."""
        return self._afresh(lambda fd: self.ops.scan_until(fd, accept))

    def changed_at_ns(self) -> int:
        """Return the directory's own mtime, read afresh."""
        return self._afresh(lambda fd: self.ops.fstat(fd).st_mtime_ns)

    def _afresh(self, read: Callable[[int], T]) -> T:
        fd = self.ops.open(self.path, DIRECTORY)
        try:
            return read(fd)
        finally:
            self.ops.close(fd)

    def mount(self) -> int:
        """Return a number that all directories on one mount share: the device's."""
        return self.ops.fstat(self.fd).st_dev

    def sync(self) -> None:
        """Make the names in here durable."""
        self.ops.fsync(self.fd)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.ops.close(fd)

    def __del__(self) -> None:
        try:  # noqa: SIM105  # no name of this module is left when the interpreter exits
            self.close()
        except (OSError, AttributeError):  # a handle that was dropped without close()
            pass
