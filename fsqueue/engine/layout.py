"""Create and open a queue's directory, with the settings in its fsqueue.json.

A queue exists from the instant that fsqueue.json does. It is written last, by a hard link from tmp/ that
only one of several creators can make (by a rename where there are no hard links, and as `disk.once` says where a link
may have two winners), so whoever reads it finds everything else in place.
"""

from __future__ import annotations

import errno
import os
import secrets
import warnings
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, despite_errors, explained, without_delegations
from fsqueue.disk.filesystems import UnfitFilesystemWarning, filesystem, refusal
from fsqueue.disk.mutex import Mutex
from fsqueue.disk.once import await_creators, publish_once
from fsqueue.disk.publish import (
    file_above,
    make_directory,
    make_within,
    read_replaced,
    refusal_of,
    strangers_in,
    sync_parent,
)
from fsqueue.engine import arguments
from fsqueue.engine.reserve import Reserve
from fsqueue.engine.settings import (
    FORMAT,
    NO_WAIT,
    SETTINGS,
    Retry,
    Settings,
    compare,
    parse_settings,
    require_same,
    validate,
)
from fsqueue.errors import (
    CorruptRefError,
    NotAQueueError,
    QueueConfigError,
)
from fsqueue.format.codec import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ORDER = "order.lock"
HEADER_BYTES = 64
STREAM = "stream"
LEDGER = "ledger.json"
REF_TYPE = "type.json"
ORDER_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
STATES = ("pending", "leased", "done", "failed")
DIRECTORIES = ("owners", "tmp", *STATES)
MORE_TMP = (".tmp-1", ".tmp-2", ".tmp-3")
"""Directories beside tmp/, for the same, where a client creates one file at a time in each (see `newfiles`)."""
_warned: set[str] = set()
_GONE = (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENOENT)


class Layout:
    """Hold an existing queue's settings and open directories.

    The path is followed once. All that a handle does from then on happens in the queue that it led to, whatever lies
    there later; a queue that cannot be reached any more is opened by its path again only where that is the same one.

    Args:
        root: the queue's directory, open; closed with the others.

    Attributes:
        filesystem: what is known of the kind of filesystem that it lies on.
        remote: other hosts may change the files behind this one's caches, so an ENOENT and a remembered name are
            doubted; true unless the filesystem is known to be local.
        reserve: what is left of the disk, once it is full, for taking refs out of the queue.
        tmps: tmp/, and what is open of those beside it.
    """

    def __init__(self, root: Directory, settings: Settings, make_missing: bool = False) -> None:
        self.ops = root.ops
        self.path = root.path
        self.settings = settings
        self.root = root
        self.reserve = Reserve(root.ops, root)
        self._opened = [root]
        self._retired: list[int] = []
        self.reopening = Mutex()
        self._make_missing = make_missing
        try:
            self.filesystem = root.filesystem
            self.remote = not self.filesystem.local
            if self.filesystem.delegates:
                root.ops = self.ops = without_delegations(root.ops)
            self.owners = self.open("owners", make_missing)
            self.tmp = self.open("tmp", make_missing)
            self.tmps = [self.tmp]
            self.pending = self.open("pending", make_missing)
            self.leased = self.open("leased", make_missing)
            self.done = self.open("done", make_missing)
            self.failed = self.open("failed", make_missing)
        except BaseException:
            self.close()
            raise

    def within(self, name: str) -> Directory:
        """Open a directory of the queue, for the caller to close."""
        return Directory(self.ops, os.path.join(self.path, name), self.root)

    def open(self, name: str, make_missing: bool = False) -> Directory:
        """Open a directory of the queue, which is closed with the others."""
        try:
            directory = self.within(name)
        except FileNotFoundError:
            if not make_missing:
                raise
            # An empty directory was removed by hand, or its making was reported done and was not.
            self.reserve.retrying(lambda: make_within(self.ops, self.root, name))
            directory = self.within(name)
        self._opened.append(directory)
        return directory

    def more_tmp(self, make: bool = False) -> list[Directory]:
        """Open the directories beside tmp/, closed with the others: those that are there, or can be made."""
        for name in MORE_TMP:
            if any(name == directory.name for directory in self.tmps):
                continue
            with suppress(OSError):
                if make:
                    make_within(self.ops, self.root, name)
                self.tmps.append(self.open(name))
        return self.tmps[1:]

    def recover(self, error: OSError) -> None:
        """Open the queue by its path again after an error that says that it cannot be reached by its descriptors.

        So it is after an NFS export was made anew, or a mount by FUSE: the error goes on to the caller, whose next call
        works. Where no queue is found there, as before the mount is back, nothing changes.

        Raises:
            QueueReplacedError: it leads to another queue.
        """
        if error.errno in _GONE and self._opened:
            with self.reopening, suppress(OSError, NotAQueueError):
                self._reopen()

    def _reopen(self) -> None:
        """RACE: other threads may be using the former descriptors, so they are closed the next time only."""
        ops, root = self.ops, Directory(self.ops, self.path)
        opened = [self.root, *(directory for directory in self._opened[1:] if directory.fd >= 0)]
        fds: list[int] = []
        try:
            found = read_settings(root)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "no queue", self.path)
            require_same(self.path, self.settings, found)
            fds.append(root.exchange(-1))
            for directory in opened[1:]:
                fds.append(_open_or_make(directory, fds[0]) if self._make_missing else directory.open_in(fds[0]))
        except BaseException:
            root.close()
            _close_quietly(ops, fds)
            raise
        retired, self._retired = self._retired, []
        self._retired += (directory.exchange(fd) for directory, fd in zip(opened, fds, strict=True))
        if not self._opened:  # closed meanwhile
            retired += [*self._retired, *(directory.exchange(-1) for directory in opened)]
            self._retired.clear()
        _close_quietly(ops, retired)

    def reread(self) -> bool:
        """Take up settings that were changed since this queue was opened; return whether they were."""
        try:
            found = read_settings(self.root)
        except QueueConfigError:
            return False  # damaged by hand: what was read before holds
        if found is None or found == self.settings or found.identity != self.settings.identity:
            return False
        self.settings = found
        return True

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
        retired, self._retired = self._retired, []
        _close_quietly(self.ops, retired)
        despite_errors(Directory.close, opened)


