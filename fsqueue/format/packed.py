"""Read the names of packed refs in done/, and a segment's lines: pure functions, no I/O.

    packed-<revision>-<refs>[-<replaced>]....jsonl     a segment: how many refs it holds, one a line
    packing-<revision>@<owner>.jsonl                   a licence: a segment in the making, not in force
    <id>@<step>.json.into-<revision>                   a done file on its way into a segment
    <id>@<step>.json.from-<revision>                   a copy of a line on its way out of one

A *revision*, 12 hex digits, is one change of what is packed. It is committed from the instant that a segment
carries its name. From then on the segments that it replaces are not in force, the files that went into it are spent,
and the copies that came from one hold. So one listing says what is done (`Done`).

A line keeps the file's bytes. Line feeds, which in JSON stand between values only, become spaces, and ``breaks`` says
where they were::

    {"crc":"9d1c5fb2","len":"0000028a","stem":"s17","step":9,"mtime_ns":17...,"breaks":[600],"ref":{"sample_id":"s17",...}}
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from fsqueue.format import framing, names
from fsqueue.format.codec import UNDECODABLE

SEGMENT_REFS = 10_000
NAME_LIMIT_BYTES = 255 - len(".into-") - 12

_REVISION = r"[0-9a-f]{12}"
_parse_segment = re.compile(rf"packed-({_REVISION})-([0-9]{{1,9}})((?:-{_REVISION})*)\.jsonl\Z").match
_parse_licence = re.compile(rf"packing-({_REVISION})@(.+)\.jsonl\Z").match
_is_revision = re.compile(rf"{_REVISION}\Z").match
_ASIDES = {".into-": True, ".from-": False}
_REVISION_BYTES = 12
_REF = b',"ref":'
_LINES = ".jsonl"


class Segment(NamedTuple):
    """Describe a file of packed refs.

    Attributes:
        refs: how many it holds.
        replaces: the revisions whose segments it stands for.
    """

    name: str
    revision: str
    refs: int
    replaces: tuple[str, ...]


class Licence(NamedTuple):
    """Describe the licence of a revision in the making: whoever takes this file away has ended it."""

    name: str
    revision: str
    owner: str


class Aside(NamedTuple):
    """Describe a done file that a revision has in hand.

    Attributes:
        ref_name: the name that it has by itself.
        original: it was renamed on its way into a segment; otherwise it is a copy from one.
    """

    name: str
    ref_name: str
    original: bool
    revision: str


@dataclass(frozen=True)
class Done:
    """Hold what a listing of done/ says.

    Attributes:
        files: maps the name of each done ref that has a file of its own to that file's present name. A later life
            under the same name hides one that a revision has in hand.
        segments: those in force.
        replaced: those whose successor is there.
    """

    files: dict[str, str]
    segments: list[Segment]
    replaced: list[Segment]
    licences: list[Licence]
    asides: list[Aside]

    @property
    def count(self) -> int:
        """Count the done refs; each packed line and each file is one life of a ref."""
        return len(self.files) + sum(segment.refs for segment in self.segments)

    @property
    def committed(self) -> set[str]:
        return {segment.revision for segment in (*self.segments, *self.replaced)}

    @property
    def in_transit(self) -> bool:
        """Tell whether a revision is at work here, or was cut short."""
        return bool(self.licences or self.asides or self.replaced)


def read_names(listing: Iterable[str]) -> Done:
    """Sort the names in done/; those outside the grammar are left out.

    A listing may show a name twice where the directory changes meanwhile; a segment that counted twice would be merged
    with itself.
    """
    done = Done({}, [], [], [], [])
    segments = []
    for name in dict.fromkeys(listing):
        if name.endswith(names.SUFFIX):
            if names.parse_done(name):
                done.files[name] = name
        elif aside := parse_aside(name):
            done.asides.append(aside)
        elif segment := parse_segment(name):
            segments.append(segment)
        elif licence := parse_licence(name):
            done.licences.append(licence)
    replaced = {revision for segment in segments for revision in segment.replaces}
    for segment in sorted(segments):
        (done.replaced if segment.revision in replaced else done.segments).append(segment)
    committed = done.committed
    for aside in done.asides:
        if aside.original != (aside.revision in committed):
            done.files.setdefault(aside.ref_name, aside.name)
    return done


def of_packing(listing: Iterable[str]) -> list[str]:
    """Return the names in done/ that are no done ref's own."""
    return [name for name in listing if not name.endswith(names.SUFFIX)]


def among(listing: Iterable[str], stems: Collection[str]) -> list[str]:
    """Return the names in done/ but for those of other refs' files; some that are no file's of these may remain."""
    cut = -len(names.SUFFIX)
    return [n for n in listing if not n.endswith(names.SUFFIX) or n[:cut].partition("@")[0] in stems]


def revisions_in(listing: Iterable[str]) -> set[str]:
    """Return the names of licences and segments."""
    return {name for name in listing if name.endswith(_LINES) and (parse_segment(name) or parse_licence(name))}


def is_in_transit(listing: Iterable[str]) -> bool:
    """Return whether `Done.in_transit` is so of a listing, at less cost."""
    odd = of_packing(listing)
    return any(map(parse_aside, odd)) or read_names(odd).in_transit


def count(listing: list[str]) -> int:
    """Return `Done.count` of a listing, at less cost."""
    odd = of_packing(listing)
    if any(map(parse_aside, odd)):
        return read_names(listing).count
    plain = [name for name in listing if name.endswith(names.SUFFIX)] if odd else listing
    return read_names(odd).count + names.count_done(plain)


