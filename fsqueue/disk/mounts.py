"""Tell which filesystem a path lies on, by the kernel's /proc/self/mountinfo.

Source: proc_pid_mountinfo(5). Elsewhere than on Linux nothing is known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fsqueue.disk.filesystems import Filesystem, filesystem

_HOST_SOURCE = re.compile(r"//[^/]+/|(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.,@-]+):").match
_FUSE_SOURCES = {
    "mfs#": "fuse.mfs", "mountpoint-s3": "fuse.mountpoint-s3", "http://": "fuse.davfs", "https://": "fuse.davfs",
}  # fmt: skip
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """Describe one mount, by its line of mountinfo.

    Attributes:
        mount_id: the kernel's number of it in this mount namespace.
        point: the directory that it is mounted on.
        source: the device or the server's export.
        options: those of the mount, then those of the filesystem; "ro" or "rw" once, as it is in effect.
    """

    mount_id: int
    point: str
    type: str
    source: str
    options: tuple[str, ...]

    def option(self, name: str) -> str | None:
        """Return the value of an option; "" for one that has none, None where it is not set."""
        parts = (option.partition("=") for option in self.options)
        return next((value for key, _, value in parts if key == name), None)

    @property
    def kind(self) -> str:
        """Return the type, with the name of the program where the kernel says "fuse" and the source tells it."""
        if self.type != "fuse":
            return self.type
        return next((kind for begin, kind in _FUSE_SOURCES.items() if self.source.startswith(begin)), self.type)

    @property
    def filesystem(self) -> Filesystem:
        """Return what is known of filesystems of this kind."""
        return filesystem(self.kind)

    @property
    def is_remote(self) -> bool:
        """Tell whether others may see the same files: a type not known as local, or a source like ``host:/export``."""
        named_host = not self.source.startswith("/dev/") and _HOST_SOURCE(self.source) is not None
        return not self.filesystem.local or named_host


def mount_of(path: str | os.PathLike[str]) -> Mount | None:
    """Return the mount of a path, or of the nearest existing directory above it; None where it is unknown."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            mounts = parse_mountinfo(f.read())
    except OSError:
        return None
    existing = os.path.realpath(path)
    while not os.path.lexists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    number = _mount_id(existing)
    exact = next((mount for mount in mounts if mount.mount_id == number), None)
    return exact or containing(mounts, existing)


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts in the text of a mountinfo file, in its order; lines outside the format are skipped."""
    return [mount for mount in map(_parse_line, text.splitlines()) if mount is not None]


def containing(mounts: Iterable[Mount], path: str) -> Mount | None:
    """Return the mount with the longest point above an absolute path; of equals the last, which covers the others."""
    above = [mount for mount in mounts if f"{path}/".startswith(mount.point.rstrip("/") + "/")]
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _parse_line(line: str) -> Mount | None:
    head, separator, tail = line.partition(" - ")
    mount, filesystem = head.split(" "), tail.split(" ")
    if not separator or len(mount) < 6 or len(filesystem) < 3 or not mount[0].isdigit():
        return None
    options = _merged(mount[5].split(","), filesystem[2].split(","))
    return Mount(int(mount[0]), _unescaped(mount[4]), filesystem[0], _unescaped(filesystem[1]), options)


def _merged(of_mount: list[str], of_filesystem: list[str]) -> tuple[str, ...]:
    access = "ro" if "ro" in (*of_mount, *of_filesystem) else "rw"
    others = [option for option in (*of_mount, *of_filesystem) if option not in ("", "ro", "rw")]
    return (access, *(_unescaped(option) for option in dict.fromkeys(others)))


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mount_id(path: str) -> int | None:
    """Return the number of the mount that opening this path reaches, also under bind mounts and covered ones."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as f:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
        return int(fields["mnt_id"])
    except (OSError, KeyError, ValueError):
        return None
    finally:
        os.close(fd)
