"""Tell by looking what became of a move, whatever the filesystem answered.

On a filesystem that other clients change, an answer proves little. A rename that says 0 may have done nothing: this
client remembers the target name from before, takes both names for the same file's, and sends no request. Whoever loses
a race is told ENOENT on one filesystem, EIO, EXDEV, EPERM, ESTALE or EBADF on others. And an error may follow a rename
that was done. So nobody judges by the number of an error: where the source is gone, and the target is not this
move's, the race is lost; where the source is there, it was refused.
"""

from __future__ import annotations

import errno

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import Layout
from fsqueue.errors import CorruptRefError, QueueIOError
from fsqueue.format import names, packed

_CTIME_GRAIN_S = 0.05
_GONE = (errno.ENOENT, errno.ESTALE, errno.EBADF)
_TWO_MOUNTS = ": the queue's directories must lie on one filesystem"


def still_opens(ops: FileOps, dir_fd: int, name: str) -> bool:
    """Return whether a file can still be opened by a name; a stat would answer from what is remembered."""
    try:
        fd = ops.open_to_read(dir_fd, name)
    except CorruptRefError:
        return True
    except OSError as error:
        if error.errno in _GONE:
            return False
        if error.errno in (errno.EACCES, errno.EPERM):
            return True  # there, for others to read
        raise
    ops.close_read(fd)
    return True


def holds(directory: Directory, name: str) -> bool:
    """Return whether a directory has this name, asked afresh: it opens, and a listing shows it."""
    ops = directory.ops
    return directory.afresh(lambda fd: still_opens(ops, fd, name) and ops.scan_until(fd, lambda each: each == name))


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


def has_arrived(layout: Layout, target: Directory, name: str, started: float, unique: bool) -> bool:
    """Return whether a file has come to a name since started, by monotonic; of a unique name, whether it is there."""
    status = layout.ops.status(target.fd, name)
    if status is None or unique:
        return status is not None
    now = FilesystemClock(layout.ops, layout.root).now()
    return status.st_ctime >= now - (layout.ops.monotonic() - started) - _CTIME_GRAIN_S


def refusal(error: OSError, source: Directory, target: Directory) -> OSError:
    """Return what to raise for a move that was refused: EXDEV means two filesystems only where there are two."""
    if error.errno == errno.EXDEV and source.mount() != target.mount():
        return QueueIOError("moving a ref to", target.path, error, _TWO_MOUNTS)
    return error


def has_come_in(layout: Layout, stem: str, started: float) -> bool:
    """Return whether a ref has entered the queue since started, wherever it is by now.

    RACE: it may go from one directory to another between two listings, also back, so all are looked at twice.
    """
    for directory in 2 * (layout.pending, layout.leased, layout.done, layout.failed):
        for name in directory.listing():
            came = _may_hold(name, stem) and has_arrived(layout, directory, name, started, unique=False)
            if came and (packed.parse_segment(name) is None or _is_packed_in(layout, name, stem)):
                return True
    return False


def _may_hold(name: str, stem: str) -> bool:
    """Return whether a name is that of a ref's file, in whatever state, or of a segment."""
    aside = packed.parse_aside(name)
    ref_name = aside.ref_name if aside else name
    return ref_name.removesuffix(names.SUFFIX).partition("@")[0] == stem or packed.parse_segment(name) is not None


def _is_packed_in(layout: Layout, segment: str, stem: str) -> bool:
    try:
        data = layout.ops.read_file(layout.done.fd, segment)
    except (FileNotFoundError, CorruptRefError):
        return False
    return any(packed.lines_of(data, stem))
