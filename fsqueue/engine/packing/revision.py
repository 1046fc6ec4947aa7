"""Change what is packed in done/: one revision at a time, committed by one rename.

    begin    create the licence, packing-<revision>@<owner>.jsonl
    recover  take other licences away, end what other revisions have begun
    prepare  move done files aside into it, or copy lines aside from a segment; write the licence's content
    commit   rename the licence to packed-<revision>-...: from that instant on the segment is in force, those that it
             replaces are not, the files that went into it are spent, and the copies that came from one hold
    recover  unlink what is spent, give the copies their names

CRASH: before the commit the segment is not there, and a file aside is an ordinary done ref under a longer name; after
it, that file is spent. Whoever recovers next finishes either. No ref is lost, none counts twice: `packed.Done`
tells from one listing what is in force.

RACE: the lock has no part in this. A process that takes a licence away makes its owner's commit fail, whenever that
comes, since the rename finds no file. Whoever replaces segments first creates a licence, then takes all others away
(or finds none), and only then looks at what there is to replace. Were two to replace the same segment, each would have
begun before the other looked, and one of them would have lost its licence or seen the other's commit.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection, Container, Iterable
from contextlib import suppress
from dataclasses import replace

from fsqueue.disk.directory import locating
from fsqueue.disk.fileops import REF_LIMIT_BYTES, FileOps, silently_remove
from fsqueue.disk.publish import write_together
from fsqueue.engine.arrival import is_gone
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import Layout
from fsqueue.engine.owners import read_record
from fsqueue.engine.reserve import filler
from fsqueue.errors import CorruptRefError
from fsqueue.format import packed
from fsqueue.format.packed import Done, Licence, Line, Segment

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0
ABANDONED_S = 3600.0
SEGMENT_BYTES = REF_LIMIT_BYTES // 2
MERGED = 8
"""How many segments one replaces at most: its name holds theirs."""
_LOOKS = 16


def look(layout: Layout, stems: Collection[str] | None = None) -> Done:
    """Return what is done, by one listing; where a revision is at work, by two that agree.

    Args:
        stems: of done files under their own names, only those of these refs matter.
    """
    listing = listed(layout)
    return packed.read_names(listing if stems is None else packed.among(listing, stems))


def segments_in_force(layout: Layout) -> list[Segment]:
    """Return the segments that are, at less cost than `look`."""
    return packed.read_names(packed.of_packing(listed(layout))).segments


def listed(layout: Layout) -> list[str]:
    """Return the names in done/ that `look` goes by.

    RACE: a listing that a rename overtakes may show neither the old name nor the new one.
    """
    listing = layout.done.listing()
    for _ in range(_LOOKS):
        if not packed.is_in_transit(listing):
            break
        before, listing = packed.revisions_in(listing), layout.done.listing()
        if before == packed.revisions_in(listing):
            break
    return listing


def look_firmly(layout: Layout) -> Done:
    """Return what packing has in done/, to act upon it; done files under their own names are left out.

    An aside whose revision is not to be seen belongs to a void one.

    RACE: an aside's licence was created before it. Where the first listing shows the aside, and two further ones agree
    that there is neither its licence nor its segment, the licence was taken away: they would show its commit.
    """
    seen = set(_of_packing(layout))
    before = packed.revisions_in(_of_packing(layout))
    while True:
        listing = _of_packing(layout)
        revisions = packed.revisions_in(listing)
        if before == revisions:
            done = packed.read_names(listing)
            return replace(done, asides=[aside for aside in done.asides if aside.name in seen])
        before = revisions


def _of_packing(layout: Layout) -> list[str]:
    return packed.of_packing(layout.done.listing())


def read_segment(layout: Layout, segment: Segment) -> bytes:
    """Return a segment's bytes; none where it is no regular file.

    Raises:
        FileNotFoundError: it was replaced or purged.
    """
    try:
        return layout.ops.read_file(layout.done.fd, segment.name)
    except CorruptRefError:
        return b""
    except OSError as error:
        if is_gone(layout, layout.done, segment.name, error):
            raise FileNotFoundError(errno.ENOENT, "replaced or purged", segment.name) from None
        raise


class Pauses:
    """Wait between looks that have to be repeated: not before the first repetition, then longer and longer.

    What makes one look again is gone at the next, unless listings are old (sshfs: 20 s).
    """

    def __init__(self, ops: FileOps) -> None:
        self._sleep = ops.sleep
        self._pause_s = 0.0

    def wait(self) -> None:
        if self._pause_s:
            self._sleep(self._pause_s)
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)


class Revision:
    """Make one change of what is packed.

    Attributes:
        token: its name, 12 hex digits.
        size: bytes written so far.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._ops = handle.ops
        self._done = handle.layout.done
        self.token = secrets.token_hex(6)
        self.size = 0
        self._room = 0
        self._licence = packed.licence_file(self.token, handle.owner)
        self._fd = -1
        self._committed = False

    def __enter__(self) -> Revision:
        reserve = self._handle.layout.reserve
        try:
            with locating(self._done):
                self._fd = reserve.retrying(lambda: self._ops.create(self._done.fd, self._licence, b""))
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc_info: object) -> None:
        """Give up what was not committed: others may then end what it has begun."""
        try:
            self._close()
        finally:
            if not self._committed:
                silently_remove(self._ops, self._done.fd, [self._licence])

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._ops.close_read(fd)  # what counts is synced by then; whether the licence holds, its rename tells

    def make_room(self, size: int) -> None:
        """Take the room for so many bytes of lines now: where there is none, nothing has been claimed yet."""
        room = filler(self._ops, size)
        self._handle.layout.reserve.retrying(lambda: self._ops.pwrite_all(self._fd, room, 0))
        self._room = size

    def write(self, data: bytes) -> None:
        """Add lines, through the descriptor of the licence's creation: a file taken away is never made anew."""
        self._handle.layout.reserve.retrying(lambda: self._ops.pwrite_all(self._fd, data, self.size))
        self.size += len(data)

    def claim(self, name: str) -> str | None:
        """Move a done file aside, on its way into this revision; return its new name, None where it was gone."""
        aside = packed.aside_file(name, self.token, original=True)
        return aside if self._handle.moves.move_to_fresh(self._done, name, self._done, aside) else None

    def unclaim(self, aside: str, name: str) -> None:
        """Undo a claim; the file may not stay under this revision, which would spend it."""
        if not _loosen(self._handle, aside, name):
            self._handle.moves.move_to_done(self._done, aside, name)

    def copy_out(self, lines: Iterable[Line]) -> None:
        """Write lines as files of their own, which hold from the commit on."""
        copies = {self.copy_of(line): line for line in lines}
        self.copy((name, line.data) for name, line in copies.items())
        for name, line in copies.items():
            restamp(self._handle, name, line.mtime_ns)

    def copy_of(self, line: Line) -> str:
        """Return the name that a line's copy has."""
        return packed.aside_file(line.ref_name, self.token, original=False)

    def copy(self, named: Iterable[tuple[str, bytes]]) -> None:
        """Write copies by name and content."""
        write_together(self._ops, self._done, named, self._handle.overlap.syncs)

    def commit(self, refs: int, replaces: Iterable[Segment], mtime_ns: int) -> bool:
        """Put the segment in force; False where the licence was taken away.

        CRASH: content and copies are durable before the rename, and the rename before anything is unlinked.

        Args:
            mtime_ns: the newest stamp among its refs, which becomes the segment's own.
        """
        name = packed.segment_file(self.token, refs, (segment.revision for segment in replaces))
        try:
            if self._room > self.size:
                self._ops.ftruncate(self._fd, self.size)
            self._ops.fsync(self._fd)
        except OSError as error:
            if not self._handle.moves.is_gone(self._done, self._licence, error):
                raise
            return False
        self._close()
        try:
            self._ops.utime(self._licence, ns=(mtime_ns, mtime_ns), dir_fd=self._done.fd, follow_symlinks=False)
        except OSError as error:
            if not self._handle.moves.is_gone(self._done, self._licence, error):
                raise
        self._done.sync()
        self._committed = self._handle.moves.move_to_fresh(self._done, self._licence, self._done, name)
        self._done.sync()
        return self._committed


