"""Publish files whole: write under a name of one's own, make it durable, then give it the name readers know.

A directory of ours (a queue, a feature store, a ledger) is one from the instant that its settings file exists. That
file comes last and complete, so whoever reads it finds everything else in place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial

from fsqueue.disk.directory import Directory, located, locating
from fsqueue.disk.fileops import FileOps, silently_remove
from fsqueue.errors import InvalidArgumentError, QueueIOError

WriteAt = Callable[[bytes | memoryview, int], None]

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_SYNCED_TOGETHER = 256
_REPLACED = (errno.ENOENT, errno.ESTALE, errno.EBADF)
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.2


_MAKING = "making directory"
_NOWHERE = (
    ": the current directory was removed, or moved out of reach; go to one that is there, or give an absolute path"
)
_ELSEWHERE = "choose another place, or mount what belongs there"
VOLUME_NAMES = ("lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir")
"""What filesystems and servers keep in the root of a volume."""


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path from the root of the filesystem, with ``~`` as the home directory, which no shell has expanded.

    Raises:
        InvalidArgumentError: it is no path; an empty one would be the current directory, which nobody has named.
        QueueIOError: it is relative, and the current directory is gone.
    """
    found = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(found, str) or not found or "\0" in found:
        raise InvalidArgumentError("path", "a path, as a string that is not empty or an os.PathLike", path)
    expanded = os.path.expanduser(found)
    try:
        return os.path.abspath(expanded)
    except FileNotFoundError as error:
        raise QueueIOError("finding", expanded, error, _NOWHERE) from error


def make_within(ops: FileOps, directory: Directory, name: str) -> None:
    """Make a directory in an open one, where it is missing."""
    with suppress(FileExistsError):
        ops.mkdir(name, 0o777, dir_fd=directory.fd)


def make_directory(ops: FileOps, path: str) -> None:
    """Make a directory and those above it, where they are missing.

    Raises:
        QueueIOError: a part of the path is a file, or the directory above lets nobody make one: /proc, or the root of
            an automounter's map.
    """
    try:
        _make_one(ops, path)
    except NotADirectoryError as error:
        raise QueueIOError(_MAKING, path, error, f": {file_above(ops, path)} is a file, and no directory") from error
    except FileNotFoundError:
        parent = os.path.dirname(os.path.abspath(path))
        if parent != path:
            make_directory(ops, parent)
        try:
            _make_one(ops, path)
        except FileNotFoundError as error:
            raise QueueIOError(_MAKING, path, error, f": {parent} is there, and makes none; {_ELSEWHERE}") from error


def _make_one(ops: FileOps, path: str) -> None:
    with suppress(FileExistsError):
        ops.mkdir(path, 0o777)


def file_above(ops: FileOps, path: str) -> str:
    """Return the first part of a path that is there and no directory; all of it where each part is one."""
    parts = [path]
    while (parent := os.path.dirname(parts[-1])) not in (parts[-1], ""):
        parts.append(parent)
    for part in reversed(parts):
        try:
            if not stat.S_ISDIR(ops.stat(part).st_mode):
                return part
        except OSError:
            break
    return path


def strangers_in(root: Directory, ours: Collection[str]) -> list[str]:
    """List the names in a directory that do not belong to the kind of directory it is to become.

    Dot files are nobody's business: mounts (``.snapshot``, ``.nfs…``), desktops and synchronizers leave them.
    """
    return sorted(name for name in set(root.listing()) - set(ours) if not name.startswith("."))


def refusal_of(strangers: Sequence[str], settings: str) -> str:
    """Say why a directory with strangers in it is not made one of ours, and what to do."""
    for name in strangers:
        if name in VOLUME_NAMES:
            return f"is the root of a volume, for {name!r} lies in it: use a subdirectory of it"
    return f"is not empty and holds no {settings}, but for instance {strangers[0]!r}: choose a new directory"