def _open_or_make(directory: Directory, root_fd: int) -> int:
    """Return a new descriptor on a queue's directory, which is made where somebody has removed it."""
    try:
        return directory.open_in(root_fd)
    except FileNotFoundError:
        with suppress(FileExistsError):
            directory.ops.mkdir(directory.name, 0o777, dir_fd=root_fd)
        return directory.open_in(root_fd)


def _close_quietly(ops: FileOps, fds: list[int]) -> None:
    for fd in fds:
        ops.close_read(fd)


def open_layout(ops: FileOps, path: str, make_missing: bool = False, *, same_as: Settings | None = None) -> Layout:
    """Open an existing queue; write nothing, unless told to make missing directories.

    Args:
        same_as: the settings of the queue that has to lie there.

    Raises:
        NotAQueueError: there is none at this path.
        UnsupportedFormatError: it has another format.
        QueueReplacedError: it is another one.
    """
    with explained("opening queue", path):
        root, settings = open_root(ops, path, same_as)
        layout = Layout(root, settings, make_missing)
    _warn_where_unfit(layout)
    return layout


def _warn_where_unfit(layout: Layout) -> None:
    """Warn, once a queue in each process, where it lies on a filesystem on which none can be kept."""
    key = layout.settings.queue_id or layout.path
    if layout.filesystem.unfit is None or key in _warned:
        return
    _warned.add(key)
    reason = refusal(layout.ops.filesystem_type(layout.path))
    warnings.warn(f"queue {layout.path}: {reason}", UnfitFilesystemWarning, stacklevel=4)


def open_root(ops: FileOps, path: str, same_as: Settings | None = None) -> tuple[Directory, Settings]:
    """Open the directory of an existing queue, as `open_layout` does; return it with the queue's settings."""
    path = os.path.expanduser(path)
    root = _root(ops, path)
    if root is None:
        raise _missing(ops, path)
    try:
        settings = read_settings(root)
        if settings is None:
            raise _missing(ops, path)
        if same_as is not None:
            require_same(path, same_as, settings)
    except BaseException:
        root.close()
        raise
    return root, settings


def _missing(ops: FileOps, path: str) -> NotAQueueError:
    """Say what there is in a queue's place."""
    root = _root(ops, path)
    if root is None:
        return NotAQueueError(
            path,
            "does not exist: look if the path is right, and the share mounted on this node; `fsqueue init` creates one",
        )
    with closing(root):
        state = state_with_files(ops, root)
    if state is None:
        return NotAQueueError(
            path,
            f"is no queue: there is no {SETTINGS} in this directory; look if the share is mounted on this node; "
            "`fsqueue init` creates one",
        )
    return _lost(path, state)


def _lost(path: str, state: str) -> NotAQueueError:
    return NotAQueueError(
        path,
        f"has files in {state}/ but no {SETTINGS}: `fsqueue check --repair --lease-timeout TIME` writes it anew; or "
        "move the files away",
    )


