"""Write a queue's fsqueue.json anew, where that was lost or damaged while there are refs.

Nothing else in a queue tells its lease timeout and its lock, so whoever has it restored says them. It gets a new
`queue_id`: handles that are open learn that they have to be opened again, and their leases end as all leases do.
"""

from __future__ import annotations

import os
import secrets
from contextlib import closing

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import current, explained
from fsqueue.disk.once import publish_once
from fsqueue.disk.publish import make_within
from fsqueue.engine.layout import DIRECTORIES, read_settings, state_with_files
from fsqueue.engine.owners import read_record
from fsqueue.engine.settings import FORMAT, NO_WAIT, SETTINGS, Settings, parse_settings, validate
from fsqueue.errors import CorruptRefError, NotAQueueError, QueueConfigError, UnsupportedFormatError
from fsqueue.format import names


def restore(
    path: str | os.PathLike[str],
    *,
    lease_timeout_s: float | None,
    lock: str = "flock",
    run_id: str | None = None,
    dry_run: bool = False,
) -> Settings:
    """Write a lost or damaged fsqueue.json anew; return what it says. A damaged one stays, as .fsqueue.json.damaged-….

    CRASH: the damaged file is moved aside first; without it the settings are lost, and restoring goes on.

    Args:
        lease_timeout_s, lock, run_id: what the queue was made with, or is to have from now on.

    Raises:
        QueueConfigError: its settings are there, or a process that uses it runs on this host.
        NotAQueueError: there are no refs of a queue in this directory.
        UnsupportedFormatError: its settings are those of another format.
    """
    path, ops = os.path.normpath(os.path.expanduser(path)), current()
    validate(path, lease_timeout_s, lock, NO_WAIT)
    wanted = Settings(FORMAT, ops.time(), run_id, lease_timeout_s, lock, secrets.token_hex(8))
    with explained("restoring", path), closing(_opened(path)) as root:
        damaged = _require_lost(root)
        if state_with_files(ops, root) is None:
            raise NotAQueueError(path, f"has no files in the directories of a queue: there is no {SETTINGS} to restore")
        _require_nobody(root)
        if dry_run:
            return wanted
        if damaged:
            _move_aside(root)
        for name in DIRECTORIES:
            make_within(ops, root, name)
        publish_once(ops, root, SETTINGS, msgspec.json.encode(wanted) + b"\n")
        written = read_settings(root, surely=True)
        if written is None or written.queue_id != wanted.queue_id:
            raise _there(root)
    return wanted


def _opened(path: str) -> Directory:
    try:
        return Directory(current(), path)
    except FileNotFoundError:
        raise NotAQueueError(path, "does not exist: there is nothing to restore") from None
    except NotADirectoryError:
        raise NotAQueueError(path, "is a file: a queue is a directory") from None


def _require_lost(root: Directory) -> bool:
    """Raise where the settings are there and whole; return True where they are damaged, False where they are gone."""
    try:
        found = read_settings(root, surely=True)
    except UnsupportedFormatError:
        raise
    except NotAQueueError:
        return True
    if found is not None:
        raise _there(root)
    return False


def _there(root: Directory) -> QueueConfigError:
    return QueueConfigError(root.path, f"has its {SETTINGS}: there is nothing to restore; `fsqueue config` changes it")


def _move_aside(root: Directory) -> None:
    """Keep the damaged file beside.

    RACE: another process may have restored it since it was looked at: then its file is moved back, unless a third one
    has written another by now, which stays.
    """
    ops, aside = root.ops, f".{SETTINGS}.damaged-{secrets.token_hex(4)}"
    if not _require_lost(root):
        return
    try:
        ops.rename(SETTINGS, aside, src_dir_fd=root.fd, dst_dir_fd=root.fd)
    except FileNotFoundError:
        return
    try:
        parse_settings(root.path, ops.read_file(root.fd, aside))
    except UnsupportedFormatError:
        pass
    except (NotAQueueError, CorruptRefError):
        return
    if not ops.exists(root.fd, SETTINGS):
        ops.rename(aside, SETTINGS, src_dir_fd=root.fd, dst_dir_fd=root.fd)
    raise _there(root)


def _require_nobody(root: Directory) -> None:
    """Raise where a process that uses the queue runs on this host: it goes by what it remembers."""
    try:
        owners = Directory(root.ops, os.path.join(root.path, "owners"), root)
    except FileNotFoundError:
        return
    with closing(owners):
        for owner in filter(None, map(names.parse_owner, owners.listing())):
            record = read_record(owners, owner)
            if record is not None and record.liveness() == "alive":
                raise QueueConfigError(
                    root.path,
                    f"has owner {owner}, whose process {record.pid} runs on this host and goes by the settings that it "
                    "remembers: stop it first, and those on other nodes",
                )
