"""Make a ledger's directory, and find, write and replace the file of each of its logs.

fsledger.json             {"format": 1, "created_at": ...}: written last, a directory is a ledger from then on
create.lock               held while the directory is made
<kind>.json               the pointer to the log's current file: {"segment": "<kind>-3f2a9c01.jsonl"}
<kind>-3f2a9c01.jsonl     records, one a line
commits.index             a hint (snapshot.py)
.<name>                   being written
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

import msgspec

from fsqueue.control.errors import LedgerError, LedgerFormatError
from fsqueue.control.ledger.flock import wait_for_lock
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, silently_remove
from fsqueue.disk.publish import make_directory, read_replaced, refusal_of, replace_file, sync_parent, write_file

FORMAT = 1
SETTINGS = "fsledger.json"
CREATE_LOCK = "create.lock"
KINDS = ("commits", "acks")
CHUNK_BYTES = 1 << 22
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_is_ours = re.compile(r"\..*|create\.lock|commits\.index|(commits|acks)(\.json|-[0-9a-f]{8}\.jsonl)\Z").match


class Settings(msgspec.Struct, frozen=True):
    """Hold the content of fsledger.json, by which one ledger is told from another at its path."""

    format: int
    created_at: float


class _Pointer(msgspec.Struct, rename={"file": "segment"}):
    file: str


class LogFiles:
    """Find, write and replace the files of one log, of which one at a time is the current one."""

    def __init__(self, ops: FileOps, root: Directory, kind: str, durable: bool) -> None:
        self.ops = ops
        self.root = root
        self._kind = kind
        self.durable = durable

    def current(self) -> str:
        """Return the name of the current file.

        Raises:
            LedgerFormatError: the pointer is missing or damaged.
        """
        self.root.refresh()  # NFS: a client may remember the pointer that another one has replaced
        name = f"{self._kind}.json"
        try:
            return msgspec.json.decode(read_replaced(self.root, name), type=_Pointer).file
        except FileNotFoundError:
            raise LedgerFormatError(self.root.path, f"has lost its {name}: restore it") from None
        except msgspec.DecodeError as error:
            raise LedgerFormatError(self.root.path, f"has a damaged {name} ({error}): restore it") from None

    def write(self, content: bytes) -> str:
        """Write a new file, durably, that nothing refers to yet; returns its name."""
        name = f"{self._kind}-{int(self.ops.random() * 2**32):08x}.jsonl"
        write_file(self.ops, self.root.fd, name, content, self.durable)
        if self.durable:
            self.root.sync()
        return name

    def point_at(self, name: str) -> None:
        """Make a file the current one, with which everybody begins."""
        pointer = msgspec.json.encode(_Pointer(name)) + b"\n"
        replace_file(self.ops, self.root, f"{self._kind}.json", pointer, self.durable)

    def discard(self, name: str) -> None:
        silently_remove(self.ops, self.root.fd, [name])

    def discard_others(self, current: str) -> None:
        """Unlink all files but the current one: former ones, and those of switches that were not completed."""
        others = [name for name in self.root.listing() if name.startswith(f"{self._kind}-") and name != current]
        silently_remove(self.ops, self.root.fd, others)


def read_to_end(ops: FileOps, fd: int, offset: int) -> bytes:
    """Read an open file of any size, from an offset on."""
    parts = [ops.pread(fd, CHUNK_BYTES, offset)]
    while parts[-1]:
        offset += len(parts[-1])
        parts.append(ops.pread(fd, CHUNK_BYTES, offset))
    return b"".join(parts)


def open_directory(
    ops: FileOps, path: str, durable: bool, lock_timeout_s: float, same_as: Settings | None = None
) -> tuple[Directory, Settings]:
    """Open a ledger's directory; where it is missing or empty, make it one.

    Args:
        same_as: the settings of the ledger that has to lie there; none is made then.

    Raises:
        LedgerFormatError: there is something else, or a format that this version does not know.
        LedgerError: it is another ledger, or none is there any more.
    """
    if same_as is None:
        make_directory(ops, path)
    try:
        root = Directory(ops, path)
    except NotADirectoryError:
        raise LedgerFormatError(path, "is a file: a ledger is a directory") from None
    try:
        found = _settings(ops, root)
        if same_as is None:
            return root, found or _create_once(ops, root, durable, lock_timeout_s)
        if found != same_as:
            raise LedgerError(path, _replaced_by(found))
    except BaseException:
        root.close()
        raise
    return root, found


def _replaced_by(found: Settings | None) -> str:
    if found is None:
        return f"is not there any more: there is no {SETTINGS} in it; find out who moved it, or mount it again"
    return "was replaced: another one lies there now; find out who moved the former, and open the one that is meant"


def _settings(ops: FileOps, root: Directory) -> Settings | None:
    """Return the settings; None where this is no ledger yet."""
    try:
        found = msgspec.json.decode(read_replaced(root, SETTINGS), type=Settings)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LedgerFormatError(root.path, f"has a damaged {SETTINGS} ({error}): restore it") from None
    if found.format != FORMAT:
        raise LedgerFormatError(root.path, f"has format {found.format}, this fsqueue reads {FORMAT}: upgrade fsqueue")
    return found


def _create_once(ops: FileOps, root: Directory, durable: bool, lock_timeout_s: float) -> Settings:
    """Make an empty directory a ledger; of several processes that try, one does.

    CRASH: until fsledger.json is there, what lies here is nobody's, and the next creator begins anew.
    """
    if problem := _keeps_from_being_one(ops, root):
        root.refresh()  # RACE: another process may have made it one since this one looked, and written into it
        if found := _settings(ops, root):
            return found
        raise problem
    with ExitStack() as stack:
        fd = ops.open(CREATE_LOCK, _LOCK_FLAGS, 0o666, dir_fd=root.fd)
        stack.callback(ops.close, fd)
        wait_for_lock(ops, fd, os.path.join(root.path, CREATE_LOCK), ops.monotonic(), lock_timeout_s)
        stack.callback(ops.unlock, fd)
        root.refresh()
        return _settings(ops, root) or _create_locked(ops, root, durable)


def _keeps_from_being_one(ops: FileOps, root: Directory) -> LedgerFormatError | None:
    """Return the error that what lies in a directory is, where a ledger is to be made; None where it is none."""
    for name in sorted(root.listing()):
        if not _is_ours(name):
            return LedgerFormatError(root.path, refusal_of([name], SETTINGS))
        if name.endswith(".jsonl") and ops.stat(name, dir_fd=root.fd, follow_symlinks=False).st_size:
            return LedgerFormatError(root.path, f"holds {name} but no {SETTINGS}: restore it")
    return None


def _create_locked(ops: FileOps, root: Directory, durable: bool) -> Settings:
    for kind in KINDS:
        log = LogFiles(ops, root, kind, durable)
        log.point_at(log.write(b""))
    settings = Settings(FORMAT, ops.time())
    replace_file(ops, root, SETTINGS, msgspec.json.encode(settings) + b"\n", durable)
    if durable:
        sync_parent(ops, root.path)
    return settings
