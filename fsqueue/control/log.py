"""One append-only log that several processes and nodes write: the ground that the ledger stands on.

    acquire  take the lock, read what others wrote since, hand it to the reader
    append   one record, one write, one fsync; under the lock
    replace  switch to a new segment that says the same in fewer bytes; under the lock

Invariants. A log is read and written only under the lock of its segment, which is the segment's own flock: that
excludes, and on NFS it makes the content fresh. A record that verifies was written whole; what follows the last one
that does is the rest of a write that never returned, and is cut off before the next append. A segment whose last
record is ``{"next": ...}``, the seal, takes no more: whoever reads it goes on in the next one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec

from fsqueue import framing
from fsqueue.control.errors import LedgerDamagedError, LedgerFormatError
from fsqueue.control.flock import wait_for_lock
from fsqueue.control.segments import Segments
from fsqueue.directory import Directory
from fsqueue.fileops import FileOps

_LOOK_BYTES = 4096
_CHUNK_BYTES = 1 << 22
_SPARE_BYTES = (1 << 18, 1 << 20)
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEXT = b'"next":'

Spans = list[tuple[int, int]]
Reader = Callable[[bytes, Spans, int], None]


class _Seal(msgspec.Struct):
    next: str


class Log:
    """One log of a ledger. Not thread-safe: its store has a mutex.

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
        self._durable = durable
        self._lock_timeout_s = lock_timeout_s
        self._path = ""
        self._next: str | None = None
        self._size_bytes = 0
        self._synced_bytes = 0
        self._torn = False
        self._tainted = False  # an fsync of this segment has failed

    def on_read(self, reader: Reader, begin: Callable[[], int]) -> None:
        """Say who gets the records.

        Args:
            reader: called as ``reader(data, spans, offset)``, in order: for each (start, end) of spans,
                ``data[start:end]`` is a record; offset is where data begins in the segment.
            begin: called when a segment is about to be read, from the offset that it returns; what was read before
                is void.
        """
        self._reader, self._begin = reader, begin

    def append(self, body: bytes) -> int:
        """Write one record, durably, and return its offset; the caller holds the lock. The reader does not get it.

        On an error the log is as before. A failed fsync leaves open what the disk has, and repeating it could report
        success for data that the kernel has dropped: the record then goes into a new segment, with all before it.
        """
        data = framing.frame(body)
        if not self._tainted:
            self._cut_torn_tail()
            self._write(data)
            self._tainted = not self._synced()
        if self._tainted:
            self._start_over(data)
        self.last_bytes = self.end_bytes
        self.end_bytes = self._synced_bytes = self.last_bytes + len(data)
        return self.last_bytes

    def confirm(self) -> None:
        """Make durable what this process has read and not written; the caller holds the lock.

        A process that was killed between its write and its fsync leaves a record that only the page cache has.
        """
        if self._synced_bytes == self.end_bytes:
            return
        if self._tainted or not self._synced():
            self._tainted = True
            self._start_over(b"")
        self._synced_bytes = self.end_bytes

    def replace(self, bodies: Iterator[bytes]) -> None:
        """Switch to a new segment of these records; the caller holds the lock, and appends no more while it does."""
        content = b"".join(framing.frame(body) for body in bodies)
        self._switch(content)
        self.end_bytes = self._synced_bytes = len(content)

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
        self.fd = self._ops.open(name, _FLAGS, dir_fd=self._root.fd)
        self._set_name(name)
        self._size_bytes = self.last_bytes = 0
        self._torn = self._tainted = False
        self.end_bytes = self._synced_bytes = self._begin()

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

    # -- writing ------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        """Write at the end, on any error cutting back to the last whole record."""
        try:
            self._write_with_spare(data)
        except OSError as error:
            self._cut_back()
            if error.errno not in _FULL:
                raise
            # It may be the spare that did not fit.
            try:
                self._ops.pwrite_all(self.fd, data, self.end_bytes)
            except OSError:
                self._cut_back()
                raise

    def _write_with_spare(self, data: bytes) -> None:
        """Lengthen the file ahead by line feeds: an fsync that has no new length to record costs half as much."""
        end = self.end_bytes + len(data)
        if self._durable and end > self._size_bytes:
            self._size_bytes = self._ops.fstat(self.fd).st_size
            if end > self._size_bytes:
                least, most = _SPARE_BYTES
                data += b"\n" * min(most, max(least, 12 * len(data)))
        self._ops.pwrite_all(self.fd, data, self.end_bytes)
        self._size_bytes = max(self._size_bytes, self.end_bytes + len(data))

    def _cut_back(self) -> None:
        """Cut back to the last whole record; where even that fails, whoever appends next does it."""
        self._torn = True
        with suppress(OSError):
            self._cut_torn_tail()

    def _cut_torn_tail(self) -> None:
        if self._torn:
            self._ops.ftruncate(self.fd, self.end_bytes)
            self._size_bytes = self.end_bytes
            self._torn = False

    def _synced(self) -> bool:
        """Fsync where the ledger is durable; False when that failed, and then it must never be tried again."""
        if self._durable:
            try:
                self._ops.fsync(self.fd)
            except OSError:
                return False
        return True

    # -- switching segments -------------------------------------------------------------------------------------

    def _start_over(self, data: bytes) -> None:
        """Put data, and all records before it, into a new segment."""
        try:
            self._torn = True  # data stands in the old segment, too, where nobody must find it
            kept = self._read_all(0)[: self.end_bytes]
            if len(kept) < self.end_bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._switch(kept + data)
        except OSError:
            if self._next is None:
                self._cut_back()
            raise

    def _switch(self, content: bytes) -> None:
        """Make a new segment of this content the current one, without reading it back.

        CRASH: before the seal, the new file is an orphan that a later switch removes; after it, whoever reads the
        seal sets the pointer before writing to the new segment. The seal need not survive a power cut: nobody has
        the old segment open then, and the pointer decides.
        """
        name = self._segments.write(content)
        try:
            new_fd = self._ops.open(name, _FLAGS, dir_fd=self._root.fd)
        except OSError:
            self._segments.discard(name)
            raise
        try:
            self._seal(name)
            self._segments.point_at(name)
        except BaseException:
            self._ops.close(new_fd)
            if self._next is None:
                self._segments.discard(name)
            raise
        # The former descriptor stays open and locked until release.
        self.fd = new_fd
        self._set_name(name)
        self._size_bytes = len(content)
        self._torn = self._tainted = False
        self._segments.discard_others(name)

    def _seal(self, name: str) -> None:
        """Tell those that have this segment open where it goes on."""
        self._cut_torn_tail()
        try:
            self._ops.pwrite_all(self.fd, framing.frame(_NEXT + msgspec.json.encode(name)), self.end_bytes)
        except OSError:
            self._cut_back()
            raise
        self._next = name


def _seal_in(data: bytes, start: int, end: int) -> str | None:
    """The segment that a record names as the next one; None where the record is no seal."""
    if not data.startswith(_NEXT, start + framing.PREFIX_BYTES):
        return None
    return msgspec.json.decode(framing.fields(data, start, end), type=_Seal).next
