"""Pack old done files into segments, which take one inode for up to 10,000 refs.

What is packed is still done: `show`, `ls`, `counts` and `requeue` find it, and `rewind` brings it back. A ref leaves
a segment by becoming a done file again (unpack.py), and goes on from there by the moves that every done file makes.
How it is made safe against kills and other processes: revision.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from fsqueue.disk.directory import locating
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import Layout
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.packing.old_files import OldFiles, stamp_ns_of
from fsqueue.engine.packing.revision import (
    MERGED,
    SEGMENT_BYTES,
    Pauses,
    Revision,
    look,
    read_segment,
    recover,
    recover_quietly,
    segments_in_force,
)
from fsqueue.engine.progress import Progress, unheard
from fsqueue.engine.reserve import FREED_S, is_full
from fsqueue.errors import CorruptRefError, QueueIOError
from fsqueue.format import names, packed
from fsqueue.format.codec import whole_id
from fsqueue.format.packed import SEGMENT_REFS, Done, Line, Segment

_BUFFER_BYTES = 1 << 20
_GROWTH = 4
_SMALL_BYTES = 1 << 16
_SHRINKAGE = 8
_ROOM_BYTES = 1 << 19  # a block for the segment and one for its name; XFS sets more aside for the making of a file


@dataclass(frozen=True)
class Packed:
    """Tell what packing did, or would do in a dry run.

    Attributes:
        refs: done files that became lines.
        segments: how many segments were written.
    """

    refs: int
    segments: int


def would_pack(layout: Layout, older_than_s: float) -> Packed:
    """Say what `pack` would do."""
    refs = len(OldFiles(layout, time_there(layout) - older_than_s))
    return Packed(refs, -(-refs // SEGMENT_REFS))


def pack(handle: Handle, older_than_s: float, progress: Progress = unheard) -> Packed:
    """Move done files whose last stamp is older into segments.

    Segments that are not full are merged, with each other and with what is new. Costs a stat of every done file and,
    for each that is packed, a rename, a stat, a read and an unlink.

    A segment takes room before the files that went into it give theirs back. Where a full disk has none for a whole
    one, it begins with as much as there is room for, and goes on with four times as much each time.

    Args:
        progress: called after each segment, with how many refs were packed, and of how many.

    RACE: of two that pack at once, each takes what it can rename; only one that finds itself alone merges. A rewind
    or purge takes the licence away; then what was claimed goes back, and the next packing begins anew.

    Args:
        progress: told how many files are on their way into segments, and in the end how many are in one.

    Raises:
        QueueIOError: there is no room even for one file's line; all is as it was.
    """
    handle.presence.announce()
    recover(handle, alone=False)
    limit = handle.clock.now() - older_than_s
    old = OldFiles(handle.layout, limit)
    refs = written = 0
    size_bytes = _first_size(handle)
    while True:
        total = refs + len(old)
        merging = not written or size_bytes < SEGMENT_BYTES or len(old) < SEGMENT_REFS
        try:
            packed = _pack_one(handle, old, size_bytes, merging, partial(_tell, progress, refs, total))
        except OSError as error:
            # On a full disk others' licences go too: one of a process that died without a record keeps its room.
            recover_quietly(handle, alone=is_full(error))
            if not is_full(error):
                raise
            handle.ops.sleep(FREED_S)
            old = OldFiles(handle.layout, limit)  # what was claimed has its own name again
            size_bytes = _smaller(handle, old, size_bytes, error)
            continue
        except BaseException:
            recover_quietly(handle)
            progress(refs, total)  # what was claimed has gone back
            raise
        if merging or packed is None:
            recover(handle, alone=False)
        if packed is None:
            return Packed(refs, written)
        refs, written = refs + packed, written + 1
        progress(refs, refs + len(old))
        size_bytes = min(_GROWTH * size_bytes, SEGMENT_BYTES)
        if not old:
            return Packed(refs, written)


def _tell(progress: Progress, before: int, total: int, claimed: int) -> None:
    progress(before + claimed, total)


def _first_size(handle: Handle) -> int:
    """Return how large the first segment may be, by what the disk says is free; the reserve does for a small one."""
    free, _ = handle.ops.room(handle.layout.done.fd)
    return min(SEGMENT_BYTES, max(free // 2, _SMALL_BYTES))


def _smaller(handle: Handle, old: OldFiles, size_bytes: int, error: OSError) -> int:
    """Return how large the next segment may be after one of this size found the disk full.

    Raises:
        QueueIOError: it was to hold one file.
    """
    least = old.next_bytes
    free, _ = handle.ops.room(handle.layout.done.fd)
    if size_bytes <= least or not old:
        advice = (
            f": a segment takes room before the {len(old)} files that it replaces give theirs back, about "
            f"{least + _ROOM_BYTES} bytes and an inode to begin with; {free} bytes are free. These files stay as they "
            "are: free so much, or remove done files with `fsqueue purge`, then pack again"
        )
        raise QueueIOError("packing", handle.layout.done.path, error, advice) from error
    return max(least, min(size_bytes // _SHRINKAGE, free // 2 or size_bytes))


def _pack_one(
    handle: Handle, old: OldFiles, size_bytes: int, merging: bool, claiming: Callable[[int], None]
) -> int | None:
    """Write one segment of about this size; return how many files went into it, None where none was written.

    Where it is not to be merged with others it will be full, and replaces none: then nothing has to be known of these.
    Where it is to be smaller than usual, its room is taken before anything is claimed: on a full disk, the directory
    may have no room for the names that would be given back.
    """
    with Revision(handle) as revision:
        done = recover(handle, revision, alone=False) if merging else None
        if size_bytes < SEGMENT_BYTES and old:
            size_bytes = max(size_bytes, old.next_bytes)
            revision.make_room(min(size_bytes, old.room_bytes()))
        batch = _Batch(handle, revision, size_bytes)
        if done is not None and len(done.licences) == 1:
            batch.carry_over(done, size_bytes - old.next_bytes)
        claimed = batch.fill(old, claiming)
        return claimed if batch.commit() else None


class _Batch:
    """Gather the lines of one segment in the making."""

    def __init__(self, handle: Handle, revision: Revision, limit_bytes: int) -> None:
        self._handle = handle
        self._revision = revision
        self._limit_bytes = limit_bytes
        self._bases: list[Segment] = []
        self._buffer: list[bytes] = []
        self._count = 0
        self._asides: list[str] = []
        self._size = 0
        self._newest_ns = 0

    def carry_over(self, done: Done, limit_bytes: int) -> None:
        """Take the lines of segments that are not full, so many bytes at most; a damaged one stays as it is."""
        small = sorted((s for s in done.segments if s.refs < SEGMENT_REFS), key=lambda segment: segment.refs)
        for segment in small[:MERGED]:
            if self._count + segment.refs > SEGMENT_REFS:
                return
            try:
                status = self._handle.ops.stat(segment.name, dir_fd=self._handle.layout.done.fd, follow_symlinks=False)
                if status.st_size > SEGMENT_BYTES // 2 or self._size + status.st_size > limit_bytes:
                    continue
                data = read_segment(self._handle.layout, segment)
            except FileNotFoundError:
                return  # RACE: who has replaced or purged it has taken the licence away before
            lines, damaged = packed.whole_lines(data)
            if not damaged and len(lines) == segment.refs:
                self._bases.append(segment)
                self._add(data, len(lines), max((line.mtime_ns for line in lines), default=0))

    def _add(self, data: bytes, count: int, mtime_ns: int) -> None:
        self._buffer.append(data)
        self._count += count
        self._size += len(data)
        self._newest_ns = max(self._newest_ns, mtime_ns)
        if self._size - self._revision.size > _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._revision.write(b"".join(self._buffer))
        self._buffer.clear()

    def fill(self, old: OldFiles, claiming: Callable[[int], None]) -> int:
        """Claim files until the segment is full, and add their lines; return how many."""
        while old and self._count < SEGMENT_REFS and self._size + old.next_bytes <= self._limit_bytes:
            name = old.next_name
            try:
                aside = self._revision.claim(name)
            except OSError as error:
                if not (self._asides and is_full(error)):
                    raise
                break  # done/ has no room for its longer name: what is claimed by now will make some
            old.drop_next()
            if aside is None:
                continue
            line = _line_of(self._handle, aside, name)
            if line is None:
                self._revision.unclaim(aside, name)
            else:
                self._add(packed.encode_line(line), 1, line.mtime_ns)
                self._asides.append(aside)
                claiming(len(self._asides))
        return len(self._asides)

    def commit(self) -> bool:
        """Publish the segment, where it holds anything new or merges several, and remove the files that went into it.

        CRASH: files that are spent are removed by whoever recovers next.
        """
        if not self._asides and len(self._bases) < 2:
            return False
        self._flush()
        if not self._revision.commit(self._count, self._bases, self._newest_ns):
            return False
        for aside in self._asides:
            self._handle.moves.remove(self._handle.layout.done, aside)
        return True


def _line_of(handle: Handle, aside: str, name: str) -> Line | None:
    """Return a claimed file as a line; None where it holds no whole ref of that name, or is gone."""
    ops, done, parsed = handle.ops, handle.layout.done, names.parse_done(name)
    try:
        fd = ops.open_to_read(done.fd, aside)
        try:
            mtime_ns = stamp_ns_of(ops.fstat(fd))
            data = ops.read_regular(fd)
        finally:
            ops.close_read(fd)
    except CorruptRefError:
        return None
    except OSError as error:
        if not handle.moves.is_gone(done, aside, error):
            raise
        return None
    sample_id = whole_id(data)
    if parsed is None or sample_id is None or names.stem_of(sample_id) != parsed[0]:
        return None
    return Line(*parsed, mtime_ns, data)


def packed_lines(layout: Layout) -> Iterator[tuple[Segment, bytes]]:
    """Yield every segment in force and its bytes, those with the oldest refs first.

    RACE: where one is replaced meanwhile, its successor is taken; unless part of that was given already.
    """
    given: set[str] = set()
    pauses = Pauses(layout.ops)
    while True:
        again = False
        for segment in _by_age(layout, segments_in_force(layout)):
            if segment.revision in given or not given.isdisjoint(segment.replaces):
                continue
            try:
                data = read_segment(layout, segment)
            except FileNotFoundError:
                again = True
                continue
            given.add(segment.revision)
            yield segment, data
        if not again:
            return
        pauses.wait()


def _by_age(layout: Layout, found: list[Segment]) -> list[Segment]:
    stamps = {segment: stamp_of(layout, segment) for segment in found}
    return sorted(found, key=lambda segment: stamps[segment] or 0.0)


def stamp_of(layout: Layout, segment: Segment) -> float | None:
    """Return a segment's mtime, the newest stamp among its refs, in seconds; None where it is gone."""
    status = layout.ops.status(layout.done.fd, segment.name)
    return status.st_mtime if status else None


def old_segments(layout: Layout, done: Done, limit: float) -> list[str]:
    """Return the segments all of whose refs were last stamped by a time."""
    stamps = ((segment.name, stamp_of(layout, segment)) for segment in done.segments)
    return [name for name, stamp in stamps if stamp is not None and stamp <= limit]


def purge(handle: Handle, older_than_s: float) -> list[str]:
    """Remove segments all of whose refs were last stamped longer ago; return their names.

    RACE: a packing that begins meanwhile may carry over the lines of a segment that goes: the next purge has them.
    """
    done = look(handle.layout)
    if not done.segments and not done.in_transit:
        return []
    done = recover(handle, alone=True)
    old = old_segments(handle.layout, done, handle.clock.now() - older_than_s)
    handle.layout.done.sync()  # CRASH: what these replaced is gone for good, and does not come into force again
    with locating(handle.layout.done):
        return [name for name in old if handle.ops.remove(handle.layout.done.fd, name)]
