"""List a queue's files for whoever looks at it without being one of its handles: no lock, no writing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import current, explained
from fsqueue.engine.layout import HEADER_BYTES, ORDER, Layout, open_layout
from fsqueue.engine.order import Header
from fsqueue.engine.owners import read_record
from fsqueue.engine.packing.pack import packed_lines
from fsqueue.engine.packing.revision import listed, look
from fsqueue.errors import CorruptRefError
from fsqueue.format import names, packed
from fsqueue.format.lines import stem_in
from fsqueue.format.packed import Line
from fsqueue.format.untyped import Place, RefSight, place_of, sight

_SORT_BY_MTIME_LIMIT = 4096
_SORT_LIMIT = 1 << 16
_ORDER_BYTES = 1 << 16
_LOOKED_FOR = 256


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Layout]:
    """Open a queue to look at.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    layout = open_layout(current(), os.fspath(path))
    with explained("reading", layout.path), closing(layout):
        yield layout


def owner_matches(wanted: str, owner: str) -> bool:
    """Return whether wanted is this owner's name, or the first part of it, which is the node unless chosen."""
    return wanted == owner or names.owner_name(wanted) == owner.rsplit(".", 2)[0]


def owners_named(layout: Layout, wanted: str, owners: Iterable[str]) -> set[str]:
    """Return those of these owners that wanted names, or that run on the node of that name, as their records say."""

    def is_wanted(owner: str) -> bool:
        if owner_matches(wanted, owner):
            return True
        record = read_record(layout.owners, owner)
        return record is not None and record.host == wanted

    return {owner for owner in set(owners) if is_wanted(owner)}


class File(NamedTuple):
    """Name a ref's file: its state, its name and what the name says.

    Attributes:
        line: the ref itself, where the file is a segment that holds it among others.
    """

    state: str
    name: str
    place: Place
    line: Line | None = None

    @property
    def ref_name(self) -> str:
        """The name that a done ref has, or will have, as a file of its own."""
        return self.name if names.parse_done(self.name) else names.done_file(self.place.stem, self.place.step)


class Stamp(NamedTuple):
    """Hold what a file's status says.

    Attributes:
        identity: stays the same when the file moves on.
    """

    identity: object
    mtime: float
    size_bytes: int


def directory_of(layout: Layout, state: str) -> Directory:
    found: Directory = getattr(layout, state)
    return found


def files_in(layout: Layout, state: str) -> list[File]:
    """List the files in a state's directory that hold one ref each, in no order."""
    if state == "done":
        done = look(layout)
        return [File(state, file, place) for name, file in done.files.items() if (place := place_of(state, name))]
    parsed = ((name, place_of(state, name)) for name in directory_of(layout, state).listing())
    return [File(state, name, place) for name, place in parsed if place is not None]


def done_among(layout: Layout, stems: Collection[str]) -> set[str]:
    """Return those of the stems whose refs are done; segments are read where there are any."""
    files = look(layout, stems).files
    found = {place.stem for name in files if (place := place_of("done", name)) and place.stem in stems}
    return found.union(file.place.stem for file in packed_in(layout) if file.place.stem in stems)


def count_in(layout: Layout, state: str) -> int:
    """Count the refs in a state, by one listing."""
    if state == "done":
        return packed.count(listed(layout))
    return names.count_refs(directory_of(layout, state).listing(), partial(place_of, state))


def packed_in(layout: Layout, stem: str | None = None) -> Iterator[File]:
    """Yield the packed refs, or those of one stem; every segment is read."""
    for segment, data in packed_lines(layout):
        lines = packed.whole_lines(data)[0] if stem is None else packed.lines_of(data, stem)
        for line in lines:
            yield File("done", segment.name, Place(line.stem, step=line.step), line)


def id_of(layout: Layout, file: File) -> str:
    """Return the sample id of a file: from its name where that tells, else from inside; the stem where neither does."""
    if (named := names.id_of(file.place.stem)) is not None:
        return named
    seen = look_inside(layout, file)
    return (seen and seen.sample_id) or file.place.stem


def look_inside(layout: Layout, file: File) -> RefSight | None:
    """Return what a file holds; None where it is gone, no regular file, or cannot be read."""
    if file.line is not None:
        return sight(file.line.data)
    try:
        return sight(layout.ops.read_file(directory_of(layout, file.state).fd, file.name))
    except (FileNotFoundError, CorruptRefError):
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None  # the storage lost it: that is no reason not to show the others