def restamp(handle: Handle, name: str, mtime_ns: int) -> None:
    """Give a file in done/ a ref's stamp."""
    handle.ops.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=handle.layout.done.fd, follow_symlinks=False)


def recover(
    handle: Handle,
    mine: Revision | None = None,
    *,
    alone: bool,
    stuck: set[str] | None = None,
    kept: Container[str] = (),
) -> Done:
    """End what other revisions have begun, and what was committed; return what packing has in done/ then.

    Args:
        alone: take every other licence away, not just those of dead owners and those an hour old.
        stuck: see `_finish`; kept by a caller who recovers more than once.
        kept: asides that the caller is to move on himself.
    """
    token = mine.token if mine else None
    stuck = set() if stuck is None else stuck
    pauses = Pauses(handle.ops)
    while True:
        done = look_firmly(handle.layout)
        others = [licence for licence in done.licences if licence.revision != token]
        now = handle.clock.now() if others and not alone else 0.0
        gone = [licence for licence in others if alone or is_abandoned(handle.layout, licence, now)]
        for licence in gone:
            handle.moves.remove(handle.layout.done, licence.name)
        if not gone and not _finish(handle, done, stuck, kept):
            return done
        pauses.wait()


def recover_quietly(handle: Handle, *, alone: bool = False) -> None:
    """Recover after an error, which is the one to report; what is left aside is done all the same."""
    with suppress(OSError):
        recover(handle, alone=alone)


