"""One directory of a queue, as a handle keeps it open."""

from __future__ import annotations

from collections.abc import Callable

from fsqueue.disk.fileops import DIRECTORY, FileOps


class Directory:
    """One directory of a queue, with a descriptor that is kept open."""

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
        """The names in here, read afresh."""
        fd = self.ops.open(self.path, DIRECTORY)
        try:
            return self.ops.listdir(fd)
        finally:
            self.ops.close(fd)

    def any_name(self, accept: Callable[[str], bool]) -> bool:
        """Whether some name in here is accepted; reads no further than to the first."""
        fd = self.ops.open(self.path, DIRECTORY)
        try:
            return self.ops.scan_until(fd, accept)
        finally:
            self.ops.close(fd)

    def changed_at_ns(self) -> int:
        """The directory's own mtime, read afresh."""
        fd = self.ops.open(self.path, DIRECTORY)
        try:
            return self.ops.fstat(fd).st_mtime_ns
        finally:
            self.ops.close(fd)

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
