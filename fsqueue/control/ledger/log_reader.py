"""Lock one append-only log that several processes and nodes write, and read what is new in it.

A log is read and written only under the flock of its current file: that excludes others, and on NFS it makes the
content fresh. A record that verifies was written whole; what follows the last one that does is the rest of a write
that never returned. A file whose last record is ``{"next": ...}``, the seal, takes no more: whoever reads it goes on
in the next one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

import msgspec

from fsqueue.control.errors import LedgerDamagedError, LedgerFormatError
from fsqueue.control.ledger.files import CHUNK_BYTES, LogFiles, read_to_end
from fsqueue.control.ledger.flock import wait_for_lock
from fsqueue.format import framing

FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_NEXT = b'"next":'
_LOOK_BYTES = 4096

Spans = list[tuple[int, int]]
Receiver = Callable[[bytes, Spans, int], None]


class _Seal(msgspec.Struct):
    next: str


class LogReader:
    """Follow a log for one process, which may write to it while it holds the lock.

    Args:
        receive: called with new records as ``receive(data, spans, offset)``, in order: for each (start, end) of
            spans, ``data[start:end]`` is a record; offset is where data begins in the file.
        begin: called when a file is about to be read, from the offset that it returns; what was read before is void.

    Attributes:
        fd, name: the current file.
        last_bytes: where the last record begins.
        end_bytes: where the next record goes.
    """

    def __init__(self, files: LogFiles, lock_timeout_s: float, receive: Receiver, begin: Callable[[], int]) -> None:
        self.fd = -1
        self.name = ""
        self.last_bytes = 0
        self.end_bytes = 0
        self._ops = files.ops
        self._root = files.root
        self._files = files
        self._lock_timeout_s = lock_timeout_s
        self._receive = receive
        self._begin = begin
        self._path = ""
        self._next: str | None = None
        self._torn = False
        self._locked_fd = -1

    def read(self, size_bytes: int, offset: int) -> bytes:
        """Return bytes of the current file; needs no lock, since what was once written there stays."""
        return self._ops.pread(self.fd, size_bytes, offset)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if fd == self._locked_fd:
                self._locked_fd = -1
            self._ops.close_written(fd)

    def drop(self) -> None:
        """Unlock and close what is open, in whatever state an interrupted call has left it."""
        self.release()
        self.close()

    # -- the lock -----------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Lock the current file and read what was written since; `release` ends it.

        Raises:
            LedgerLockedError: the lock could not be had within lock_timeout_s seconds.
            LedgerDamagedError: a record in the middle of the file does not verify.
        """
        since = self._ops.monotonic()
        while True:
            if self.fd < 0:
                self._open_current()
            try:
                self._locked_fd = self.fd
                try:
                    wait_for_lock(self._ops, self.fd, self._path, since, self._lock_timeout_s)
                    if self._ops.fstat(self.fd).st_nlink and self._read_on():
                        return
                    self._complete_switch()
                except BaseException:
                    self.release()
                    raise
                self.release()
            except OSError as error:
                if error.errno != errno.ESTALE or self._ops.monotonic() - since >= self._lock_timeout_s:
                    raise
            self.close()

    def release(self) -> None:
        """Unlock the file that acquire locked, which this log may have left meanwhile.

        Where unlocking fails, closing the file does it, and what was written stays written: nobody need know.
        """
        locked_fd = self._locked_fd
        if locked_fd < 0:
            return  # it was closed, by a signal handler that ran in the midst of the block
        try:
            self._ops.unlock(locked_fd)
        except OSError:
            if locked_fd == self.fd:
                self.fd = -1
        self._locked_fd = -1
        if locked_fd != self.fd:
            with suppress(OSError):
                self._ops.close(locked_fd)

    def _open_current(self) -> None:
        """Open the file that the pointer names, to be read from its start."""
        while True:
            name = self._files.current()
            try:
                self._open(name)
                return
            except FileNotFoundError:
                # RACE: another process may have switched since the pointer was read, and unlinked the file.
                if self._files.current() == name:
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

        RACE: only under the sealed file's lock may its successor be entered for it, and only for it: nobody can
        have switched again before that.
        """
        if self._next is not None and self._files.current() == self.name:
            self._files.point_at(self._next)

    # -- reading ------------------------------------------------------------------------------------------------

    def _read_on(self) -> bool:
        """Hand over what is new; False where the file turns out to be sealed."""
        wanted = _LOOK_BYTES
        while self._next is None:
            data = self._ops.pread(self.fd, wanted, self.end_bytes)
            if data[:1] in (b"", b"\n"):
                self._torn = False
                return True
            if self._hand_over(data) or wanted < CHUNK_BYTES:
                wanted = CHUNK_BYTES
            else:
                rest = read_to_end(self._ops, self.fd, self.end_bytes)
                if not self._hand_over(rest):
                    self._check_tail(rest)
                    return True
        return False

    def _hand_over(self, data: bytes) -> bool:
        """Hand over the whole records with which data begins, as read from end_bytes on; False where none is."""
        spans = framing.scan(data)
        if not spans:
            return False
        seal = _seal_in(data, *spans[-1])
        if seal is not None:
            spans.pop()
        if spans:
            self._receive(data, spans, self.end_bytes)
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


def seal(name: str) -> bytes:
    """Return the record that ends a file and names the one in which the log goes on."""
    return _NEXT + msgspec.json.encode(name)


def _seal_in(data: bytes, start: int, end: int) -> str | None:
    """Return the file that a record names as the next one; None where the record is no seal."""
    if not data.startswith(_NEXT, start + framing.PREFIX_BYTES):
        return None
    return msgspec.json.decode(framing.fields(data, start, end), type=_Seal).next
