"""Create and open a queue's directory, with the settings in its fsqueue.json.

A queue exists from the instant that fsqueue.json does. It is written last, by a hard link from tmp/ that
only one of several creators can make (by a rename under the order lock where there are no hard links), so
whoever reads it finds everything else in place.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, despite_errors, explained
from fsqueue.disk.publish import make_directory, publish_once, strangers_in
from fsqueue.errors import CorruptRefError, NotAQueueError, QueueConfigError, UnsupportedFormatError
from fsqueue.format.codec import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FORMAT = 2
SETTINGS = "fsqueue.json"
ORDER = "order.lock"
HEADER_BYTES = 64
STREAM = "stream"
LEDGER = "ledger.json"
REF_TYPE = "type.json"
ORDER_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
STATES = ("pending", "leased", "done", "failed")
DIRECTORIES = ("owners", "tmp", *STATES)
LOCK_MODES = ("flock", "lease", "none")
_LOCAL_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs")


class Settings(msgspec.Struct, frozen=True):
    """Hold the content of fsqueue.json, on which all handles of a queue agree.

    Attributes:
        lease_timeout_s: seconds after which an unrenewed lease expires; None: leases do not time out.
        lock: what orders the critical sections: "flock", "lease" (filelock's SoftFileLease) or "none".
    """

    format: int
    created_at: float
    run_id: str | None
    lease_timeout_s: float | None
    lock: str


class Layout:
    """Hold an existing queue's settings and open directories.

    Attributes:
        remote: other hosts may change the files behind this one's caches, so an ENOENT and a remembered name are
            doubted; true unless the filesystem is known to be local.
    """

    def __init__(self, ops: FileOps, path: str, settings: Settings, make_missing: bool = False) -> None:
        self.ops = ops
        self.path = path
        self.settings = settings
        self.remote = is_remote(ops, path)
        self._make_missing = make_missing
        self._opened: list[Directory] = []
        try:
            self.root = self._open("")
            self.owners = self._open("owners")
            self.tmp = self._open("tmp")
            self.pending = self._open("pending")
            self.leased = self._open("leased")
            self.done = self._open("done")
            self.failed = self._open("failed")
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> Directory:
        path = os.path.join(self.path, name) if name else self.path
        try:
            directory = Directory(self.ops, path)
        except FileNotFoundError:
            if not (name and self._make_missing):
                raise
            # An empty directory was removed by hand, or its making was reported done and was not.
            make_directory(self.ops, path)
            directory = Directory(self.ops, path)
        self._opened.append(directory)
        return directory

    @property
    def batch_size(self) -> int:
        """Return how many refs one hold of the lock may move, to take a fraction of a second on any mount."""
        return 32 if self.remote else 256

    def refresh_pending(self) -> None:
        """Make an NFS client ask again about the names in pending/ (see `Directory.refresh`)."""
        if self.remote:
            self.pending.refresh()

    def close(self) -> None:
        """Close all descriptors, also where closing one of them fails."""
        opened, self._opened = self._opened, []
        despite_errors(Directory.close, opened)


def open_layout(ops: FileOps, path: str, make_missing: bool = False) -> Layout:
    """Open an existing queue; write nothing, unless told to make missing directories.

    Raises:
        NotAQueueError: there is none at this path.
        UnsupportedFormatError: it has another format.
    """
    with explained("opening queue", path):
        settings = _read_settings(ops, path)
        if settings is None:
            raise NotAQueueError(path, f"does not exist: there is no {SETTINGS} in it; `fsqueue init` creates one")
        return Layout(ops, path, settings, make_missing)


def ensure_queue(
    ops: FileOps,
    path: str,
    *,
    lease_timeout_s: float | None,
    lock: str | None,
    run_id: str | None,
    now: Callable[[], float],
) -> Settings:
    """Return the settings of a queue, which is created where the directory is missing or empty.

    Raises:
        NotAQueueError: the directory is not empty and holds no queue.
        QueueConfigError: the queue's settings differ from the arguments given.
    """
    _validate(path, lease_timeout_s, lock)
    with explained("opening queue", path):
        settings = _read_settings(ops, path)
        if settings is None:
            wanted = Settings(FORMAT, now(), run_id, lease_timeout_s, lock or "flock")
            _create(ops, path, wanted)
            settings = _read_settings(ops, path)
            if settings is None:
                raise NotAQueueError(path, f"vanished while it was created: {SETTINGS} is gone")
        _compare(path, settings, lease_timeout_s, lock, run_id)
        return settings


def _validate(path: str, lease_timeout_s: float | None, lock: str | None) -> None:
    if lease_timeout_s is not None and not 0 < lease_timeout_s < float("inf"):
        raise QueueConfigError(path, f"needs a positive lease_timeout_s or None, found {lease_timeout_s!r}")
    if lock is not None and lock not in LOCK_MODES:
        raise QueueConfigError(path, f"needs lock to be one of {', '.join(LOCK_MODES)}, found {lock!r}")


def _read_settings(ops: FileOps, path: str) -> Settings | None:
    """Return the settings; None where there is no fsqueue.json (or no directory)."""
    try:
        with closing(Directory(ops, path)) as root:
            data = ops.read_file(root.fd, SETTINGS)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise NotAQueueError(path, "is a file: a queue is a directory") from None
    except CorruptRefError:
        raise NotAQueueError(path, f"has a {SETTINGS} that is not a regular file: look who put it there") from None
    return _parse_settings(path, data)


def read_json(ops: FileOps, directory: Directory, name: str, kind: type[T]) -> T | None:
    """Return what a small file of one JSON value holds; None where there is none that can be read."""
    try:
        return msgspec.json.decode(ops.read_file(directory.fd, name), type=kind)
    except (FileNotFoundError, CorruptRefError, *UNDECODABLE):
        return None


def _parse_settings(path: str, data: bytes) -> Settings:
    try:
        found = msgspec.json.decode(data)
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number != FORMAT:
            raise UnsupportedFormatError(path, number, FORMAT)
        settings = msgspec.json.decode(data, type=Settings)
        _validate(path, settings.lease_timeout_s, settings.lock)
    except UNDECODABLE as error:
        raise NotAQueueError(path, f"has a damaged {SETTINGS} ({error}): FORMAT.md shows what belongs there") from None
    return settings


def _compare(path: str, stored: Settings, lease_timeout_s: float | None, lock: str | None, run_id: str | None) -> None:
    for key, given in (("lease_timeout_s", lease_timeout_s), ("lock", lock), ("run_id", run_id)):
        found = getattr(stored, key)
        if given is not None and given != found:
            raise QueueConfigError(
                path,
                f"was created with {key}={found!r}, this handle asks for {given!r}: "
                f"leave {key} out to take the stored one, or use another directory",
            )


def _create(ops: FileOps, path: str, settings: Settings) -> None:
    make_directory(ops, path)
    with closing(Directory(ops, path)) as root:
        if strangers := strangers_in(root, {*DIRECTORIES, ORDER, SETTINGS, REF_TYPE}):
            raise NotAQueueError(
                path,
                f"is not empty and holds no {SETTINGS}, but for instance {strangers[0]!r}: choose a new directory",
            )
        for name in DIRECTORIES:
            make_directory(ops, os.path.join(path, name))
        _refuse_orphans(ops, path)
        ops.close(ops.open(ORDER, ORDER_FLAGS, 0o666, dir_fd=root.fd))
        # CRASH: before this there is no queue, only empty directories, which the next creator completes.
        publish_once(ops, root, SETTINGS, msgspec.json.encode(settings) + b"\n")


def _refuse_orphans(ops: FileOps, path: str) -> None:
    """Refuse to take a queue that lost its fsqueue.json for a new one while there are refs in it."""
    for state in STATES:
        with closing(Directory(ops, os.path.join(path, state))) as directory:
            names = ops.listdir(directory.fd)
        if names and _read_settings(ops, path) is None:
            raise NotAQueueError(
                path,
                f"has files in {state}/ but no {SETTINGS}: restore it (FORMAT.md shows one), or move the files away",
            )


def is_remote(ops: FileOps, path: str) -> bool:
    """Return whether other hosts may change files behind this one's caches, as far as can be known."""
    return ops.filesystem_type(path) not in _LOCAL_TYPES
