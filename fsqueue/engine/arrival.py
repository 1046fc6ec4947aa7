"""Tell by looking what became of a move, whatever the filesystem answered.

On a filesystem that other clients change, an answer proves little. A rename that says 0 may have done nothing: this
client remembers the target name from before, takes both names for the same file's, and sends no request. Whoever loses
a race is told ENOENT on one filesystem, EIO, EXDEV, EPERM, ESTALE or EBADF on others. And an error may follow a rename
that was done. So nobody judges by the number of an error: where the source is gone, and the target is not this
move's, the race is lost; where the source is there, it was refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from fsqueue.disk.directory import Directory, located
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import Layout
from fsqueue.errors import CorruptRefError, QueueIOError
from fsqueue.format import names, packed
from fsqueue.format.codec import split

T = TypeVar("T")

_GRAIN_S = 0.05
_LOOKS = 3
_PROVES_NOTHING = (errno.ESTALE, errno.EBADF)
_TWO_MOUNTS = ": the queue's directories must lie on one filesystem"


def still_opens(ops: FileOps, dir_fd: int, name: str) -> bool:
    """Return whether a file can still be opened by a name; a stat would answer from what is remembered.

    Raises:
        OSError: anything but that there is no such file: it proves nothing, and a listing has to tell (`holds`).
    """
    try:
        fd = ops.open_to_read(dir_fd, name)
    except CorruptRefError:
        return True
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        if error.errno in (errno.EACCES, errno.EPERM):
            return True  # there, for others to read
        raise
    ops.close_read(fd)
    return True


def holds(directory: Directory, name: str) -> bool:
    """Return whether a directory has this name, asked afresh: a listing shows it, and an open finds it or cannot tell.

    That it cannot be opened, by an ESTALE for instance, says nothing of the name.
    """
    ops = directory.ops

    def look(fd: int) -> bool:
        try:
            if not still_opens(ops, fd, name):
                return False
        except OSError:
            pass
        return ops.scan_until(fd, lambda each: each == name)

    return patiently(lambda: directory.afresh(look))


def patiently(look: Callable[[], T]) -> T:
    """Return what a look says; a file handle that is stale, of a directory for instance, is one of a moment first."""
    for _ in range(_LOOKS - 1):
        try:
            return look()
        except OSError as error:
            if error.errno not in _PROVES_NOTHING:
                raise
    return look()


def is_gone(layout: Layout, directory: Directory, name: str, error: OSError) -> bool:
    """Return whether an open, utime or unlink failed since somebody had moved the file away."""
    if error.errno == errno.ENOENT:
        return True
    if not layout.remote:
        return False
    try:
        return not holds(directory, name)
    except OSError:
        return False  # nothing can be seen there: the first error is the one to report


class Stamped(NamedTuple):
    """Tell a file from others that have, or had, the same name: by who stamped it last.

    Not by its inode number: some mounts (sshfs) give a moved file another one, and knowing it before the move would
    cost a look at every file.

    Attributes:
        since: when this handle began to stamp it, by monotonic; nobody's stamp of an earlier life is as late.
        by: when it had: a later stamp is somebody else's, who took the ref over meanwhile; None: not known.
        until: when a lease that begins with that stamp ends by time, and others may stamp it; None: never.
        holder: as whose lease it was to be moved, where this handle has written no end of that lease into it.
    """

    since: float
    by: float | None
    until: float | None
    holder: str | None = None


def has_arrived(layout: Layout, target: Directory, name: str, started: float, stamped: Stamped | None = None) -> bool:
    """Return whether a file has come to a name since started, by monotonic.

    Where a rename leaves the ctime as it was, or stamps are coarse, only the file's own stamp can tell.

    RACE: a file that another owner has taken over and moved to the same name within the grain of stamps looks the same
    (encfs cuts them to the second). Who took it over has written into it whose lease ended.

    Args:
        stamped: what tells the file that was to be moved; None where nothing does.
    """
    status = _status(layout, target, name)
    if status is None:
        return False
    kind = layout.filesystem
    grain_s = max(_GRAIN_S, kind.step_s)
    told_by_ctime = kind.local or kind.rename_stamps or stamped is None
    now = FilesystemClock(layout.ops, layout.root).now()
    offset = now - layout.ops.monotonic()
    if told_by_ctime and status.st_ctime < started + offset - (grain_s if kind.rename_stamps else _GRAIN_S):
        return False
    if stamped is None:
        return True
    if status.st_mtime < stamped.since + offset - grain_s:
        return False
    if stamped.by is not None and status.st_mtime > stamped.by + offset + (_GRAIN_S if now % 1 else grain_s):
        return False
    if not told_by_ctime and stamped.until is not None and status.st_mtime > stamped.until + offset - grain_s:
        return False
    if stamped.holder is not None and _tells_end_of(layout, target, name, stamped.holder):
        return False
    return kind.opening_asks or holds(target, name)


def _tells_end_of(layout: Layout, directory: Directory, name: str, holder: str) -> bool:
    """Return whether a file's history tells that this lease has ended; one that cannot be read tells nothing."""
    try:
        bookkeeping = split(patiently(lambda: layout.ops.read_file(directory.fd, name)))[1]
    except (FileNotFoundError, PermissionError, CorruptRefError):
        return False
    return bookkeeping.names_holder(holder)


