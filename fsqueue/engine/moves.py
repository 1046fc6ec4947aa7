"""Move refs, by one rename each: the protocol's heart.

    put:      tmp/     -> pending/             release, fail, expire: leased/ -> pending/ or failed/
    claim:    pending/ -> leased/@me           take over:             leased/@other -> leased/@me
    ack:      leased/  -> done/                requeue, rewind:       failed/, done/ -> leased/@me -> pending/

Invariant: a ref has one directory entry among pending/ and leased/ at every instant, since each move is one
rename(2) of that entry and bookkeeping is written into the file that the entry names. Every move returns
whether this process made it; of several that try, one gets True.

Every move into leased/ goes to a name that was never used before: it can meet no file there, nor what an NFS client
remembers of one, and whoever comes late for another lease finds no file of that name. The exceptions: `hand_back`
restores the name that the owner knows, and a rewind lets the last life of a ref replace those before.
"""

from __future__ import annotations

import errno
import itertools
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import explained, silently_remove
from fsqueue.disk.parallel import Overlap
from fsqueue.disk.publish import write_file, write_together
from fsqueue.engine.clock import Clock, FilesystemClock
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import Layout
from fsqueue.engine.reserve import is_full
from fsqueue.errors import CorruptRefError, QueueIOError, TooLongError
from fsqueue.format import names, packed
from fsqueue.format.codec import Bookkeeping, Event, bookkeeping_tail, split, wrap_raw

Change = Callable[[Bookkeeping], None]

_CTIME_GRAIN_S = 0.05
_REMOVED = ": somebody removed it, taking this process for dead; put the refs again"
_NO_SUCH_REPLACEMENT = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)


