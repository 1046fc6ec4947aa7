"""Change a ref's bookkeeping, inside the file that it has while it is leased."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from fsqueue.disk import fileops
from fsqueue.disk.directory import located, locating
from fsqueue.disk.fileops import explained, silently_remove
from fsqueue.disk.publish import write_file
from fsqueue.engine.arrival import is_gone, patiently
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import Layout
from fsqueue.errors import CorruptRefError, TooLongError
from fsqueue.format.codec import REPLACED, Bookkeeping, Event, bookkeeping_tail, split, wrap_raw

Change = Callable[[Bookkeeping], None]

NO_SUCH_REPLACEMENT = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)
"""What a rename says where a directory is at its target."""


class Annotations:
    """Write into refs that are leased to one owner.

    Args:
        tmp_names: names in tmp/ that nobody else uses.
    """

    def __init__(self, layout: Layout, durable: bool, tmp_names: Iterator[str]) -> None:
        self._ops = layout.ops
        self._layout = layout
        self._durable = durable
        self._tmp_names = tmp_names

    def annotate(self, claim: Claim, change: Change) -> Bookkeeping | None:
        """Change the bookkeeping of a ref that is leased to this owner; None where the lease is gone.

        The file is written in place, from the ref's closing brace on, so it never has two names. A process that
        is stopped here for longer than the lease adds history to a file that another owner holds by then, and the
        move that follows finds the name gone.
        """
        leased, name = self._layout.leased, claim.name
        try:
            fd = patiently(lambda: self._ops.open_for_update(leased.fd, name))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                return self._replace(claim, b"", change)
            if not is_gone(self._layout, leased, name, error):
                located(error, leased)
                raise
            return None
        try:
            with explained("updating", f"{leased.path}/{name}"):
                return self._annotate_open(fd, claim, change)
        finally:
            self._ops.close_written(fd)

    def _annotate_open(self, fd: int, claim: Claim, change: Change) -> Bookkeeping:
        try:
            data = self._ops.read_regular(fd)
        except TooLongError as error:
            return _unwritten(change, error.reason)
        except CorruptRefError:
            return self._replace(claim, b"", change)
        try:
            offset, bookkeeping = split(data)
        except CorruptRefError:
            return self._replace(claim, data, change)
        change(bookkeeping)
        tail = bookkeeping_tail(bookkeeping)
        if offset + len(tail) > fileops.FILE_LIMIT_BYTES:
            bookkeeping.reason = bookkeeping.reason or "no room is left in the file for its history"
            return bookkeeping
        try:
            claim.begin_stamp(self._ops.monotonic())
            self._layout.reserve.retrying(lambda: self._update(fd, tail, offset, len(data)))
            claim.stamped_by = self._ops.monotonic()
        except OSError:
            with suppress(OSError):  # the update's own error is the one to report; what is torn now still decodes
                self._ops.update_in_place(fd, data[offset:], offset, offset + len(tail))
            raise
        return bookkeeping

    def _update(self, fd: int, tail: bytes, offset: int, size: int) -> None:
        self._ops.update_in_place(fd, tail, offset, size)
        if self._durable:
            self._ops.fsync(fd)

    def _replace(self, claim: Claim, data: bytes, change: Change) -> Bookkeeping:
        """Wrap bytes that are no JSON object into a dead letter, under the same leased name."""
        bookkeeping = _unwritten(change, "the file holds no JSON object")
        letter = wrap_raw(data, bookkeeping)
        if len(letter) <= fileops.FILE_LIMIT_BYTES:  # else nobody could read the letter
            self._write_anew(claim, letter)
        return bookkeeping

    def part(self, claim: Claim) -> None:
        """Give a ref that is leased to this owner a file of its own, where other names stand for the same file.

        CRASH: POSIX lets a power cut leave both names of a rename. They are hard links, and a rename of one onto
        the other does nothing and reports success.
        """
        self._write_anew(claim, self._ops.read_file(self._layout.leased.fd, claim.name))

    def _write_anew(self, claim: Claim, data: bytes) -> None:
        claim.begin_stamp(self._ops.monotonic())
        tmp_name = next(self._tmp_names)
        write = partial(write_file, self._ops, self._layout.tmp.fd, tmp_name, data, self._durable)
        with locating(self._layout.tmp):
            self._layout.reserve.retrying(write)
        try:
            self._ops.rename(tmp_name, claim.name, src_dir_fd=self._layout.tmp.fd, dst_dir_fd=self._layout.leased.fd)
        except OSError as error:
            silently_remove(self._ops, self._layout.tmp.fd, [tmp_name])
            if error.errno not in NO_SUCH_REPLACEMENT:  # a directory in the file's place moves as it is
                located(error, self._layout.tmp, self._layout.leased)
                raise


def _unwritten(change: Change, reason: str) -> Bookkeeping:
    """Return what a dead letter's bookkeeping would say, for a file that keeps the bytes that it has."""
    bookkeeping = Bookkeeping()
    change(bookkeeping)
    bookkeeping.reason = bookkeeping.reason or reason
    return bookkeeping


def changed(data: bytes, change: Change) -> bytes:
    """Return a ref's bytes with its bookkeeping changed; bytes that hold no ref, or no room for more, as they are."""
    try:
        offset, bookkeeping = split(data)
    except CorruptRefError:
        return data
    change(bookkeeping)
    tail = bookkeeping_tail(bookkeeping)
    return data[:offset] + tail if offset + len(tail) <= fileops.FILE_LIMIT_BYTES else data


def record(event: str, at: float, holder: str | None, reason: str | None = None, attempt: bool = False) -> Change:
    """Return a change that adds an event to a ref's history, and counts it where it is an attempt or an expiry.

    Args:
        holder: of the lease that ended; where none did, the owner who caused the event.
    """

    def change(bookkeeping: Bookkeeping) -> None:
        bookkeeping.attempts += attempt
        bookkeeping.expiries += event in ("expired", REPLACED)
        bookkeeping.add(Event(event, at, holder, reason))

    return change
