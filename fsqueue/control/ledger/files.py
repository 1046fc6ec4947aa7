"""The files of a ledger's directory: creating it, and which segment of each log is the current one.

fsledger.json             {"format": 1, "created_at": ...}: written last, a directory is a ledger from then on
create.lock               held while the directory is made
<kind>.json               the pointer: {"segment": "<kind>-3f2a9c01.jsonl"}
<kind>-3f2a9c01.jsonl     records, one a line
commits.index             a hint (snapshot.py)
.<name>                   being written
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import msgspec

from fsqueue.control.errors import LedgerFormatError
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, silently_remove

FORMAT = 1
SETTINGS = "fsledger.json"
CREATE_LOCK = "create.lock"
KINDS = ("commits", "acks")
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_is_ours = re.compile(r"\..*|create\.lock|commits\.index|(commits|acks)(\.json|-[0-9a-f]{8}\.jsonl)\Z").match

Lock = Callable[[int, str], None]


class _Settings(msgspec.Struct):
    format: int
    created_at: float


class _Pointer(msgspec.Struct):
    segment: str


class Segments:
    """The segments of one log in an open ledger directory."""

    def __init__(self, ops: FileOps, root: Directory, kind: str, durable: bool) -> None:
        self._ops = ops
        self._root = root
        self._kind = kind
        self._durable = durable

    def current(self) -> str:
        """The segment to begin with.

        Raises:
            LedgerFormatError: the pointer is missing or damaged.
        """
        self._root.refresh()  # NFS: a client may remember the pointer that another one has replaced
        name = f"{self._kind}.json"
        try:
            return msgspec.json.decode(self._ops.read_file(self._root.fd, name), type=_Pointer).segment
        except FileNotFoundError:
            raise LedgerFormatError(self._root.path, f"has lost its {name}: restore it") from None
        except msgspec.DecodeError as error:
            raise LedgerFormatError(self._root.path, f"has a damaged {name} ({error}): restore it") from None

    def write(self, content: bytes) -> str:
        """Write a new segment, durably, that nothing refers to yet; returns its name."""
        name = f"{self._kind}-{int(self._ops.random() * 2**32):08x}.jsonl"
        self._write_file(name, content)
        self._sync()
        return name

    def point_at(self, name: str) -> None:
        """Make a segment the one that everybody begins with."""
        tmp = f".{name}.{os.getpid()}"
        try:
            self._write_file(tmp, msgspec.json.encode(_Pointer(name)) + b"\n")
            self._ops.rename(tmp, f"{self._kind}.json", src_dir_fd=self._root.fd, dst_dir_fd=self._root.fd)
        except OSError:
            self.discard(tmp)
            raise
        self._sync()

    def discard(self, name: str) -> None:
        silently_remove(self._ops, self._root.fd, [name])

    def discard_others(self, current: str) -> None:
        """Unlink all segments but the current one: former ones, and those of switches that were not completed."""
        others = [name for name in self._root.listing() if name.startswith(f"{self._kind}-") and name != current]
        silently_remove(self._ops, self._root.fd, others)

    def _write_file(self, name: str, content: bytes) -> None:
        fd = self._ops.create(self._root.fd, name, content)
        try:
            if self._durable:
                self._ops.fsync(fd)
        except OSError:
            self.discard(name)
            raise
        finally:
            self._ops.close(fd)

    def _sync(self) -> None:
        if self._durable:
            self._root.sync()


def open_directory(ops: FileOps, path: str, durable: bool, lock: Lock) -> Directory:
    """Open a ledger's directory; where it is missing or empty, make it one.

    Args:
        lock: waits for the lock on an open file.

    Raises:
        LedgerFormatError: there is something else, or a format that this version does not know.
    """
    _make_directories(ops, path)
    try:
        root = Directory(ops, path)
    except NotADirectoryError:
        raise LedgerFormatError(path, "is a file: a ledger is a directory") from None
    try:
        if not _is_ledger(ops, root):
            _create_once(ops, root, durable, lock)
    except BaseException:
        root.close()
        raise
    return root


def _make_directories(ops: FileOps, path: str) -> None:
    try:
        ops.mkdir(path, 0o777)
    except FileExistsError:
        pass
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if parent == path:
            raise
        _make_directories(ops, parent)
        _make_directories(ops, path)


def _is_ledger(ops: FileOps, root: Directory) -> bool:
    try:
        data = ops.read_file(root.fd, SETTINGS)
    except FileNotFoundError:
        return False
    try:
        found = msgspec.json.decode(data, type=_Settings).format
    except msgspec.DecodeError as error:
        raise LedgerFormatError(root.path, f"has a damaged {SETTINGS} ({error}): restore it") from None
    if found != FORMAT:
        raise LedgerFormatError(root.path, f"has format {found}, this fsqueue reads {FORMAT}: upgrade fsqueue")
    return True


def _create_once(ops: FileOps, root: Directory, durable: bool, lock: Lock) -> None:
    """Make an empty directory a ledger; of several processes that try, one does.

    CRASH: until fsledger.json is there, what lies here is nobody's, and the next creator begins anew.
    """
    _refuse_strangers(ops, root)
    fd = ops.open(CREATE_LOCK, _LOCK_FLAGS, 0o666, dir_fd=root.fd)
    try:
        lock(fd, CREATE_LOCK)
        try:
            root.refresh()
            if not _is_ledger(ops, root):
                _create_locked(ops, root, durable)
        finally:
            ops.unlock(fd)
    finally:
        ops.close(fd)


def _refuse_strangers(ops: FileOps, root: Directory) -> None:
    for name in sorted(root.listing()):
        if name == SETTINGS:
            return
        if not _is_ours(name):
            raise LedgerFormatError(
                root.path, f"holds no {SETTINGS}, but for instance {name!r}: choose a new directory"
            )
        if name.endswith(".jsonl") and ops.stat(name, dir_fd=root.fd, follow_symlinks=False).st_size:
            raise LedgerFormatError(root.path, f"holds {name} but no {SETTINGS}: restore it")


def _create_locked(ops: FileOps, root: Directory, durable: bool) -> None:
    for kind in KINDS:
        segments = Segments(ops, root, kind, durable)
        segments.point_at(segments.write(b""))
    tmp = f".{SETTINGS}"
    fd = ops.create(root.fd, tmp, msgspec.json.encode(_Settings(FORMAT, ops.time())) + b"\n")
    try:
        if durable:
            ops.fsync(fd)
    finally:
        ops.close(fd)
    ops.rename(tmp, SETTINGS, src_dir_fd=root.fd, dst_dir_fd=root.fd)
    if durable:
        root.sync()
        parent = Directory(ops, os.path.dirname(root.path))
        try:
            parent.sync()
        finally:
            parent.close()