def stamp_of(layout: Layout, file: File) -> Stamp | None:
    """Return a file's status, for a packed ref that of its former file; None where it is gone."""
    if file.line is not None:
        return Stamp((file.name, file.line.span), file.line.mtime_ns / 1e9, len(file.line.data))
    status = layout.ops.status(directory_of(layout, file.state).fd, file.name)
    return Stamp(status.st_ino, status.st_mtime, status.st_size) if status else None


def hinted(layout: Layout) -> Iterator[str]:
    """Yield the stems that the order names, the next one first, read without its lock: a hint, as all of the order."""
    with suppress(OSError, CorruptRefError):
        for line in _order_lines(layout):
            stem = stem_in(line.decode("ascii", "replace"))
            if stem is not None:
                yield stem


def _order_lines(layout: Layout) -> Iterator[bytes]:
    """Yield the lines from the cursor on, read as they are wanted."""
    fd = layout.ops.open_to_read(layout.root.fd, ORDER)
    try:
        if not stat.S_ISREG(layout.ops.fstat(fd).st_mode):
            return
        header = Header.decode(layout.ops.pread_uncached(fd, HEADER_BYTES, 0))
        offset, rest = header.cursor if header else HEADER_BYTES, b""
        while data := layout.ops.pread_uncached(fd, _ORDER_BYTES, offset):
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
        yield rest
    finally:
        layout.ops.close_read(fd)


def in_order(layout: Layout, state: str, owner: str | None = None) -> Iterator[File]:
    """Yield the files of a state: pending as they come next, the others by their last stamp, packed refs first.

    Refs that the order does not name, and those of the other states, go by mtime where there are at most 4,096
    of them, by name where a stat of each would cost too much, and, where there are more than 65,536 in another state
    than pending, as its directory lists them: whoever looks would else wait for the last name to see the first.
    """
    if state == "pending" and owner is None:
        yield from _pending_in_order(layout)
        return
    if state == "done":
        yield from packed_in(layout)
    if owner is None and (some := directory_of(layout, state).some_names(_SORT_LIMIT + 1))[_SORT_LIMIT:]:
        yield from _as_they_lie(layout, state, some)
        return
    files = files_in(layout, state)
    if owner is not None:
        wanted = owners_named(layout, owner, (file.place.owner for file in files if file.place.owner))
        files = [file for file in files if file.place.owner in wanted]
    yield from _arranged(layout, files)


def _pending_in_order(layout: Layout) -> Iterator[File]:
    """Yield the refs that the order names as long as they are there, then the others.

    The first are looked for by name, so that whoever looks need not wait for the listing.
    """
    stems, seen = hinted(layout), set[str]()
    for stem in islice(stems, _LOOKED_FOR):
        name = names.ref_file(stem)
        if name not in seen and layout.ops.is_there(layout.pending.fd, name):
            seen.add(name)
            yield File("pending", name, Place(stem))
    left = set(layout.pending.listing()) - seen
    for stem in stems:
        name = names.ref_file(stem)
        if name in left:
            left.remove(name)
            yield File("pending", name, Place(stem))
    parsed = ((name, place_of("pending", name)) for name in sorted(left))
    yield from _arranged(layout, [File("pending", name, place) for name, place in parsed if place is not None])


def _as_they_lie(layout: Layout, state: str, first: list[str]) -> Iterator[File]:
    """Yield the files of a state that are too many to be sorted first, those that are known already before the rest."""
    directory, known = directory_of(layout, state), set(first)
    aside: list[str] = []
    rest = (name for name in directory.listing() if name not in known)
    for name in chain(first, rest):
        place = place_of(state, name)
        if place is not None:
            yield File(state, name, place)
        elif state == "done":
            aside.append(name)
    for name, file in packed.read_names(aside).files.items():
        if (place := place_of(state, name)) and not layout.ops.exists(directory.fd, name):
            yield File(state, file, place)


def _arranged(layout: Layout, files: Iterable[File]) -> list[File]:
    listed = sorted(files)
    if len(listed) > _SORT_BY_MTIME_LIMIT:
        return listed
    stamps = {file: found.mtime for file in listed if (found := stamp_of(layout, file)) is not None}
    return sorted(stamps, key=lambda file: stamps[file])
