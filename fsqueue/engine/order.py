"""Keep the FIFO order: a hint, inside the file that is locked.

    header, 64 bytes:  cursor  dead  epoch  swept_at
    then one stem a line (`format.lines`), in the order in which refs became pending; a line handed out before the
    cursor came to it begins with #

It may be deleted, torn, duplicated or stale at any moment; a line that is no stem is skipped, and refs that
no line names are found by a listing and named. It exists so that put and get cost O(batch), whatever the backlog.

Every method named ``_locked`` expects the caller to hold the order file's lock. Where that could not be had, since
nobody can use the file, they find an empty order and write nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from math import inf
from typing import NamedTuple

from fsqueue.disk.fileops import FileOps
from fsqueue.engine.layout import HEADER_BYTES
from fsqueue.engine.lock import OrderFile
from fsqueue.engine.order_access import UNREADABLE
from fsqueue.engine.picking import Picker
from fsqueue.format.lines import DEAD, dead_bytes_in, find_line, lines_of, stem_in, without_dead
from fsqueue.format.names import is_stem

COMPACT_BYTES = 1 << 16
_MOVED_BYTES = 1 << 21  # some milliseconds of reading and writing
_MANY_TIMES = 4
_SCAN_CHUNK_BYTES = 1 << 16
_SCAN_LIMIT_BYTES = 1 << 17
_HASH_LIMIT_BYTES = 1 << 15  # some milliseconds of hashing
_REMOTE_SCAN_LIMIT_BYTES = 1 << 21
_LINE_GUESS_BYTES = 48
_AHEAD_BYTES = 1 << 12

Writing = Callable[[Callable[[], object], list[str]], object]
Ahead = tuple[str, int, int]
"""Whole lines that were read ahead, where in them the cursor stands, and the offset in the file at which they end."""
_NOTHING: Ahead = "", 0, 0


class Header(NamedTuple):
    """Hold the order's first line.

    Attributes:
        cursor: offset of the next line to hand out.
        dead: bytes of lines after the cursor that were handed out already.
        epoch: changes when offsets change their meaning.
        swept_at: when pending/ was last listed for refs that no line names, in whole seconds.
    """

    cursor: int = HEADER_BYTES
    dead: int = 0
    epoch: int = 0
    swept_at: int = 0

    def encode(self) -> bytes:
        return b"%016d %016d %016x %012d\n" % self

    @staticmethod
    def decode(data: bytes) -> Header | None:
        """Return the header; None where the bytes are none."""
        if len(data) != HEADER_BYTES or not data.endswith(b"\n"):
            return None
        try:
            cursor, dead, epoch, swept_at = data.split()
            header = Header(int(cursor), int(dead), int(epoch, 16), int(swept_at))
        except ValueError:
            return None
        return header if header.cursor >= HEADER_BYTES else None


class Scan(NamedTuple):
    """Mark where a handle's scan for one partition stands; valid for one epoch.

    Attributes:
        doubting: until the order's end has been reached, no mark on a line is believed.
    """

    epoch: int
    offset: int
    doubting: bool = False


FIRST = Scan(-1, 0)
AFRESH = Scan(-1, 0, doubting=True)


class Order:
    """Read and write the order inside a locked `OrderFile`.

    Attributes:
        swept_at: from the header when it was last read, seconds; None before.
        incomplete: as far as this handle knows, refs may lie in pending/ that no line names.
    """

    def __init__(self, ops: FileOps, file: OrderFile) -> None:
        self._ops = ops
        self._lock = file
        self._file = file.content
        self.swept_at: int | None = None
        self._seen: tuple[Header, int] | None = None  # the header that was read last, and how long the file was
        self.incomplete = False
        self.unwritable = False  # the filesystem has refused the latest write
        self._unwritten: Header | None = None  # where this handle stands in an order that it could not write
        self._left = Header()  # the header as this handle's last take left it, and its bytes
        self._encoded: bytes | None = None
        self._ahead = _NOTHING

    def may_name_some(self) -> bool:
        """Guess, on a local mount and without the lock, whether it is worth taking that for."""
        fd = self._file.fd
        try:
            header = Header.decode(self._ops.pread(fd, HEADER_BYTES, 0)) if fd >= 0 else None
            return header is None or header.cursor < self._ops.fstat(fd).st_size
        except OSError:
            return True  # another thread has closed it, or its file is gone

    def header_locked(self) -> Header:
        """Return the header; replace a damaged one by that of an empty order."""
        file, left, kept = self._file, self._left, self._unwritten
        try:
            head = (file.head or self._ops.pread(file.fd, HEADER_BYTES, 0))[:HEADER_BYTES]
            if head == self._encoded and left.cursor <= file.size and kept is None:
                self._seen = left, file.size
                return left
            header = Header.decode(head)
        except OSError as error:
            self._fail(error)
            header = None
        if header is None or header.cursor > file.size:
            header = Header(epoch=self._new_epoch())
            self._rewrite_locked(header, b"")
        elif kept and kept.epoch == header.epoch and header.cursor < kept.cursor <= file.size:
            header = header._replace(cursor=kept.cursor)
        self.swept_at = header.swept_at
        self._seen = header, file.size
        return header

    @property
    def backlog_bytes(self) -> float:
        """Return how much there was to hand out when the header was last read, in bytes of lines; inf before."""
        if self._seen is None:
            return inf
        header, size = self._seen
        return size - header.cursor - header.dead

    def append_locked(self, stems: Iterable[str]) -> None:
        """Name these at the tail, after a blank line that ends what a torn append left behind."""
        data = lines_of(stems)
        offset = self._file.size
        if offset < HEADER_BYTES:
            data = Header(epoch=self._new_epoch(), swept_at=int(self._ops.time())).encode() + data
            offset = 0
        if self._write(data, offset):
            self._file.size = offset + len(data)

    def append_soon(self, stems: list[str]) -> None:
        """Name refs that have come back to pending/ at the tail; where the lock cannot be had, a sweep finds them."""
        if not stems:
            return
        with self._lock.soon as held:
            if held:
                self.append_locked(stems)
            else:
                self.incomplete = True

    def take_locked(self, count: int, writing: Writing | None = None) -> list[str]:
        """Hand out the next count stems and move the cursor past them; fewer where the order ends.

        Where the header is as this handle's last take left it, nobody has taken a place since: so the lines are next
        that were read then and not handed out, and it pays to read some more.

        Args:
            writing: called with what writes the cursor, for it to call, and with the stems.
        """
        header, size = self.header_locked(), self._file.size
        cursor, dead, epoch, swept_at = header
        lines, self._ahead = self._ahead, _NOTHING
        alone = header is self._left and lines[2] <= size
        text, at, end = lines if alone else _NOTHING
        stems: list[str] = []
        while len(stems) < count and cursor < size:
            if at >= len(text):
                wanted = 128 + (count - len(stems)) * _LINE_GUESS_BYTES
                data = self._whole_lines(cursor, max(wanted, _AHEAD_BYTES) if alone else wanted)
                if not data:
                    break
                text, at, end = data.decode("ascii", "replace"), 0, cursor + len(data)
            found = find_line(text, at)
            after = found.end() if found else len(text)
            if dead:
                dead -= dead_bytes_in(text[at:after])
            cursor += after - at
            at = after
            if found and is_stem(stem := found[1]):
                stems.append(stem)
        left = Header(min(cursor, size), max(dead, 0), epoch, swept_at)
        ahead = (text, at, end) if alone else _NOTHING
        if writing is None:
            self._leave_locked(left, header, ahead)
        else:
            writing(partial(self._leave_locked, left, header, ahead), stems)
        return stems

    def _leave_locked(self, header: Header, before: Header, ahead: Ahead) -> None:
        """Write the header back after a take, and keep the lines that were read ahead, if they may be used."""
        if self._advance_locked(header, before):
            self._ahead = ahead

    def take_partition_locked(self, count: int, picker: Picker, scan: Scan) -> tuple[list[str], Scan, bool]:
        """Hand out the next count stems of a partition, leaving the others where they are.

        Lines are given the marks that they lack, so that no other partition has to hash their ids again.

        Returns:
            The stems, where to go on the next time, and whether the scan reached the order's end.
        """
        header, self._ahead = self.header_locked(), _NOTHING
        offset, remote = header.cursor, self._file.remote
        if scan.epoch == header.epoch and scan.offset <= self._file.size:
            offset = max(offset, scan.offset)
        stop = offset + (_REMOTE_SCAN_LIMIT_BYTES if remote else _SCAN_LIMIT_BYTES)
        stems: list[str] = []
        dead = header.dead
        while (wanted := count - len(stems)) and offset < min(stop, self._file.size):
            data = self._whole_lines(offset, min(_SCAN_CHUNK_BYTES, 128 + wanted * picker.count * _LINE_GUESS_BYTES))
            if not data:
                offset = self._file.size  # cut shorter by another holder of a lock that does not exclude
                break
            if not remote and (scan.doubting or not picker.is_quick(data)):
                data = data[: data.rfind(b"\n", 0, _HASH_LIMIT_BYTES) + 1] or data
                stop = min(stop, offset + _HASH_LIMIT_BYTES)
            marked = picker.filled(data)
            found = list(islice(picker.picked(marked, scan.doubting), wanted))
            taken, used, dead_bytes = self._mark_locked(data, marked, found, offset)
            stems += taken
            offset += used if len(found) == wanted else len(data)
            dead += dead_bytes
        self._advance_locked(self._skip_dead_locked(header._replace(dead=dead)), header)
        at_end = offset >= self._file.size
        return stems, Scan(header.epoch, offset, scan.doubting and not at_end), at_end

    def read_on_locked(self, at: Scan, most_bytes: int) -> tuple[bytes, Scan, int]:
        """Read lines from where an earlier reading ended, or from the cursor.

        Returns:
            The lines, where they end, and how many bytes of lines come behind them.
        """
        header = self.header_locked()
        offset = max(at.offset, header.cursor) if at.epoch == header.epoch else header.cursor
        data = self._whole_lines(offset, most_bytes)
        end = offset + len(data)
        return data, Scan(header.epoch, end), max(0, self._file.size - end) if data else 0

    def swept_locked(self, now: float) -> None:
        """Note that pending/ has been compared with the order."""
        self._write(self.header_locked()._replace(swept_at=int(now)).encode(), 0)

    def _mark_locked(self, data: bytes, marked: bytes, found: list[int], offset: int) -> tuple[list[str], int, int]:
        """Mark as dead the lines that begin at the places found, and write what differs from the order's data.

        Returns:
            Their stems, the bytes of data up to the end of the last line found, and the bytes marked dead.
        """
        stems: list[str] = []
        changed = bytearray(marked)
        end = dead_bytes = 0
        for at in found:
            end = marked.find(b"\n", at) + 1 or len(marked)
            stem = _stem(marked[at:end])
            if stem is not None:
                stems.append(stem)
                changed[at] = DEAD
                dead_bytes += end - at
        if marked != data:
            self._write(bytes(changed), offset)
        elif stems:
            self._write(bytes(changed[found[0] : found[-1] + 1]), offset + found[0])
        return stems, end, dead_bytes

    def _skip_dead_locked(self, header: Header) -> Header:
        """Move the cursor past dead lines that it has come to."""
        cursor, dead = header.cursor, header.dead
        for line in self._lines(cursor, 4096) if dead else ():
            if line[0] != DEAD and line != b"\n":
                break
            cursor += len(line)
            dead -= len(line) if line[0] == DEAD else 0
        return header._replace(cursor=min(cursor, self._file.size), dead=max(dead, 0))

    def _advance_locked(self, header: Header, before: Header) -> bool:
        """Write the header back, and drop the lines that were handed out once they are most of the file.

        Return whether it was written, and offsets mean what they meant before.
        """
        consumed = header.cursor - HEADER_BYTES + header.dead
        left = self._file.size - HEADER_BYTES - consumed
        if consumed > max(COMPACT_BYTES, left if left < _MOVED_BYTES else _MANY_TIMES * left):
            rest = self._read(self._file.size - header.cursor, header.cursor)
            if header.dead:
                rest = without_dead(rest)
            written = self._rewrite_locked(Header(epoch=self._new_epoch(), swept_at=header.swept_at), rest)
            self._unwritten = None if written else header
            return False
        encoded = header.encode()
        written = header == before or self._write(encoded, 0)
        self._unwritten = None if written else header
        if written:
            self._left, self._encoded = header, encoded
        return written

    def _rewrite_locked(self, header: Header, lines: bytes) -> bool:
        """Write all of the file.

        CRASH: after the write and before the truncation, old lines follow the new: names handed out twice.
        """
        if not self._write(header.encode() + lines, 0):
            return False
        try:
            self._ops.ftruncate(self._file.fd, HEADER_BYTES + len(lines))
        except OSError as error:
            self._fail(error)
            return False
        self._file.size = HEADER_BYTES + len(lines)
        return True

    def _write(self, data: bytes, offset: int) -> bool:
        """Write into the order, if the filesystem lets it: a full disk costs the hint and nothing else."""
        file = self._file
        file.head, file.is_written = b"", True
        try:
            self._ops.pwrite_all(file.fd, data, offset)
        except OSError as error:
            self.unwritable = self.incomplete = True
            if error.errno in UNREADABLE:
                file.fail(error)
            return False
        self.unwritable = False
        return True

    def _read(self, count: int, offset: int) -> bytes:
        try:
            return self._ops.pread(self._file.fd, count, offset)
        except OSError as error:
            self._fail(error)
            return b""

    def _fail(self, error: OSError) -> None:
        """Go on as with an empty order that cannot be written; the next hold finds a fresh file."""
        self.unwritable = self.incomplete = True
        self._file.fail(error)

    def _lines(self, offset: int, wanted: int) -> list[bytes]:
        return self._whole_lines(offset, wanted).splitlines(keepends=True)

    def _whole_lines(self, offset: int, wanted: int) -> bytes:
        """Read whole lines from offset on, at least one; the last of the file counts as whole."""
        while True:
            wanted = min(wanted, max(0, self._file.size - offset))
            head = self._file.head
            data = head[offset : offset + wanted] if offset + wanted <= len(head) else self._read(wanted, offset)
            if offset + len(data) >= self._file.size or len(data) < wanted:
                return data
            end = data.rfind(b"\n") + 1
            if end:
                return data[:end]
            wanted *= 4

    def _new_epoch(self) -> int:
        return int(self._ops.random() * 2**53)


def _stem(line: bytes) -> str | None:
    """Return the stem on a line; None for a blank, dead, torn or foreign one."""
    return stem_in(str(line, "ascii", "replace").rstrip("\n"))
