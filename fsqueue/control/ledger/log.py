"""Append durably to a log that several processes and nodes write: the ground that the ledger stands on.

    acquire  take the lock, read what others wrote since, hand it over (log_reader.py)
    append   one record, one write, one fsync; under the lock
    replace  switch to a new file that says the same in fewer bytes; under the lock

What is left of a write that never returned is cut off before the next append.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

from fsqueue.control.ledger.files import read_to_end
from fsqueue.control.ledger.log_reader import FLAGS, LogReader, seal
from fsqueue.format import framing

_SPARE_BYTES = (1 << 18, 1 << 20)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Log(LogReader):
    """Append to one log of a ledger. Not thread-safe: its store has a mutex."""

    _size_bytes = 0
    _synced_bytes = 0
    _tainted = False  # an fsync of this file has failed

    def append(self, body: bytes) -> int:
        """Write one record, durably, and return its offset; the caller holds the lock. It is not handed over.

        On an error the log is as before. A failed fsync leaves open what the disk has, and repeating it could report
        success for data that the kernel has dropped: the record then goes into a new file, with all before it.
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
        """Switch to a new file of these records; the caller holds the lock, and appends no more while it does."""
        content = b"".join(framing.frame(body) for body in bodies)
        self._switch(content)
        self.end_bytes = self._synced_bytes = len(content)

    def _open(self, name: str) -> None:
        super()._open(name)
        self._size_bytes = 0
        self._tainted = False
        self._synced_bytes = self.end_bytes

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
        if self._files.durable and end > self._size_bytes:
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
        if self._files.durable:
            try:
                self._ops.fsync(self.fd)
            except OSError:
                return False
        return True

    # -- switching files ----------------------------------------------------------------------------------------

    def _start_over(self, data: bytes) -> None:
        """Put data, and all records before it, into a new file."""
        try:
            self._torn = True  # data stands in the old file, too, where nobody must find it
            kept = read_to_end(self._ops, self.fd, 0)[: self.end_bytes]
            if len(kept) < self.end_bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._switch(kept + data)
        except OSError:
            if self._next is None:
                self._cut_back()
            raise

    def _switch(self, content: bytes) -> None:
        """Make a new file of this content the current one, without reading it back.

        CRASH: before the seal, the new file is an orphan that a later switch removes; after it, whoever reads the
        seal sets the pointer before writing to the new file. The seal need not survive a power cut: nobody has
        the old file open then, and the pointer decides.
        """
        name = self._files.write(content)
        try:
            new_fd = self._ops.open(name, FLAGS, dir_fd=self._root.fd)
        except OSError:
            self._files.discard(name)
            raise
        try:
            self._seal(name)
            self._files.point_at(name)
        except BaseException:
            self._ops.close_read(new_fd)
            if self._next is None:
                self._files.discard(name)
            raise
        # The former descriptor stays open and locked until release.
        self.fd = new_fd
        self._set_name(name)
        self._size_bytes = len(content)
        self._torn = self._tainted = False
        self._files.discard_others(name)

    def _seal(self, name: str) -> None:
        """Tell those that have this file open where it goes on."""
        self._cut_torn_tail()
        try:
            self._ops.pwrite_all(self.fd, framing.frame(seal(name)), self.end_bytes)
            self._next = name
        except BaseException:
            if self._next is None:
                self._cut_back()
            raise