def segment_file(revision: str, refs: int, replaces: Iterable[str] = ()) -> str:
    return "-".join(("packed", revision, str(refs), *replaces)) + ".jsonl"


def licence_file(revision: str, owner: str) -> str:
    return f"packing-{revision}@{owner}.jsonl"


def aside_file(ref_name: str, revision: str, *, original: bool) -> str:
    return f"{ref_name}.{'into' if original else 'from'}-{revision}"


def parse_segment(name: str) -> Segment | None:
    match = _parse_segment(name)
    return Segment(name, match[1], int(match[2]), tuple(match[3].split("-")[1:])) if match else None


def refs_in(files: Iterable[str]) -> int:
    """Count the refs in files of done/ or failed/, by their names: a segment holds many."""
    return sum(segment.refs if (segment := parse_segment(name)) else 1 for name in files)


def parse_licence(name: str) -> Licence | None:
    match = _parse_licence(name)
    return Licence(name, match[1], match[2]) if match and names.is_owner(match[2]) else None


def parse_aside(name: str) -> Aside | None:
    revision, kind = name[-_REVISION_BYTES:], name[-_REVISION_BYTES - 6 : -_REVISION_BYTES]
    if kind not in _ASIDES or not _is_revision(revision):
        return None
    ref_name = name[: -_REVISION_BYTES - 6]
    return Aside(name, ref_name, _ASIDES[kind], revision) if names.parse_done(ref_name) else None


def revision_of(name: str) -> str | None:
    """Return the revision that a file of packed refs belongs to; None for another file."""
    found = parse_segment(name) or parse_licence(name) or parse_aside(name)
    return found.revision if found else None


class _Head(msgspec.Struct):
    stem: str
    step: int | None
    mtime_ns: int
    breaks: list[int]


_decode_head = msgspec.json.Decoder(_Head).decode
_encode = msgspec.json.Encoder().encode


class Line(NamedTuple):
    """Hold a packed ref.

    Attributes:
        mtime_ns: the done file's last stamp.
        data: the done file's bytes.
        span: where in the segment the line begins and ends.
    """

    stem: str
    step: int | None
    mtime_ns: int
    data: bytes
    span: tuple[int, int] = (0, 0)

    @property
    def ref_name(self) -> str:
        return names.done_file(self.stem, self.step)


def encode_line(line: Line) -> bytes:
    """Return a line of a segment; the data is a JSON object."""
    breaks, at = [], line.data.find(b"\n")
    while at >= 0:
        breaks.append(at)
        at = line.data.find(b"\n", at + 1)
    head = _encode(_Head(line.stem, line.step, line.mtime_ns, breaks))
    return framing.frame(head[1:-1] + _REF + line.data.replace(b"\n", b" "))


def whole_lines(data: bytes) -> tuple[list[Line], list[tuple[int, int]]]:
    """Return the lines of a segment, and the stretches of it that belong to none.

    A line whose length, checksum or fields are wrong is never read: it is one of those stretches.
    """
    lines: list[Line] = []
    damaged: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        rest = data[at:] if at else data
        end = 0
        for start, end in framing.scan(rest):
            line = _line(rest, start, end, at)
            if line is None:
                damaged.append((at + start, at + end))
            else:
                lines.append(line)
        if end < len(rest):
            later = framing.find_later(rest[end:])
            stop = len(rest) if later is None else end + later
            damaged.append((at + end, at + stop))
            end = stop
        at += end
    return lines, damaged


def count_lines(data: bytes) -> int | None:
    """Count the lines of a segment; None where some of it belongs to none."""
    count = end = 0
    for start, end in framing.scan(data):
        if _head(data, start, end) is None:
            return None
        count += 1
    return count if end == len(data) else None


def _head(data: bytes, start: int, end: int) -> tuple[_Head, int] | None:
    """Return the fields of a whole line, and where its ref begins; None where they are wrong."""
    split = data.find(_REF, start, end)
    try:
        head = _decode_head(b"{" + data[start + framing.PREFIX_BYTES : split] + b"}")
    except UNDECODABLE:
        return None
    if split < 0 or not names.is_stem(head.stem) or (head.step or 0) < 0:
        return None
    begin = split + len(_REF)
    if any(not (0 <= at < end - 2 - begin and data[begin + at] == 0x20) for at in head.breaks):
        return None
    return head, begin


def _line(data: bytes, start: int, end: int, offset: int) -> Line | None:
    found = _head(data, start, end)
    if found is None:
        return None
    head, begin = found
    ref = data[begin : end - 2]
    if head.breaks:
        broken = bytearray(ref)
        for at in head.breaks:
            broken[at] = 0x0A
        ref = bytes(broken)
    return Line(head.stem, head.step, head.mtime_ns, ref, (offset + start, offset + end))


def without(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    """Return bytes without some stretches of them, given in order."""
    cuts = list(spans)
    ends = [0, *(end for _, end in cuts)]
    starts = [*(start for start, _ in cuts), len(data)]
    return b"".join(data[end:start] for end, start in zip(ends, starts, strict=True))


def lines_of(data: bytes, stem: str) -> Iterator[Line]:
    """Yield the lines of one stem."""
    if b'"stem":"%s",' % stem.encode() in data:
        yield from (line for line in whole_lines(data)[0] if line.stem == stem)