def _status(layout: Layout, directory: Directory, name: str) -> os.stat_result | None:
    """Return a file's status, of now: a stat by this name may tell what this client knew when it had the lease."""
    try:
        return patiently(lambda: layout.ops.fresh_status(directory.fd, name))
    except PermissionError:  # there, for others to read
        return layout.ops.status(directory.fd, name)


def refusal(error: OSError, source: Directory, target: Directory) -> OSError:
    """Return what to raise for a move that was refused: EXDEV means two filesystems only where there are two."""
    if error.errno == errno.EXDEV and source.mount() != target.mount():
        return QueueIOError("moving a ref to", target.path, error, _TWO_MOUNTS)
    located(error, source, target)
    return error


def has_come_in(layout: Layout, stem: str, written_at: float, started: float) -> bool:
    """Return whether a ref has entered the queue that was written, and then begun to be put there, at these times.

    Both are by monotonic; it is found wherever it is by now.

    It was not in pending/ or leased/ just before: where it is there, it has come. A file in done/ or failed/, or a line
    of a segment, may be of an earlier life, whose last stamp is older: whoever leases a ref stamps it.

    RACE: it may go from one directory to another between two listings, also back, so all are looked at twice.
    """
    offset = FilesystemClock(layout.ops, layout.root).now() - layout.ops.monotonic()
    offset -= max(_GRAIN_S, layout.filesystem.step_s)
    if _is_stamped(layout, layout.pending, stem + names.SUFFIX, written_at + offset):
        return True  # a listing may be older than that
    earliest = started + offset
    for directory in 2 * (layout.pending, layout.leased, layout.done, layout.failed):
        for name in patiently(directory.listing):
            if packed.parse_segment(name) is not None:
                came = directory is layout.done and _is_packed_in(layout, name, stem, earliest)
            else:
                is_live = directory is layout.pending or directory is layout.leased
                came = _is_of(name, stem) and (is_live or _is_stamped(layout, directory, name, earliest))
            if came:
                return True
    return False


def _is_of(name: str, stem: str) -> bool:
    """Return whether a name is that of a ref's file, in whatever state."""
    aside = packed.parse_aside(name)
    ref_name = aside.ref_name if aside else name
    return ref_name.removesuffix(names.SUFFIX).partition("@")[0] == stem


def _is_stamped(layout: Layout, directory: Directory, name: str, earliest: float) -> bool:
    """Return whether a file is there that was stamped, by whatever, at this time of the filesystem's or later."""
    status = _status(layout, directory, name)
    return status is not None and max(status.st_mtime, status.st_ctime) >= earliest


def _is_packed_in(layout: Layout, segment: str, stem: str, earliest: float) -> bool:
    try:
        data = layout.ops.read_file(layout.done.fd, segment)
    except (FileNotFoundError, CorruptRefError):
        return False
    return any(line.mtime_ns / 1e9 >= earliest for line in packed.lines_of(data, stem))
