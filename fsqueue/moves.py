"""The moves a ref can make, one rename each: the protocol's heart.

    put:      tmp/     -> pending/             release, fail, expire: leased/ -> pending/ or failed/
    claim:    pending/ -> leased/@me           take over:             leased/@other -> leased/@me
    ack:      leased/  -> done/                requeue, rewind:       failed/, done/ -> leased/@me -> pending/

Invariant: a ref has one directory entry among pending/ and leased/ at every instant, since each move is one
rename(2) of that entry and bookkeeping is written into the file that the entry names. Every move returns
whether this process made it; of several that try, one gets True.
"""

from __future__ import annotations

import errno
import itertools
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from fsqueue import names
from fsqueue.clock import Clock
from fsqueue.codec import Bookkeeping, Event, bookkeeping_tail, split, wrap_raw
from fsqueue.errors import CorruptRefError
from fsqueue.fileops import Directory, explained, move, silently_remove
from fsqueue.layout import Layout

Change = Callable[[Bookkeeping], None]


class Moves:
    """The moves, made in one owner's name."""

    def __init__(self, layout: Layout, clock: Clock, owner: str, durable: bool) -> None:
        self._ops = layout.ops
        self._layout = layout
        self._clock = clock
        self._owner = owner
        self._durable = durable
        self._serial = itertools.count()

    def write_new(self, contents: list[bytes]) -> list[str]:
        """Write files into tmp/ and make them durable; returns their names. On an error none is left."""
        written: list[str] = []
        fds: list[int] = []
        try:
            create, close, tmp_fd = self._ops.create, self._ops.close, self._layout.tmp.fd
            for data in contents:
                name = f"{self._owner}.{next(self._serial)}"
                written.append(name)
                fd = create(tmp_fd, name, data)
                if not self._durable:
                    close(fd)
                else:
                    fds.append(fd)
                    if len(fds) == 256:
                        self._sync_and_close(fds)
            self._sync_and_close(fds)
        except BaseException:
            for fd in fds:
                self._close_quietly(fd)
            silently_remove(self._ops, self._layout.tmp.fd, written)
            raise
        return written

    def _sync_and_close(self, fds: list[int]) -> None:
        self._ops.each(self._ops.fsync, fds)
        while fds:
            self._ops.close(fds.pop())

    def _close_quietly(self, fd: int) -> None:
        with suppress(OSError):  # the error that led here is the one to report
            self._ops.close(fd)

    def publish(self, tmp_name: str, stem: str) -> None:
        """tmp/ -> pending/."""
        self._ops.rename(
            tmp_name, names.ref_file(stem), src_dir_fd=self._layout.tmp.fd, dst_dir_fd=self._layout.pending.fd
        )

    def claim(self, stem: str) -> bool:
        """pending/ -> leased/@me; the stamp comes first, since a rename keeps the old mtime.

        RACE: the stamp may land on a file that another owner claims meanwhile: it prolongs that lease once.
        CRASH: a stamped file in pending/ is an ordinary pending ref.
        """
        pending, name = self._layout.pending, names.ref_file(stem)
        try:
            self._clock.stamp(pending, name)
        except FileNotFoundError:
            # NFS: this may be a remembered miss of a name that exists by now.
            pending.refresh()
            try:
                self._clock.stamp(pending, name)
            except FileNotFoundError:
                return False
        return move(pending, name, self._layout.leased, names.leased_file(stem, self._owner))

    def take_over(self, stem: str, owner: str) -> bool:
        """leased/@owner -> leased/@me: whatever the former owner does next finds the name gone.

        The file is not stamped first, so that its mtime still tells whether the owner renewed it meanwhile.
        """
        if owner == self._owner:
            return True
        leased = self._layout.leased
        return move(leased, names.leased_file(stem, owner), leased, names.leased_file(stem, self._owner))

    def hand_back(self, stem: str, owner: str) -> bool:
        """Undo a take-over: leased/@me -> leased/@owner."""
        if owner == self._owner:
            return True
        leased = self._layout.leased
        return move(leased, names.leased_file(stem, self._owner), leased, names.leased_file(stem, owner))

    def finish(self, source: Directory, name: str, stem: str, step: int | None, keep: bool) -> bool:
        """leased/ or pending/ -> done/, or gone where done files are not kept."""
        if keep:
            return move(source, name, self._layout.done, names.done_file(stem, step))
        if self._ops.remove(source.fd, name):
            return True
        source.refresh()  # NFS: as in claim
        return self._ops.remove(source.fd, name)

    def give_back(self, stem: str) -> bool:
        """leased/@me -> pending/."""
        return move(self._layout.leased, self._mine(stem), self._layout.pending, names.ref_file(stem))

    def bury(self, stem: str) -> bool:
        """leased/@me -> failed/."""
        return move(self._layout.leased, self._mine(stem), self._layout.failed, names.ref_file(stem))

    def rename_leased(self, stem: str, new_stem: str) -> bool:
        """leased/@me under one name -> leased/@me under another."""
        return move(self._layout.leased, self._mine(stem), self._layout.leased, self._mine(new_stem))

    def annotate(self, stem: str, change: Change) -> Bookkeeping | None:
        """Change the bookkeeping of a ref that is leased to this owner; None where the lease is gone.

        The file is written in place, from the ref's closing brace on. So it never has two names, not even
        where this process is stopped here for longer than the lease: then the late write adds history to a
        file that another owner holds by now, and the move that follows finds the name gone.
        """
        leased, name = self._layout.leased, self._mine(stem)
        try:
            fd = self._ops.open_for_update(leased.fd, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                return self._replace(stem, b"", change)
            raise
        try:
            with explained("updating", f"{leased.path}/{name}"):
                return self._annotate_open(fd, stem, change)
        finally:
            self._ops.close(fd)

    def _annotate_open(self, fd: int, stem: str, change: Change) -> Bookkeeping:
        try:
            data = self._ops.read_regular(fd)
        except CorruptRefError:
            return self._replace(stem, b"", change)
        try:
            offset, bookkeeping = split(data)
        except CorruptRefError:
            return self._replace(stem, data, change)
        change(bookkeeping)
        try:
            self._ops.update_in_place(fd, bookkeeping_tail(bookkeeping), offset)
            if self._durable:
                self._ops.fsync(fd)
        except OSError:
            self._restore(fd, data, offset)
            raise
        return bookkeeping

    def _restore(self, fd: int, data: bytes, offset: int) -> None:
        """Put back what a failed update may have overwritten; where that fails too, only history is torn."""
        with suppress(OSError):  # the update's own error is the one to report
            self._ops.update_in_place(fd, data[offset:], offset)

    def _replace(self, stem: str, data: bytes, change: Change) -> Bookkeeping:
        """Wrap bytes that are no JSON object into a dead letter, under the same leased name."""
        bookkeeping = Bookkeeping()
        change(bookkeeping)
        bookkeeping.reason = bookkeeping.reason or "the file holds no JSON object"
        (tmp_name,) = self.write_new([wrap_raw(data, bookkeeping)])
        try:
            self._ops.rename(
                tmp_name, self._mine(stem), src_dir_fd=self._layout.tmp.fd, dst_dir_fd=self._layout.leased.fd
            )
        except OSError as error:
            silently_remove(self._ops, self._layout.tmp.fd, [tmp_name])
            if error.errno not in (errno.EISDIR, errno.ENOTEMPTY):  # a directory in the file's place moves as it is
                raise
        return bookkeeping

    def holders(self) -> dict[str, list[str]]:
        """Stem to the owners that lease it (one, unless the lock did not exclude), by one listing."""
        found: dict[str, list[str]] = defaultdict(list)
        for name in self._layout.leased.listing():
            parsed = names.parse_leased(name)
            if parsed:
                found[parsed[0]].append(parsed[1])
        return found

    def _mine(self, stem: str) -> str:
        return names.leased_file(stem, self._owner)


def record(event: str, at: float, owner: str | None, reason: str | None = None, attempt: bool = False) -> Change:
    """A change that adds an event to a ref's history, and counts an attempt where it is one."""

    def change(bookkeeping: Bookkeeping) -> None:
        bookkeeping.attempts += attempt
        bookkeeping.add(Event(event, at, owner, reason))

    return change
