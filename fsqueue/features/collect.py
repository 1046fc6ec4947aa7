"""Count what a feature store holds, and collect what nobody needs.

Tensors that lie apart count as their sample's: live while its file is there, released with it, and unfinished where
no file of a sample names them, as after a death in the midst of an adoption, and once other features were published.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from fsqueue.engine.owners import new_owner
from fsqueue.features import address, apart
from fsqueue.features.contract import Collected, StoreHealth
from fsqueue.features.root import TMP, StoreRoot

_Kind = Literal["live", "released", "unfinished"]


class _StoredFile(NamedTuple):
    """A file of the store, as a listing shows it.

    Attributes:
        apart: of a file with tensors alone: the stem of its sample.
    """

    kind: _Kind
    folder: str
    name: str
    size_bytes: int
    mtime: float
    apart: str | None = None


def health(root: StoreRoot) -> StoreHealth:
    """Count files and bytes."""
    counts: Counter[_Kind] = Counter()
    sizes: Counter[_Kind] = Counter()
    for entry in _entries(root):
        counts[entry.kind] += entry.apart is None or entry.kind == "unfinished"
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
        if entry.apart is not None:
            if now - entry.mtime >= unfinished_older_than_s and _remove_unnamed(root, entry):
                files += 1
                freed_bytes += entry.size_bytes
        elif entry.kind != "live" and now - entry.mtime >= limits[entry.kind]:
            removed, removed_bytes = _remove(root, entry)
            files += removed
            freed_bytes += removed_bytes
    return Collected(files, freed_bytes)


def _remove(root: StoreRoot, entry: _StoredFile) -> tuple[int, int]:
    """Unlink a file, and the tensors that lie apart from it; returns how many files and bytes that were."""
    with root.folder(entry.folder) as fd:
        named = apart.named_in(root.ops, fd, entry.name) if entry.kind == "released" else None
        removed = root.ops.remove(fd, entry.name)
        status = root.ops.status(fd, named) if named and removed else None
        if named is None or status is None:
            return int(removed), removed * entry.size_bytes
    stem = address.parse_apart(named)
    tensors = _StoredFile("released", entry.folder, named, status.st_size, status.st_mtime, stem and stem[0])
    gone = _remove_unnamed(root, tensors)
    return 1 + gone, entry.size_bytes + gone * tensors.size_bytes


def _remove_unnamed(root: StoreRoot, entry: _StoredFile) -> bool:
    """Unlink tensors that lie apart, unless a sample's file names them.

    RACE: whoever adopts the same content again may publish a file that names them, in between. So they are moved aside
    first, looked for once more, and moved back where they are named by then; who wants to read them meanwhile finds
    them missing, which is worth another try.
    """
    own = new_owner(None, root.directory.path)
    with root.folder(entry.folder) as fd, root.folder(TMP, create=True) as tmp_fd:
        if _is_named(root, fd, entry):
            return False
        with suppress(FileNotFoundError):
            root.ops.rename(entry.name, own, src_dir_fd=fd, dst_dir_fd=tmp_fd)
            if not _is_named(root, fd, entry):
                return root.ops.remove(tmp_fd, own)
            if not root.ops.exists(fd, entry.name):
                root.ops.rename(own, entry.name, src_dir_fd=tmp_fd, dst_dir_fd=fd)
    return False


def _is_named(root: StoreRoot, folder_fd: int, entry: _StoredFile) -> bool:
    files = (f"{entry.apart}{suffix}" for suffix in (address.SUFFIX, address.RELEASED, address.SUFFIX))
    return any(apart.named_in(root.ops, folder_fd, file) == entry.name for file in files)


def _entries(root: StoreRoot) -> Iterator[_StoredFile]:
    """List every regular file of the store; what lies there besides is nobody's business."""
    for folder in sorted(root.directory.listing()):
        if folder != TMP and not address.is_folder(folder):
            continue
        with suppress(FileNotFoundError, NotADirectoryError), root.folder(folder) as fd:
            listed = set(root.ops.listdir(fd))
            for name in listed:
                kind, apart_from = _kind(folder, name, listed)
                with suppress(FileNotFoundError):
                    status = root.ops.stat(name, dir_fd=fd, follow_symlinks=False)
                    if kind and stat.S_ISREG(status.st_mode):
                        yield _StoredFile(kind, folder, name, status.st_size, status.st_mtime, apart_from)


def _kind(folder: str, name: str, listed: Collection[str]) -> tuple[_Kind | None, str | None]:
    """Return what a file is, by its name and its neighbours' names, and the stem of whose tensors it holds apart."""
    if folder == TMP:
        return "unfinished", None
    if (tensors := address.parse_apart(name)) is not None:
        stem = tensors[0]
        live, released = stem + address.SUFFIX in listed, stem + address.RELEASED in listed
        return "live" if live else "released" if released else "unfinished", stem
    parsed = address.parse_file(name)
    if parsed is None:
        return None, None
    return "released" if parsed[1] else "live", None
