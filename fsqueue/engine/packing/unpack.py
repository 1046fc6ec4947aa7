"""Take refs out of segments: what leaves is a done file of its own from the commit on (revision.py)."""

from __future__ import annotations

from collections.abc import Callable

from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import Layout
from fsqueue.engine.packing.revision import Pauses, Revision, look, read_segment, recover, recover_quietly
from fsqueue.format import names, packed
from fsqueue.format.codec import Bookkeeping, Event, wrap_raw
from fsqueue.format.packed import Done, Line, Segment

Wanted = Callable[[str, int | None], bool]

_DAMAGED = "found in a segment of packed refs: it belongs to no whole line"


def unpack(handle: Handle, wanted: Wanted) -> Done:
    """Make every done ref that is wanted, by stem and step, a file of its own again; return what is done then.

    Such a file may have the name that a revision gave it, where this client cannot change that now.

    Costs one listing where nothing is packed; otherwise every segment is read. A running packing is ended.

    RACE: a packing that begins afterwards may claim such a file before the caller has moved it on.
    """
    clean: set[str] = set()
    stuck: set[str] = set()
    pauses = Pauses(handle.ops)
    while True:
        done = look(handle.layout)
        try:
            if not _is_aside(done, wanted, stuck) and _holding(handle.layout, done, wanted, clean) is None:
                return done
            with Revision(handle) as revision:
                found = _holding(handle.layout, recover(handle, revision, alone=True, stuck=stuck), wanted, clean)
                if found is not None:
                    _take_out(revision, *found)
        except FileNotFoundError:
            pauses.wait()
            continue  # a segment was replaced, or the licence taken away: look again
        except OSError:
            recover_quietly(handle)
            raise
        recover(handle, alone=True, stuck=stuck)


def _is_aside(done: Done, wanted: Wanted, stuck: set[str]) -> bool:
    """Return whether a revision has something in hand that is wanted, other than what keeps its name."""
    parsed = (names.parse_done(name) for name, file in done.files.items() if name != file and file not in stuck)
    return any(found is not None and wanted(*found) for found in parsed)


_Found = tuple[Segment, bytes, list[Line], list[Line]]


def _holding(layout: Layout, done: Done, wanted: Wanted, clean: set[str]) -> _Found | None:
    """Return a segment that holds wanted refs: itself, its bytes, their lines, and the others.

    Args:
        clean: revisions whose segments are known to hold none; this adds to them.

    Raises:
        FileNotFoundError: one was replaced meanwhile: look again.
    """
    for segment in done.segments:
        if segment.revision in clean:
            continue
        data = read_segment(layout, segment)
        lines, _ = packed.whole_lines(data)
        taken = [line for line in lines if wanted(line.stem, line.step)]
        if taken:
            return segment, data, taken, [line for line in lines if not wanted(line.stem, line.step)]
        clean.add(segment.revision)
    return None


def _take_out(revision: Revision, segment: Segment, data: bytes, taken: list[Line], others: list[Line]) -> None:
    """Copy lines out of a segment, and replace it by one of the others; of two lives, the later one's file stays."""
    revision.copy_out(sorted(taken, key=lambda line: line.mtime_ns))
    revision.write(packed.without(data, [line.span for line in taken]))
    newest_ns = max((line.mtime_ns for line in others), default=taken[-1].mtime_ns)
    revision.commit(max(0, segment.refs - len(taken)), [segment], newest_ns)


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