class Moves:
    """Make the moves in one owner's name."""

    def __init__(self, layout: Layout, clock: Clock, owner: str, durable: bool, overlap: Overlap) -> None:
        self._ops = layout.ops
        self._layout = layout
        self._clock = clock
        self._owner = owner
        self._durable = durable
        self._overlap = overlap
        self._serial = itertools.count()
        self._claims = itertools.count(1)

    def move(self, source: Directory, name: str, target: Directory, new_name: str, unique: bool = False) -> bool:
        """Rename a file; False where it was gone. Of several processes that move the same file, one gets True.

        NFS: an error does not say that nothing was done. An ENOENT may be a remembered miss, or the answer to a
        retransmitted rename that was done; a soft mount says EIO or ETIMEDOUT of one that it did not wait for. So
        the directories are opened afresh and the destination is looked at: the file there is this one when its name
        is unique to this claim, or when it has just arrived.
        """
        ops = self._ops
        started = ops.monotonic()
        try:
            ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
            return True
        except OSError as error:
            if not self._layout.remote and error.errno == errno.ENOENT:
                return False
            if is_full(error) and source is not self._layout.tmp and self._layout.reserve.give_up():
                return self.move(source, name, target, new_name, unique)
            source.refresh()
            target.refresh()
            if self._arrived(target, new_name, started, unique):
                return True
            if error.errno != errno.ENOENT:
                raise
        try:
            ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
            return True
        except FileNotFoundError:
            return False

    def _arrived(self, target: Directory, name: str, started: float, unique: bool) -> bool:
        """Return whether the destination is there; one whose name is not unique must be younger than this move."""
        status = self._ops.status(target.fd, name)
        if status is None or unique:
            return status is not None
        now = FilesystemClock(self._ops, self._layout.root).now()
        return status.st_ctime >= now - (self._ops.monotonic() - started) - _CTIME_GRAIN_S

    def write_new(self, contents: list[bytes]) -> list[str]:
        """Write files into tmp/ and make them durable; returns their names. On an error none is left."""
        named = [(f"{self._owner}.{next(self._serial)}", data) for data in contents]
        try:
            if self._layout.remote:
                for written in self._overlap.ahead(self._write_one, named):
                    written()
            else:
                syncs = self._overlap.syncs if self._durable else None
                write_together(self._ops, self._layout.tmp, named, syncs)
        except BaseException:
            silently_remove(self._ops, self._layout.tmp.fd, [name for name, _ in named])
            raise
        return [name for name, _ in named]

    def _write_one(self, named: tuple[str, bytes]) -> None:
        write_file(self._ops, self._layout.tmp.fd, *named, self._durable)

    def publish(self, tmp_name: str, stem: str) -> None:
        """Move tmp/ -> pending/.

        Raises:
            QueueIOError: the file was gone before, and nothing shows that it came into the queue.
        """
        self._install(tmp_name, self._layout.pending, names.ref_file(stem), stem)

    def write(self, data: bytes, directory: Directory, name: str) -> None:
        """Publish one small file by tmp + rename, in place of an older one of this name."""
        (tmp_name,) = self.write_new([data])
        try:
            self._install(tmp_name, directory, name)
        except OSError:
            silently_remove(self._ops, self._layout.tmp.fd, [tmp_name])
            raise
        if self._durable:
            directory.sync()

    def _install(self, tmp_name: str, directory: Directory, name: str, stem: str | None = None) -> None:
        """Move a file of one's own out of tmp/.

        NFS: that it is gone may mean that the rename was done, whatever it said, or that somebody removed the file
        while this process was stopped. Only a file that has come since to where it would be by now tells.
        """
        tmp, started = self._layout.tmp, self._ops.monotonic()
        if self.move(tmp, tmp_name, directory, name):
            return
        if stem is None or not (self._layout.remote and self._came_in(stem, started)):
            gone = FileNotFoundError(errno.ENOENT, "removed before it was published")
            raise QueueIOError("publishing", f"{tmp.path}/{tmp_name}", gone, _REMOVED)

    def _came_in(self, stem: str, started: float) -> bool:
        """Return whether a ref has entered the queue since then, wherever it is by now.

        RACE: it may go from one directory to another between two listings, also back, so all are looked at twice.
        """
        layout = self._layout
        for directory in 2 * (layout.pending, layout.leased, layout.done, layout.failed):
            for name in directory.listing():
                came = self._may_hold(name, stem) and self._arrived(directory, name, started, unique=False)
                if came and (packed.parse_segment(name) is None or self._is_packed_in(name, stem)):
                    return True
        return False

    def _may_hold(self, name: str, stem: str) -> bool:
        """Return whether a name is that of a ref's file, in whatever state, or of a segment."""
        aside = packed.parse_aside(name)
        ref_name = aside.ref_name if aside else name
        return ref_name.removesuffix(names.SUFFIX).partition("@")[0] == stem or packed.parse_segment(name) is not None

    def _is_packed_in(self, segment: str, stem: str) -> bool:
        try:
            data = self._ops.read_file(self._layout.done.fd, segment)
        except (FileNotFoundError, CorruptRefError):
            return False
        return any(packed.lines_of(data, stem))

    def stamp_pending(self, stem: str) -> bool:
        """Make the first step of a claim: start the lease timeout, since a rename keeps the old mtime.

        RACE: the stamp may land on a file that another owner claims meanwhile: it prolongs that lease once.
        CRASH: a stamped file in pending/ is an ordinary pending ref.
        """
        pending, name = self._layout.pending, names.ref_file(stem)
        if self._clock.stamp(pending, name):
            return True
        if not self._layout.remote:
            return False
        pending.refresh()  # NFS: it may be a remembered miss of a name that exists by now
        return self._clock.stamp(pending, name)

    def new_claim(self, stem: str, mark: str = "") -> Claim:
        """Name a lease of this owner's on a ref, which is still to be moved there."""
        return Claim(stem, f"{stem}@{self._owner}+{next(self._claims):x}{mark}{names.SUFFIX}")

    def claim_stamped(self, claim: Claim) -> bool:
        """Make the second step: pending/ -> leased/@me."""
        return self.move(self._layout.pending, names.ref_file(claim.stem), self._layout.leased, claim.name, unique=True)

    def take_over(self, lease: names.Lease, claim: Claim) -> bool:
        """Move leased/@other -> leased/@me: whatever the former owner does next finds the name gone.

        The file is not stamped first, so that its mtime still tells whether the owner renewed it meanwhile.
        """
        return self._rename_lease(lease.file, claim.name)

    def hand_back(self, claim: Claim, lease: names.Lease) -> bool:
        """Undo a take-over: leased/@me -> leased/@other, under the name that the owner knows."""
        return self._rename_lease(claim.name, lease.file)

    def hand_over(self, claim: Claim, owner: str) -> bool:
        """Move leased/@me -> leased/@owner, under a name that the other owner does not give to leases of its own."""
        given = f"g{int(self._ops.random() * 2**32):08x}"
        return self._rename_lease(claim.name, names.leased_file(claim.stem, owner, given))

    def _rename_lease(self, name: str, new_name: str) -> bool:
        leased = self._layout.leased
        return self.move(leased, name, leased, new_name, unique=True)

    def finish(self, source: Directory, name: str, stem: str, step: int | None, keep: bool) -> bool:
        """Move leased/ or pending/ -> done/, or unlink the file where done files are not kept."""
        if keep:
            return self.move(source, name, self._layout.done, names.done_file(stem, step))
        if self._ops.remove(source.fd, name):
            return True
        if not self._layout.remote:
            return False
        source.refresh()  # NFS: as in stamp_pending
        return self._ops.remove(source.fd, name)

    def give_back(self, claim: Claim) -> bool:
        """Move leased/@me -> pending/."""
        return self.move(self._layout.leased, claim.name, self._layout.pending, names.ref_file(claim.stem))

    def bury(self, claim: Claim) -> bool:
        """Move leased/@me -> failed/."""
        leased, failed = self._layout.leased, self._layout.failed
        try:
            return self.move(leased, claim.name, failed, names.ref_file(claim.stem))
        except OSError as error:
            if error.errno not in _NO_SUCH_REPLACEMENT:
                raise
            # Somebody put a directory in the ref's place or at its destination: that may not block the queue.
            other = f"{claim.stem}.{int(self._ops.random() * 2**24):06x}"
            return self.move(leased, claim.name, failed, names.ref_file(other))

    def fetch(self, source: Directory, name: str, claim: Claim) -> bool:
        """Move a file from anywhere -> leased/@me, stamped first as in a claim; False where it was gone."""
        if not self._clock.stamp(source, name):
            return False
        return self.move(source, name, self._layout.leased, claim.name, unique=True)

    def rename_leased(self, claim: Claim, new: Claim) -> bool:
        """Give a lease of this owner's another ref's name."""
        return self._rename_lease(claim.name, new.name)

    def rename_pending(self, name: str, stem: str) -> bool:
        """Give a file that was moved into pending/ under another name the one that belongs there."""
        pending = self._layout.pending
        return self.move(pending, name, pending, names.ref_file(stem))

    def annotate(self, claim: Claim, change: Change) -> Bookkeeping | None:
        """Change the bookkeeping of a ref that is leased to this owner; None where the lease is gone.

        The file is written in place, from the ref's closing brace on, so it never has two names. A process that
        is stopped here for longer than the lease adds history to a file that another owner holds by then, and the
        move that follows finds the name gone.
        """
        leased, name = self._layout.leased, claim.name
        try:
            fd = self._ops.open_for_update(leased.fd, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                return self._replace(claim, b"", change)
            raise
        try:
            with explained("updating", f"{leased.path}/{name}"):
                return self._annotate_open(fd, claim, change)
        finally:
            self._ops.close(fd)

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
            self._layout.reserve.retrying(lambda: self._update(fd, tail, offset, len(data)))
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
        (tmp_name,) = self._layout.reserve.retrying(lambda: self.write_new([data]))
        try:
            self._ops.rename(tmp_name, claim.name, src_dir_fd=self._layout.tmp.fd, dst_dir_fd=self._layout.leased.fd)
        except OSError as error:
            silently_remove(self._ops, self._layout.tmp.fd, [tmp_name])
            if error.errno not in _NO_SUCH_REPLACEMENT:  # a directory in the file's place moves as it is
                raise

    def holders(self) -> dict[str, list[names.Lease]]:
        """Map each stem to the leases on it (one, unless the lock did not exclude), by one listing."""
        found: dict[str, list[names.Lease]] = defaultdict(list)
        for name in self._layout.leased.listing():
            lease = names.parse_leased(name)
            if lease:
                found[lease.stem].append(lease)
        return found

    def owners_holding(self) -> frozenset[str]:
        """Return the owners that lease anything, by one listing."""
        return frozenset(lease.owner for leases in self.holders().values() for lease in leases)


def _unwritten(change: Change, reason: str) -> Bookkeeping:
    """Return what a dead letter's bookkeeping would say, for a file that keeps the bytes that it has."""
    bookkeeping = Bookkeeping()
    change(bookkeeping)
    bookkeeping.reason = bookkeeping.reason or reason
    return bookkeeping


def record(event: str, at: float, holder: str | None, reason: str | None = None, attempt: bool = False) -> Change:
    """Return a change that adds an event to a ref's history, and counts an attempt where it is one.

    Args:
        holder: of the lease that ended; where none did, the owner who caused the event.
    """

    def change(bookkeeping: Bookkeeping) -> None:
        bookkeeping.attempts += attempt
        bookkeeping.add(Event(event, at, holder, reason))

    return change
