"""Note in a queue's directory, as ``ledger.json``, which ledger speaks for it.

A controller does so before its first acknowledgement, for programs that would change acked state on the queue alone:
the ledger would take such a change back.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import Protocol, runtime_checkable

import msgspec

from fsqueue.control.errors import LedgerFormatError
from fsqueue.control.ledger.files import SETTINGS
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, current, explained
from fsqueue.disk.publish import read_replaced, replace_file
from fsqueue.engine.layout import LEDGER, open_root
from fsqueue.engine.settings import Settings
from fsqueue.errors import CorruptRefError, QueueConfigError
from fsqueue.format.codec import UNDECODABLE


class _Note(msgspec.Struct):
    """Say where the ledger lies, relative to the queue: both may be mounted elsewhere on another node."""

    path: str


@runtime_checkable
class OnFiles(Protocol):
    """Say where a queue on files lies, which one it is, and how it reaches them."""

    path: str
    ops: FileOps

    @property
    def settings(self) -> Settings: ...


def note_ledger(queue: OnFiles, ledger: str) -> None:
    """Note a ledger in its queue's directory, durably, unless it is noted there already."""
    wanted = _Note(os.path.relpath(os.path.realpath(ledger), os.path.realpath(queue.path)))
    with (
        explained("noting the ledger in", queue.path),
        closing(open_root(queue.ops, queue.path, queue.settings)[0]) as root,
    ):
        with suppress(QueueConfigError):
            if _read(root) == wanted:
                return
        # CRASH: a dot file is nobody's business.
        replace_file(queue.ops, root, LEDGER, msgspec.json.encode(wanted) + b"\n", durable=True)


def noted_ledger(path: str) -> str | None:
    """Return the ledger over a queue; None where no controller has noted one.

    Raises:
        LedgerFormatError: one is noted, and there is no ledger at that place.
        QueueConfigError: the note is damaged.
    """
    with explained("reading", path), closing(Directory(current(), os.path.expanduser(path))) as root:
        found = _read(root)
    if found is None:
        return None
    ledger = os.path.normpath(os.path.join(os.path.realpath(path), found.path))
    require_ledger(ledger)
    return ledger


def require_ledger(path: str) -> None:
    """Raise LedgerFormatError where a directory is no ledger; opening one there would make it one."""
    if not os.path.exists(os.path.join(path, SETTINGS)):
        what = "is no ledger" if os.path.isdir(path) else "does not exist"
        raise LedgerFormatError(
            path, f"{what}: there is no {SETTINGS} in it; name the ledger of this run, as with --ledger"
        )


def _read(root: Directory) -> _Note | None:
    try:
        return msgspec.json.decode(read_replaced(root, LEDGER), type=_Note)
    except FileNotFoundError:
        return None
    except (CorruptRefError, *UNDECODABLE) as error:
        problem = f"has a damaged {LEDGER} ({error}): name the ledger of this run, as with --ledger"
        raise QueueConfigError(root.path, problem) from None
