"""Tell the time by the clock that stamps a queue's files, for whoever looks at it without being one of its handles."""

from __future__ import annotations

import errno
import os

from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import ORDER, Layout

_UNNAMED = getattr(os, "O_TMPFILE", 0)
_STAMPED_WITHIN_S = 0.1  # kernels stamp by a clock that ticks every 1 to 10 ms: closer than this, it is the same one
_NOT_ALLOWED = (errno.EPERM, errno.EACCES, errno.EROFS)


def time_there(layout: Layout) -> float:
    """Return the time by the filesystem's clock, seconds since 1970: the one that its stamps are to be compared with.

    A file without a name, which nobody sees, is stamped at its making. A filesystem without such files has order.lock
    touched where other hosts may stamp its files too, as every handle does; the clock of a local one is this host's.
    Where this user may do neither, it is this host's clock, and at least the newest stamp of what every get touches.
    """
    stamped = _unnamed(layout)
    if stamped is None and layout.remote:
        stamped = _touched(layout)
    here = layout.ops.time()
    return here if stamped is None or abs(here - stamped) < _STAMPED_WITHIN_S else stamped


def _unnamed(layout: Layout) -> float | None:
    if not _UNNAMED:
        return None
    ops = layout.ops
    try:
        fd = ops.open(".", _UNNAMED | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=layout.tmp.fd)
    except OSError:
        return None
    try:
        return ops.fstat(fd).st_mtime
    finally:
        ops.close_read(fd)


def _touched(layout: Layout) -> float | None:
    root = layout.root
    try:
        FilesystemClock(layout.ops, root).stamp(root, ORDER)
        return layout.ops.fresh_mtime(root.fd, ORDER)
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
    newest = layout.ops.status(root.fd, ORDER)
    return max(layout.ops.time(), newest.st_mtime if newest else 0.0)
