"""Count what a feature store holds, and collect what nobody needs."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from fsqueue.features import address
from fsqueue.features.contract import Collected, StoreHealth
from fsqueue.features.root import TMP, StoreRoot

_Kind = Literal["live", "released", "unfinished"]


class _StoredFile(NamedTuple):
    """A file of the store, as a listing shows it."""

    kind: _Kind
    folder: str
    name: str
    size_bytes: int
    mtime: float


def health(root: StoreRoot) -> StoreHealth:
    """Count files and bytes."""
    counts: Counter[_Kind] = Counter()
    sizes: Counter[_Kind] = Counter()
    for entry in _entries(root):
        counts[entry.kind] += 1
        sizes[entry.kind] += entry.size_bytes
    room = os.fstatvfs(root.directory.fd)
    return StoreHealth(
        samples=counts["live"],
        resident_bytes=sizes["live"],
        released=counts["released"],
        released_bytes=sizes["released"],
        unfinished=counts["unfinished"],
        unfinished_bytes=sizes["unfinished"],
        free_bytes=room.f_bavail * room.f_frsize,
    )


def garbage(root: StoreRoot, released_older_than_s: float, unfinished_older_than_s: float) -> Collected:
    """Unlink released and unfinished files that are old enough.

    RACE: a writer that was stopped for longer than unfinished_older_than_s finds its file gone when it publishes, and
    says so. Released features that are published anew meanwhile have another name.
    """
    limits = {"released": released_older_than_s, "unfinished": unfinished_older_than_s}
    now = root.now()
    files = freed_bytes = 0
    for entry in _entries(root):
        if entry.kind != "live" and now - entry.mtime >= limits[entry.kind]:
            with root.folder(entry.folder) as fd:
                removed = root.ops.remove(fd, entry.name)
            files += removed
            freed_bytes += removed * entry.size_bytes
    return Collected(files, freed_bytes)


def _entries(root: StoreRoot) -> Iterator[_StoredFile]:
    """List every regular file of the store; what lies there besides is nobody's business."""
    for folder in sorted(root.directory.listing()):
        if folder != TMP and not address.is_folder(folder):
            continue
        with suppress(FileNotFoundError, NotADirectoryError), root.folder(folder) as fd:
            for name in root.ops.listdir(fd):
                kind = _kind(folder, name)
                with suppress(FileNotFoundError):
                    status = root.ops.stat(name, dir_fd=fd, follow_symlinks=False)
                    if kind and stat.S_ISREG(status.st_mode):
                        yield _StoredFile(kind, folder, name, status.st_size, status.st_mtime)


def _kind(folder: str, name: str) -> _Kind | None:
    if folder == TMP:
        return "unfinished"
    parsed = address.parse_file(name)
    if parsed is None:
        return None
    return "released" if parsed[1] else "live"
