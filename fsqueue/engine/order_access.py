"""Open order.lock, look at it without its lock, and put a fresh one in its place, whatever a mount answers to that.

The file is a hint that anybody may delete or replace at any moment. So what a mount says of it falls into three
kinds: another mount is just making, replacing or removing it; it can be had by nobody, until it is replaced; anything
else is an error as everywhere.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.publish import own_name, replace_file
from fsqueue.engine.layout import HEADER_BYTES, ORDER, ORDER_FLAGS
from fsqueue.errors import CorruptRefError

PASSING = (errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.EBADF)
UNREADABLE = (
    errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ESPIPE,
    errno.EINVAL,
)  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT)
_THERE = ORDER_FLAGS & ~os.O_CREAT


class Shown(NamedTuple):
    """Hold what everybody who holds the lock and moves on changes: not the mtime, which a look at the clock touches."""

    inode: int
    size: int
    header: bytes


def open_order(ops: FileOps, root: Directory) -> int:
    """Return a descriptor on order.lock, which is made where it is missing."""
    try:
        return ops.open_uncached(ORDER, ORDER_FLAGS, root.fd)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOENT):
            raise
    # RACE: another mount has made or removed it, and this one's cache contradicts itself for a second or so.
    root.refresh()
    return reopen_order(ops, root)


def reopen_order(ops: FileOps, root: Directory) -> int:
    """Return one more descriptor on order.lock, which must be there."""
    return ops.open_uncached(ORDER, _THERE, root.fd)


def look(ops: FileOps, root: Directory) -> Shown | None:
    """Return what order.lock shows, through a descriptor opened for that; None where it cannot be read just now."""
    try:
        fd = reopen_order(ops, root)
        try:
            status = ops.fstat(fd)
            return Shown(status.st_ino, status.st_size, ops.pread(fd, HEADER_BYTES, 0))
        finally:
            ops.close_read(fd)
    except OSError:
        return None


def peek(ops: FileOps, root: Directory, remote: bool) -> tuple[int, int] | None:
    """Return which file it is (by inode) and its size; None where that cannot be told just now.

    NFS: a stat is answered from the cache, seconds old; open + fstat asks the server.
    """
    try:
        if not remote:
            status = ops.stat(ORDER, dir_fd=root.fd, follow_symlinks=False)
            return status.st_ino, status.st_size
        fd = reopen_order(ops, root)
        try:
            status = ops.fstat(fd)
            return status.st_ino, status.st_size
        finally:
            ops.close_read(fd)
    except OSError:
        return None


def put_fresh(ops: FileOps, root: Directory) -> None:
    """Put a copy of order.lock in its place: an empty file where it cannot be read; move a directory aside."""
    try:
        content = ops.read_file(root.fd, ORDER)
    except (OSError, CorruptRefError):
        content = b""  # the order is rebuilt from a listing
    try:
        replace_file(ops, root, ORDER, content, durable=False)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise
        aside = own_name(ops, f".{ORDER}") + ".aside"
        ops.rename(ORDER, aside, src_dir_fd=root.fd, dst_dir_fd=root.fd)
        replace_file(ops, root, ORDER, content, durable=False)
