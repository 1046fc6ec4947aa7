"""Say whose a file is that this process may not use, and who this process is."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from fsqueue.disk.directory import Directory
from fsqueue.errors import QueueIOError

DENIED = (errno.EACCES, errno.EPERM)
_MEND = "Check the owner and mode; users who share a queue need a common group, umask 002 and setgid"


def told(what: str, directory: Directory, name: str, error: OSError) -> OSError:
    """Return an error that names the file, and its owner where this process was denied it; others as they are.

    A rename that is denied is denied by its directories.
    """
    if error.errno not in DENIED or isinstance(error, QueueIOError) or error.filename2 is not None:
        return error
    status = None
    with suppress(OSError):
        status = directory.ops.status(directory.fd, name)
    if status is None:
        return error
    whose = f"it is of {_user(status.st_uid)}, group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"
    me = f"this process is {_user(os.geteuid())}, groups {', '.join(map(str, sorted({os.getegid(), *os.getgroups()})))}"
    told = QueueIOError(what, f"{directory.path}/{name}", error, f": {whose}; {me}. {_MEND}")
    told.__cause__ = error
    return told


def _user(uid: int) -> str:
    """Return a user by number, and by name where there is one."""
    name = user_name(uid)
    return f"user {uid}" if name is None else f"user {uid} ({name})"


def user_name(uid: int) -> str | None:
    """Return a user's name; None where there is none, as in a container."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
