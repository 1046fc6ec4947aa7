"""A small disk for the soak, mounted by the script itself, that fills up and empties again."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from soaking.interrupts import deferred

_CHUNKS = (1 << 20, 1 << 12)


class DiskError(RuntimeError):
    """The small disk cannot be had; the text says why."""


class SmallDisk:
    """A tmpfs of so many MiB, unmounted when the block is left.

    Raises:
        DiskError: this user, or this system, cannot mount one.
    """

    def __init__(self, mount_point: Path, size_mib: int) -> None:
        self._point = mount_point
        self._ballast = mount_point / "ballast"
        mount_point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "fsqueue-soak", str(mount_point)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            mount_point.rmdir()
            raise DiskError("there is no mount command here") from None
        if done.returncode:
            mount_point.rmdir()
            raise DiskError(f"mounting a tmpfs needs root: {done.stderr.strip()}")

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred():
            self.empty()
            subprocess.run(["umount", "-l", str(self._point)], check=True)
            self._point.rmdir()

    def fill(self) -> None:
        """Write ballast until not one page is left."""
        with open(self._ballast, "ab", buffering=0) as file:
            for size in _CHUNKS:
                chunk = b"\0" * size
                try:
                    while file.write(chunk) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._ballast)