def ensure_queue(
    ops: FileOps,
    path: str,
    *,
    lease_timeout_s: float | None,
    lock: str | None,
    run_id: str | None,
    now: Callable[[], float],
    create: bool = True,
    read_only: bool = False,
    retry: Retry | None = None,
    max_hold_s: float | None = None,
) -> Settings:
    """Return the settings of a queue, which is created, unless told otherwise, where the directory is missing or empty.

    Raises:
        InvalidArgumentError: run_id is no string; nothing was written.
        NotAQueueError: the directory is not empty and holds no queue, or there is none and none is to be created.
        QueueConfigError: the queue's settings differ from the arguments given.
    """
    validate(path, lease_timeout_s, lock, retry or NO_WAIT, max_hold_s)
    if run_id is not None:
        arguments.text("run_id", run_id, ": str() makes one of a job's number" if isinstance(run_id, int) else "")
    with explained("opening queue", path):
        settings = _read_settings(ops, path, read_only=read_only)
        if settings is None:
            if not create or read_only:
                raise _missing(ops, path)
            queue_id = secrets.token_hex(8)
            wanted = Settings(
                FORMAT,
                now(),
                run_id,
                lease_timeout_s,
                lock or "flock",
                queue_id,
                retry or NO_WAIT,
                max_hold_s=max_hold_s,
            )
            _create(ops, path, wanted)
            settings = _read_settings(ops, path, surely=True)
            if settings is None:
                raise NotAQueueError(path, f"vanished while it was created: {SETTINGS} is gone")
        compare(path, settings, lease_timeout_s=lease_timeout_s, lock=lock, run_id=run_id, max_hold_s=max_hold_s)
        if retry is not None:
            compare(path, settings.retry, **msgspec.structs.asdict(retry))
        return settings


def _read_settings(ops: FileOps, path: str, surely: bool = False, read_only: bool = False) -> Settings | None:
    """Return the settings; None where there is no fsqueue.json (or no directory)."""
    root = _root(ops, path)
    if root is None:
        return None
    with closing(root):
        found = read_settings(root, surely)
        if found is not None and not read_only and await_creators(ops, root, SETTINGS):
            found = read_settings(root, surely=True)
        return found


def _root(ops: FileOps, path: str) -> Directory | None:
    try:
        return Directory(ops, path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        file = file_above(ops, path)
        what = "is a file" if file == path else f"cannot be one: {file} is a file"
        raise NotAQueueError(path, f"{what}, and a queue is a directory") from None


def read_settings(root: Directory, surely: bool = False) -> Settings | None:
    """Return what a directory's fsqueue.json says; None where there is none.

    Raises:
        NotAQueueError: it is damaged, or of another format.
    """
    path = root.path
    try:
        data = read_replaced(root, SETTINGS, surely=surely)
    except FileNotFoundError:
        return None
    except CorruptRefError:
        raise NotAQueueError(path, f"has a {SETTINGS} that is not a regular file: look who put it there") from None
    return parse_settings(path, data)


def read_json(directory: Directory, name: str, kind: type[T], *, surely: bool = False) -> T | None:
    """Return what a small file of one JSON value holds; None where there is none that can be read."""
    try:
        return msgspec.json.decode(read_replaced(directory, name, surely=surely), type=kind)
    except (FileNotFoundError, CorruptRefError, *UNDECODABLE):
        return None


def _create(ops: FileOps, path: str, settings: Settings) -> None:
    make_directory(ops, path)
    with closing(Directory(ops, path)) as root:
        refuse_strangers(root)
        for name in DIRECTORIES:
            make_within(ops, root, name)
        _refuse_orphans(ops, root)
        with suppress(OSError):  # a hint: whoever locks it first makes it too, or finds out why that cannot be
            ops.close(ops.open(ORDER, ORDER_FLAGS, 0o666, dir_fd=root.fd))
        # CRASH: before this there is no queue, only empty directories, which the next creator completes.
        publish_once(ops, root, SETTINGS, msgspec.json.encode(settings) + b"\n")
        sync_parent(ops, path)
        Reserve(ops, root).tend()


def refuse_strangers(root: Directory) -> None:
    """Raise a NotAQueueError where a directory holds what keeps it from being made a queue.

    RACE: what is strange to a new queue may have been put there since another process has made it one.
    """
    if strangers := strangers_in(root, {*DIRECTORIES, ORDER, SETTINGS, REF_TYPE}):
        root.refresh()  # NFS: that there is no such file may be remembered from before
        if read_settings(root) is None:
            raise NotAQueueError(root.path, refusal_of(strangers, SETTINGS))


def _refuse_orphans(ops: FileOps, root: Directory) -> None:
    """Refuse to take a queue that lost its fsqueue.json for a new one while there are refs in it."""
    state = state_with_files(ops, root)
    if state is None:
        return
    root.refresh()  # NFS: that there is no such file may be remembered from before
    if read_settings(root, surely=True) is None:
        raise _lost(root.path, state)


def state_with_files(ops: FileOps, root: Directory) -> str | None:
    """Return the first state whose directory holds anything; None where none does."""
    for state in STATES:
        try:
            directory = Directory(ops, os.path.join(root.path, state), root)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with closing(directory):
            if any(not name.startswith(".") for name in ops.listdir(directory.fd)):
                return state
    return None


def is_remote(ops: FileOps, path: str) -> bool:
    """Return whether other hosts may change files behind this one's caches, as far as can be known."""
    return not filesystem(ops.filesystem_type(path)).local