def write_file(
    ops: FileOps, dir_fd: int, name: str, data: bytes, durable: bool, fill: Callable[[WriteAt], int] | None = None
) -> None:
    """Create a file with this content; on an error, nothing is left of it.

    Args:
        fill: writes the rest by calls of ``write_at(data, offset)``, and returns how many bytes the file has then.
    """
    try:
        fd = ops.create(dir_fd, name, data)
        try:
            size = len(data) if fill is None else fill(partial(ops.pwrite_all, fd))
            if durable:
                ops.fsync(fd)
        except BaseException:
            ops.close_read(fd)
            raise
        close_new(ops, dir_fd, name, fd, size)
    except BaseException:
        silently_remove(ops, dir_fd, [name])
        raise


def close_new(ops: FileOps, dir_fd: int, name: str, fd: int, size: int) -> None:
    """Close a file that was just made: where close says ESTALE, look whether all of it is there.

    Where it is gone, another mount has removed it, and the rename that is to publish it will tell.

    Raises:
        OSError: what was written may not have come to the disk.
    """
    try:
        ops.close(fd)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        status = ops.status(dir_fd, name)
        if status is not None and status.st_size != size:
            raise


def write_together(ops: FileOps, directory: Directory, named: Iterable[tuple[str, bytes]], syncs: int | None) -> None:
    """Create files by name and content; on an error, the caller removes what there is of them.

    Args:
        syncs: how many are synced at a time, so that they share the commits of a local disk's journal; None: they
            are not made durable.
    """
    fds: list[int] = []
    create, dir_fd = ops.create, directory.fd
    try:
        for name, data in named:
            fd = create(dir_fd, name, data)
            if syncs is None:
                close_new(ops, dir_fd, name, fd, len(data))
            else:
                fds.append(fd)
                if len(fds) == _SYNCED_TOGETHER:
                    _sync_and_close(ops, fds, syncs)
        if fds:
            _sync_and_close(ops, fds, syncs or 1)
    except BaseException:
        for fd in fds:
            ops.close_read(fd)  # the error that led here is the one to report
        raise


def _sync_and_close(ops: FileOps, fds: list[int], syncs: int) -> None:
    ops.sync_all(fds, syncs)
    while fds:
        ops.close_written(fds.pop())


def replace_file(ops: FileOps, directory: Directory, name: str, data: bytes, durable: bool) -> None:
    """Put a file in the place of an older one of this name, if there is one: readers see either, whole."""
    tmp_name = own_name(ops, f".{name}")
    with locating(directory):
        write_file(ops, directory.fd, tmp_name, data, durable)
    try:
        ops.rename(tmp_name, name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    except OSError as error:
        directory.refresh()
        # NFS: where the name is gone, which is nobody else's, a retransmitted rename was done.
        if not isinstance(error, FileNotFoundError) or ops.exists(directory.fd, tmp_name):
            silently_remove(ops, directory.fd, [tmp_name])
            located(error, directory)
            raise
    if durable:
        directory.sync()


def read_replaced(directory: Directory, name: str, *, surely: bool = False) -> bytes:
    """Return the content of a small file that others put in the place of an older one, by `replace_file`.

    Where such a file is not there for an instant, as on SeaweedFS, it is asked for again: as long as a listing shows
    it, or what the mount says is that it was just replaced. On a local disk it costs nothing more.

    Args:
        surely: it was there, whatever a listing shows.

    Raises:
        FileNotFoundError: it is not there.
        CorruptRefError: it is no regular file.
    """
    ops, pause_s = directory.ops, _FIRST_PAUSE_S
    while True:
        try:
            return ops.read_file(directory.fd, name)
        except OSError as error:
            if pause_s > _LONGEST_PAUSE_S or not _may_be_replaced(directory, name, error, surely):
                raise
        ops.sleep(pause_s)
        pause_s *= 2


def _may_be_replaced(directory: Directory, name: str, error: OSError, surely: bool) -> bool:
    known = directory.filesystem
    if error.errno not in _REPLACED or known.local:
        return False
    return error.errno != errno.ENOENT or (not known.replaces_at_once and (surely or name in directory.listing()))


def sync_parent(ops: FileOps, path: str) -> None:
    """Make a directory's own name durable."""
    with closing(Directory(ops, os.path.dirname(os.path.abspath(path)))) as parent:
        parent.sync()


def own_name(ops: FileOps, stem: str) -> str:
    """Return a name that no other process uses."""
    return f"{stem}.{os.getpid()}.{int(ops.random() * 2**48):012x}"
