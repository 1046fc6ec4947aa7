"""Following one append-only log that several processes and nodes write: its lock, and what is new in it.

A log is read and written only under the lock of its segment, which is the segment's own flock: that excludes, and on
NFS it makes the content fresh. A record that verifies was written whole; what follows the last one that does is the
rest of a write that never returned. A segment whose last record is ``{"next": ...}``, the seal, takes no more: whoever
reads it goes on in the next one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

import msgspec

from fsqueue.control.errors import LedgerDamagedError, LedgerFormatError
from fsqueue.control.ledger.files import Segments
from fsqueue.control.ledger.flock import wait_for_lock
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.format import framing

FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_NEXT = b'"next":'
_LOOK_BYTES = 4096
_CHUNK_BYTES = 1 << 22

Spans = list[tuple[int, int]]
Reader = Callable[[bytes, Spans, int], None]


class _Seal(msgspec.Struct):
    next: str


class Follower:
    """One process's view of a log, which it may write to while it holds the lock.

    Attributes:
        fd, name: the current segment.
        last_bytes: where the last record begins.
        end_bytes: where the next record goes.
    """

    def __init__(self, ops: FileOps, root: Directory, kind: str, durable: bool, lock_timeout_s: float) -> None:
        self.fd = -1
        self.name = ""
        self.last_bytes = 0
        self.end_bytes = 0
        self._ops = ops
        self._root = root
        self._segments = Segments(ops, root, kind, durable)
        self._reader: Reader
        self._begin: Callable[[], int]
        self._lock_timeout_s = lock_timeout_s
        self._path = ""
        self._next: str | None = None
        self._torn = False

    def on_read(self, reader: Reader, begin: Callable[[], int]) -> None:
        """Say who gets the records.

        Args:
            reader: called as ``reader(data, spans, offset)``, in order: for each (start, end) of spans,
                ``data[start:end]`` is a record; offset is where data begins in the segment.
            begin: called when a segment is about to be read, from the offset that it returns; what was read before
                is void.
        """
        self._reader, self._begin = reader, begin

    def read(self, size_bytes: int, offset: int) -> bytes:
        """Bytes of the current segment; needs no lock, since what was once written there stays."""
        return self._ops.pread(self.fd, size_bytes, offset)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._ops.close(fd)

    # -- the lock -----------------------------------------------------------------------------------------------

    def acquire(self) -> int:
        """Lock the current segment and read what was written since; returns the descriptor to release.

        Raises:
            LedgerLockedError: the lock could not be had within lock_timeout_s seconds.
            LedgerDamagedError: a record in the middle of the file does not verify.
        """
        since = self._ops.monotonic()
        while True:
            if self.fd < 0:
                self._open_current()
            try:
                wait_for_lock(self._ops, self.fd, self._path, since, self._lock_timeout_s)
                try:
                    if self._ops.fstat(self.fd).st_nlink and self._read_on():
                        return self.fd
                    self._complete_switch()
                except BaseException:
                    self.release(self.fd)
                    raise
                self.release(self.fd)
            except OSError as error:
                if error.errno != errno.ESTALE or self._ops.monotonic() - since >= self._lock_timeout_s:
                    raise
            self.close()

    def release(self, locked_fd: int) -> None:
        """Unlock the segment that acquire locked, which this log may have left meanwhile.

        Where unlocking fails, closing the file does it, and what was written stays written: nobody need know.
        """
        try:
            self._ops.unlock(locked_fd)
        except OSError:
            if locked_fd == self.fd:
                self.fd = -1
            with suppress(OSError):
                self._ops.close(locked_fd)
            return
        if locked_fd != self.fd:
            with suppress(OSError):
                self._ops.close(locked_fd)

    def _open_current(self) -> None:
        """Open the segment that the pointer names, to be read from its start."""
        while True:
            name = self._segments.current()
            try:
                self._open(name)
                return
            except FileNotFoundError:
                # RACE: another process may have switched since the pointer was read, and unlinked the file.
                if self._segments.current() == name:
                    raise LedgerFormatError(self._root.path, f"has lost its {name}: restore it") from None

    def _open(self, name: str) -> None:
        self.fd = self._ops.open(name, FLAGS, dir_fd=self._root.fd)
        self._set_name(name)
        self.last_bytes = 0
        self._torn = False
        self.end_bytes = self._begin()

    def _set_name(self, name: str) -> None:
        self.name, self._path = name, os.path.join(self._root.path, name)
        self._next = None

    def _complete_switch(self) -> None:
        """Let the pointer follow the seal, where whoever wrote the seal died before doing so.

        RACE: only under the sealed segment's lock may its successor be entered for it, and only for it: nobody can
        have switched again before that.
        """
        if self._next is not None and self._segments.current() == self.name:
            self._segments.point_at(self._next)

    # -- reading ------------------------------------------------------------------------------------------------

    def _read_on(self) -> bool:
        """Hand what is new to the reader; False where the segment turns out to be sealed."""
        wanted = _LOOK_BYTES
        while self._next is None:
            data = self._ops.pread(self.fd, wanted, self.end_bytes)
            if data[:1] in (b"", b"\n"):
                self._torn = False
                return True
            if self._hand_over(data) or wanted < _CHUNK_BYTES:
                wanted = _CHUNK_BYTES
            else:
                rest = self._read_all(self.end_bytes)
                if not self._hand_over(rest):
                    self._check_tail(rest)
                    return True
        return False

    def _hand_over(self, data: bytes) -> bool:
        """Hand the whole records at the beginning of data, which was read at the end, to the reader."""
        spans = framing.scan(data)
        if not spans:
            return False
        seal = _seal_in(data, *spans[-1])
        if seal is not None:
            spans.pop()
        if spans:
            self._reader(data, spans, self.end_bytes)
            self.last_bytes = self.end_bytes + spans[-1][0]
            self.end_bytes += spans[-1][1]
        self._next = seal
        return True

    def _check_tail(self, rest: bytes) -> None:
        """Tell the torn end of a write that never returned from damage in the middle."""
        later = framing.find_later(rest)
        if later is not None:
            problem = f"this does not verify, though a transaction {later} bytes later does"
            raise LedgerDamagedError(self._root.path, self.name, self.end_bytes, problem)
        self._torn = True

    def _read_all(self, offset: int) -> bytes:
        parts = [self._ops.pread(self.fd, _CHUNK_BYTES, offset)]
        while parts[-1]:
            offset += len(parts[-1])
            parts.append(self._ops.pread(self.fd, _CHUNK_BYTES, offset))
        return b"".join(parts)


def seal(name: str) -> bytes:
    """The record that ends a segment, which goes on in the one named."""
    return _NEXT + msgspec.json.encode(name)


def _seal_in(data: bytes, start: int, end: int) -> str | None:
    """The segment that a record names as the next one; None where the record is no seal."""
    if not data.startswith(_NEXT, start + framing.PREFIX_BYTES):
        return None
    return msgspec.json.decode(framing.fields(data, start, end), type=_Seal).next