def is_abandoned(layout: Layout, licence: Licence, now: float) -> bool:
    """Return whether a licence's owner is dead, or, where that cannot be known, has not written for an hour."""
    found = read_record(layout.owners, licence.owner)
    liveness = found.liveness() if found else "unknown"
    written_at = layout.ops.fresh_mtime(layout.done.fd, licence.name) if liveness == "unknown" else None
    return liveness == "dead" or (written_at is not None and now - written_at > ABANDONED_S)


def _finish(handle: Handle, done: Done, stuck: set[str], kept: Container[str]) -> bool:
    """Do what committed and void revisions have left to do; False where there was nothing.

    CRASH: a segment that another one replaces goes after the asides of both have gone, durably: it must not come into
    force again, and neither must they.

    Args:
        stuck: asides that this client cannot give their names now, or that somebody else has: tried once. This adds
            to them. They are done all the same, as long as the segments are there that say so.
    """
    layout, moves = handle.layout, handle.moves
    running = {licence.revision for licence in done.licences}
    asides = [aside for aside in done.asides if aside.name not in kept]
    settled = [aside for aside in asides if aside.revision not in running and aside.name not in stuck]
    for aside in settled:
        if aside.original == (aside.revision in done.committed):
            moves.remove(layout.done, aside.name)
        elif not _loosen(handle, aside.name, aside.ref_name):
            stuck.add(aside.name)
    held_up = {aside.revision for aside in done.asides if aside.name in stuck or aside.name in kept} & done.committed
    replaced = [] if held_up else done.replaced
    if settled or replaced:
        layout.done.sync()
    for segment in replaced:
        moves.remove(layout.done, segment.name)
    listed = {aside.revision for aside in done.asides} | {segment.revision for segment in done.replaced}
    spent = [s for s in done.segments if not s.refs and listed.isdisjoint((s.revision, *s.replaces))]
    removed = [segment for segment in spent if _is_empty(handle, segment)]
    if removed:
        layout.done.sync()
    for segment in removed:
        moves.remove(layout.done, segment.name)
    return bool(settled or replaced or removed)


def _loosen(handle: Handle, name: str, ref_name: str) -> bool:
    """Give a done file aside its own name, unless a later life of the ref has that; False where it kept its name.

    RACE: a later life that is acked under the same step between the look and the rename is replaced by the earlier
    one: one file of that name either way. By a link, a ref could for a moment have two.
    """
    done = handle.layout.done
    mine, later = (_mtime_ns(handle, each) for each in (name, ref_name))
    if later is not None and mine is not None and later >= mine and handle.moves.holds(done, ref_name):
        return handle.moves.remove(done, name)
    return handle.moves.move(done, name, done, ref_name)


def _mtime_ns(handle: Handle, name: str) -> int | None:
    status = handle.ops.status(handle.layout.done.fd, name)
    return status.st_mtime_ns if status else None


def _is_empty(handle: Handle, segment: Segment) -> bool:
    status = handle.ops.status(handle.layout.done.fd, segment.name)
    return status is not None and status.st_size == 0
