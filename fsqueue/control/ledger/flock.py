"""Wait for a log's lock: its file's own flock, polled, and never gone without."""

from __future__ import annotations

import errno
import warnings

from fsqueue.control.errors import LedgerLockedError, LedgerLockUnsupportedError
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.order_content import StaleLockWarning

WARN_AFTER_S = 10.0
_FIRST_PAUSE_S = 0.00005
_LONGEST_PAUSE_S = 0.005
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def wait_for_lock(ops: FileOps, fd: int, path: str, since: float, timeout_s: float) -> None:
    """Take the lock on an open file, polling until timeout_s seconds after since, which is monotonic.

    Raises:
        LedgerLockedError: it could not be had.
        LedgerLockUnsupportedError: the mount has no flock.
    """
    pause_s, warned = _FIRST_PAUSE_S, False
    while not _try_lock(ops, fd, path):
        waited_s = ops.monotonic() - since
        if waited_s >= timeout_s:
            raise LedgerLockedError(path, waited_s)
        if waited_s >= WARN_AFTER_S and not warned:
            warned = True
            # NFS: a node that died holding it keeps it for 90 s on NFS 4, for minutes on NFS 3.
            warnings.warn(
                f"{path} has been locked by another process for {waited_s:.0f} s, perhaps on a node that died (a "
                f"server frees such a lock after about 90 s); waiting for up to {timeout_s:.0f} s",
                StaleLockWarning,
                stacklevel=2,
            )
        ops.sleep(pause_s * (0.5 + ops.random()))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _try_lock(ops: FileOps, fd: int, path: str) -> bool:
    try:
        return bool(ops.lock(fd))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise LedgerLockUnsupportedError(path, error) from error
        raise
