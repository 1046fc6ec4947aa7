"""Which ledger speaks for a queue: ``ledger.json`` in the queue's directory.

A controller writes it before its first acknowledgement, for programs that would change acked state on the queue
alone: the ledger would take such a change back.
"""

from __future__ import annotations

import os

import msgspec

from fsqueue.control.errors import LedgerFormatError
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.ledger.files import SETTINGS
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, current, explained
from fsqueue.engine.layout import LEDGER
from fsqueue.errors import CorruptRefError, QueueConfigError
from fsqueue.format.codec import UNDECODABLE
from fsqueue.queue import FileSampleRefQueue


class _Link(msgspec.Struct):
    """Where the ledger lies, relative to the queue: both may be mounted elsewhere on another node."""

    path: str


def link(queue: object, store: object) -> None:
    """Note a ledger in its queue's directory, durably; nothing where either of them is not on files."""
    if not (isinstance(queue, FileSampleRefQueue) and isinstance(store, FileMetadataStore)):
        return
    wanted = _Link(os.path.relpath(os.path.realpath(store.path), os.path.realpath(queue.path)))
    with explained("noting the ledger in", queue.path):
        root = Directory(queue.ops, queue.path)
        try:
            if not _says(queue.ops, root, wanted):
                _write(queue.ops, root, wanted)
        finally:
            root.close()


def linked_ledger(path: str) -> str | None:
    """The ledger over a queue; None where no controller has noted one.

    Raises:
        LedgerFormatError: one is noted, and there is no ledger at that place.
        QueueConfigError: the note is damaged.
    """
    ops = current()
    with explained("reading", path):
        root = Directory(ops, path)
        try:
            found = _read(ops, root)
        finally:
            root.close()
    if found is None:
        return None
    ledger = os.path.normpath(os.path.join(os.path.realpath(path), found.path))
    require_ledger(ledger)
    return ledger


def require_ledger(path: str) -> None:
    """Raise LedgerFormatError where a directory is no ledger; opening one there would make it one."""
    if not os.path.exists(os.path.join(path, SETTINGS)):
        raise LedgerFormatError(
            path, f"does not exist: there is no {SETTINGS} in it; name the ledger of this run, as with --ledger"
        )


def _read(ops: FileOps, root: Directory) -> _Link | None:
    try:
        return msgspec.json.decode(ops.read_file(root.fd, LEDGER), type=_Link)
    except FileNotFoundError:
        return None
    except (CorruptRefError, *UNDECODABLE) as error:
        problem = f"has a damaged {LEDGER} ({error}): name the ledger of this run, as with --ledger"
        raise QueueConfigError(root.path, problem) from None


def _says(ops: FileOps, root: Directory, wanted: _Link) -> bool:
    try:
        return _read(ops, root) == wanted
    except QueueConfigError:
        return False


def _write(ops: FileOps, root: Directory, wanted: _Link) -> None:
    # CRASH: a dot file is nobody's business, and the next controller of this pid replaces it.
    tmp = f".{LEDGER}.{os.getpid()}"
    fd = ops.create(root.fd, tmp, msgspec.json.encode(wanted) + b"\n")
    try:
        ops.fsync(fd)
    finally:
        ops.close(fd)
    ops.rename(tmp, LEDGER, src_dir_fd=root.fd, dst_dir_fd=root.fd)
    root.sync()
