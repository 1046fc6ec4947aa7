"""Take refs out of segments: what leaves is a done file of its own from the commit on (revision.py)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from typing import NamedTuple

from fsqueue.engine.handle import Handle
from fsqueue.engine.packing.copies import Copies
from fsqueue.engine.packing.parts import ALL, Part
from fsqueue.engine.packing.revision import (
    MERGED,
    SEGMENT_BYTES,
    Pauses,
    Revision,
    look,
    read_segment,
    recover,
    recover_quietly,
)
from fsqueue.format import names, packed
from fsqueue.format.codec import Bookkeeping, Event, wrap_raw
from fsqueue.format.packed import SEGMENT_REFS, Done, Line, Segment

Wanted = Callable[[str, int | None], bool]

_DAMAGED = "found in a segment of packed refs: it belongs to no whole line"


def unpack(handle: Handle, wanted: Wanted, copies: Copies | None = None, part: Part = ALL) -> Done:
    """Make every done ref that is wanted, by stem and step, a file of its own again; return what is done then.

    Such a file may have the name that a revision gave it, where this client cannot change that now.

    Costs one listing where nothing is packed; otherwise every segment is read. A running packing is ended.

    Args:
        copies: takes those that it is to move on, and is ended by the caller, after an error too; what is live stays
            in its segment then.
        part: what is wanted is among these refs.

    RACE: a packing that begins afterwards may claim such a file before the caller has moved it on.
    """
    clean = set(part.clean)
    stuck: set[str] = set()
    kept: Collection[str] = copies.stamps if copies else ()
    pauses = Pauses(handle.ops)
    while True:
        done = look(handle.layout, part.stems)
        try:
            aside = _is_aside(done, wanted, stuck, kept)
            found = None if aside else _holding(handle, done.segments, wanted, copies, clean)
            if found is None and not aside and not (copies and copies.let_go_of_hidden(done)):
                return done
            with Revision(handle) as revision:
                done = recover(handle, revision, alone=True, stuck=stuck, kept=kept)
                if found is not None and found.segment in done.segments:
                    _TakingOut(handle, revision, wanted, copies, clean).run(found, done.segments)
        except FileNotFoundError:
            pauses.wait()
            continue  # a segment was replaced, or the licence taken away: look again
        except OSError:
            if not copies:
                recover_quietly(handle)
            raise
        if not copies:
            recover(handle, alone=True, stuck=stuck)


def _is_aside(done: Done, wanted: Wanted, stuck: Container[str], kept: Container[str]) -> bool:
    """Return whether a revision has something in hand that is wanted, other than what keeps its name."""
    aside = (name for name, file in done.files.items() if name != file and file not in stuck and file not in kept)
    return any(found is not None and wanted(*found) for found in map(names.parse_done, aside))


class _Found(NamedTuple):
    """Hold a segment with wanted refs: itself, its bytes, and its lines."""

    segment: Segment
    data: bytes
    taken: list[Line]
    others: list[Line]


def _holding(
    handle: Handle, segments: Iterable[Segment], wanted: Wanted, copies: Copies | None, clean: set[str]
) -> _Found | None:
    """Return the first of these segments that holds wanted refs.

    Args:
        clean: revisions whose segments are known to hold none; this adds to them.

    Raises:
        FileNotFoundError: one was replaced meanwhile: look again.
    """
    for segment in segments:
        if segment.revision in clean:
            continue
        data = read_segment(handle.layout, segment)
        lines, _ = packed.whole_lines(data)
        taken = [line for line in lines if wanted(line.stem, line.step)]
        if copies and taken:
            live = copies.live(taken)
            taken = [line for line in taken if line.stem not in live]
        if taken:
            chosen = {line.span for line in taken}
            return _Found(segment, data, taken, [line for line in lines if line.span not in chosen])
        clean.add(segment.revision)
    return None


class _TakingOut:
    """Copy lines out of segments, and replace these by one of the other lines."""

    def __init__(
        self, handle: Handle, revision: Revision, wanted: Wanted, copies: Copies | None, clean: set[str]
    ) -> None:
        self._handle = handle
        self._revision = revision
        self._wanted = wanted
        self._copies = copies
        self._clean = clean
        self._bases: list[Segment] = []
        self._refs = 0
        self._newest_ns = 0

    def run(self, found: _Found, segments: list[Segment]) -> None:
        """Take out what is wanted of a segment, and of others that fit into one revision with it."""
        following: _Found | None = found
        while following is not None and self._has_room_for(following):
            self._add(following)
            rest = [segment for segment in segments if segment not in self._bases]
            following = None
            if len(self._bases) < MERGED:
                following = _holding(self._handle, rest, self._wanted, self._copies, self._clean)
        self._revision.commit(self._refs, self._bases, self._newest_ns)

    def _has_room_for(self, found: _Found) -> bool:
        size = sum(end - start for start, end in (line.span for line in found.others))
        fits = self._refs + len(found.others) <= SEGMENT_REFS and self._revision.size + size <= SEGMENT_BYTES
        return fits or not self._bases

    def _add(self, found: _Found) -> None:
        """Copy the lines; of two lives with one name, the later one's file stays."""
        taken = sorted(found.taken, key=lambda line: line.mtime_ns)
        if self._copies is not None:
            self._copies.make(self._revision, taken)
        else:
            self._revision.copy_out(taken)
        rest = packed.without(found.data, [line.span for line in found.taken])
        if rest:
            self._revision.write(rest)
        self._bases.append(found.segment)
        self._refs += max(0, found.segment.refs - len(taken))
        newest_ns = max((line.mtime_ns for line in found.others), default=taken[-1].mtime_ns)
        self._newest_ns = max(self._newest_ns, newest_ns)


def mend_segment(handle: Handle, name: str) -> str | None:
    """Replace a damaged segment by one of its whole lines; return the dead letter that holds the rest.

    CRASH: the dead letter comes first, under a name that a repetition gives it again.

    Raises:
        FileNotFoundError: it was replaced or purged.
    """
    with Revision(handle) as revision:
        done = recover(handle, revision, alone=True)
        segment = next((segment for segment in done.segments if segment.name == name), None)
        if segment is None:
            raise FileNotFoundError(name)
        data = read_segment(handle.layout, segment)
        lines, damaged = packed.whole_lines(data)
        letter = names.ref_file(f"packed-{segment.revision}-damaged") if damaged else None
        if letter is not None:
            rest = b"".join(data[start:end] for start, end in damaged)
            event = Event("failed", handle.clock.now(), handle.owner, _DAMAGED)
            dead = Bookkeeping(reason=_DAMAGED, history=[event])
            handle.moves.write(wrap_raw(rest, dead), handle.layout.failed, letter)
        revision.write(packed.without(data, damaged))
        revision.commit(len(lines), [segment], max((line.mtime_ns for line in lines), default=0))
    recover(handle, alone=True)
    return letter
