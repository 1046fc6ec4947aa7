"""A look at one directory entry of a queue: what is wrong with it, by itself."""

from __future__ import annotations

import os
import re
import stat as stat_module
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import DIRECTORIES, LEDGER, ORDER, SETTINGS, STATES, STREAM, Layout
from fsqueue.engine.order import HEADER_BYTES, Header
from fsqueue.engine.owners import read_record
from fsqueue.engine.packing.revision import is_abandoned
from fsqueue.errors import CorruptRefError
from fsqueue.format import names, packed
from fsqueue.format.untyped import Place, RefSight, allows, place_of, sight, type_name
from fsqueue.operate.check.stream_looks import StreamLooks
from fsqueue.operate.check.violations import NOTES, REMEDIES, Severity, Violation

LEFTOVER_S = 3600.0
FUTURE_S = 3600.0
_replaced_order = re.compile(rf"\.{re.escape(ORDER)}\.[0-9]+\.[0-9a-f]{{12}}\Z").match

Signature = tuple[int, int, int]


class Copy(NamedTuple):
    """One file of a live ref."""

    state: str
    name: str
    owner: str | None


class Look(NamedTuple):
    """What was seen at a name.

    Attributes:
        place: the directory, "" for the queue's own.
        signature: which file it was, in which version; None: there was none.
    """

    place: str
    name: str
    signature: Signature | None
    found: list[Violation]


class Looks:
    """Looks at the entries of one open queue.

    Attributes:
        leases: how many leases each owner holds, as of the last `refresh`.
        live: the files in pending/ and leased/ by sample id, as far as they were looked at.
        linked: by inode, (state, name) of the refs' files that have several hard links.
    """

    def __init__(self, layout: Layout) -> None:
        self._ops = layout.ops
        self._layout = layout
        self._now = layout.ops.time()
        self._participant = self._ops.access(".", os.W_OK, dir_fd=layout.pending.fd)
        self.places: dict[str, Directory] = {"": layout.root, **{name: getattr(layout, name) for name in DIRECTORIES}}
        self._stream: StreamLooks | None = None
        self._open_stream()
        self.leases: Counter[str] = Counter()
        self.live: dict[str, dict[Copy, None]] = defaultdict(dict)
        self.linked: dict[int, dict[tuple[str, str], None]] = defaultdict(dict)
        self._revisions: set[str] = set()
        self._replaced: set[str] = set()

    def _open_stream(self) -> None:
        try:
            self.places[STREAM] = Directory(self._ops, os.path.join(self._layout.path, STREAM))
        except (FileNotFoundError, NotADirectoryError):
            return
        self._stream = StreamLooks(self._layout, self.places[STREAM], LEFTOVER_S)

    def close(self) -> None:
        """Close what the layout does not."""
        if self._stream is not None:
            self.places[STREAM].close()

    def refresh(self) -> None:
        """Learn anew what one file's problems depend on beside the file."""
        if self._stream is not None:
            self._stream.refresh()
        parsed = (names.parse_leased(name) for name in self._layout.leased.listing())
        self.leases = Counter(lease[1] for lease in parsed if lease)
        done = packed.read_names(self._layout.done.listing())
        running = (found for found in done.licences if not is_abandoned(self._layout, found, self._now))
        self._revisions = {licence.revision for licence in running}
        self._replaced = {segment.name for segment in done.replaced}

    def names_in(self, place: str) -> list[str]:
        """The names to look at: those that are there, and those that ought to be."""
        listed = self.places[place].listing()
        if place == "":
            listed.append(ORDER)
        elif place == "owners":
            listed += [names.ref_file(owner) for owner in self.leases]
        return list(dict.fromkeys(listed))

    def look(self, place: str, name: str) -> Look:
        try:
            status = self._ops.stat(name, dir_fd=self.places[place].fd, follow_symlinks=False)
        except FileNotFoundError:
            return Look(place, name, None, list(self._absent(place, name)))
        if place in STATES:
            found = self._ref(place, name, status)
        elif place == "owners":
            found = self._owner(name, status)
        elif place == "tmp":
            found = self._tmp(name, status)
        elif place == STREAM:
            found = self._stream_file(name, status)
        else:
            found = self._root(name, status)
        return Look(place, name, (status.st_ino, status.st_size, status.st_mtime_ns), list(found))

    def violation(
        self, kind: str, place: str, name: str, problem: str, *, severity: Severity | None = None
    ) -> Violation:
        path = os.path.join(self._layout.path, *filter(None, (place, name)))
        return Violation(path, problem, REMEDIES[kind], kind, severity or ("note" if kind in NOTES else "damage"))

    def _absent(self, place: str, name: str) -> Iterator[Violation]:
        owner = names.parse_owner(name) if place == "owners" else None
        if owner and self.leases[owner]:
            yield self.violation("no-record", place, name, f"missing, though leases name it: {self.leases[owner]}")
        if (place, name) == ("", ORDER):
            yield self.violation("order", place, name, "missing")

    def _ref(self, state: str, name: str, status: os.stat_result) -> Iterator[Violation]:
        if _ignored(name):
            return
        if state == "done" and (revision := packed.revision_of(name)) is not None:
            yield from self._packed(name, revision, status)
            return
        place = place_of(state, name)
        if place is None and not name.endswith(names.SUFFIX):
            yield self.violation("foreign", state, name, "no file of the queue's")
            return
        if not stat_module.S_ISREG(status.st_mode):
            yield self.violation("not-a-file", state, name, f"a {type_name(status)} in a ref's place")
            return
        yield from self._permissions(state, name, status)
        try:
            data = self._ops.read_file(self.places[state].fd, name)
        except (FileNotFoundError, PermissionError):
            return
        except CorruptRefError as error:
            yield self.violation("not-a-file", state, name, error.reason)
            return
        yield from self._content(state, name, place, sight(data))
        yield from self._status(state, name, status)

    def _packed(self, name: str, revision: str, status: os.stat_result) -> Iterator[Violation]:
        """A segment, or what a revision has in hand."""
        segment = packed.parse_segment(name)
        if not stat_module.S_ISREG(status.st_mode):
            yield self.violation("not-a-file", "done", name, f"a {type_name(status)} in the place of packed refs")
        elif segment is None or name in self._replaced:
            if revision not in self._revisions:
                yield self.violation("packing", "done", name, "of a packing that was cut short")
        elif not allows(status, write=False):
            yield self.violation("unreadable", "done", name, "this user cannot read it")
        else:
            yield from self._segment(segment)

    def _segment(self, segment: packed.Segment) -> Iterator[Violation]:
        try:
            lines, damaged = packed.whole_lines(self._ops.read_file(self.places["done"].fd, segment.name))
        except FileNotFoundError:
            return
        except CorruptRefError as error:
            yield self.violation("not-a-file", "done", segment.name, error.reason)
            return
        if damaged:
            size = sum(end - start for start, end in damaged)
            yield self.violation("segment", "done", segment.name, f"{size} bytes in it belong to no whole line")
        elif len(lines) != segment.refs:
            problem = f"it holds {len(lines)} refs, its name says {segment.refs}"
            yield self.violation("segment", "done", segment.name, problem)

    def _permissions(self, state: str, name: str, status: os.stat_result) -> Iterator[Violation]:
        if not allows(status, write=False):
            yield self.violation("unreadable", state, name, "this user cannot read it")
        elif self._participant and state in ("pending", "leased") and not allows(status, write=True):
            yield self.violation("unreadable", state, name, "this user cannot write it, so cannot lease it")

    def _content(self, state: str, name: str, place: Place | None, ref: RefSight) -> Iterator[Violation]:
        if ref.torn:
            # CRASH: a process that died while it wrote history leaves a leased file so.
            kind = "torn-lease" if state == "leased" else "torn"
            yield self.violation(kind, state, name, "its bookkeeping does not decode")
        if ref.sample_id is None:
            if place is None:
                yield self.violation("foreign", state, name, f"no file of the queue's: it {ref.problem}")
            elif state != "failed" or ref.bookkeeping.reason is None:
                yield self.violation("undecodable" if ref.fields is None else "no-id", state, name, f"it {ref.problem}")
            return
        if state in ("pending", "leased"):
            self.live[ref.sample_id][Copy(state, name, place.owner if place else None)] = None
        stem = names.stem_of(ref.sample_id)
        if state == "leased" and place is None:
            yield self.violation("unowned", state, name, f"holds the ref {ref.sample_id!r}, but its name has no owner")
        elif place is None or (place.stem != stem and not self._being_renamed(state, place)):
            yield self.violation("misnamed", state, name, f"holds the ref {ref.sample_id!r}, whose name is {stem}")

    def _being_renamed(self, state: str, place: Place) -> bool:
        """RACE: a get claims a file by the name it has, and gives it its right name after reading it."""
        return state == "leased" and place.owner is not None and self._liveness(place.owner) == "alive"

    def _liveness(self, owner: str) -> str | None:
        record = read_record(self._ops, self._layout.owners, owner)
        return record.liveness() if record else None

    def _status(self, state: str, name: str, status: os.stat_result) -> Iterator[Violation]:
        ahead_s = status.st_mtime - self._now
        if state == "leased" and ahead_s > FUTURE_S:
            yield self.violation("future", state, name, f"stamped {ahead_s:.0f} s in the future: expires so much later")
        if status.st_nlink > 1:
            self.linked[status.st_ino][state, name] = None
            yield self.violation("linked", state, name, f"it has {status.st_nlink} hard links")

    def _owner(self, name: str, status: os.stat_result) -> Iterator[Violation]:
        if _ignored(name):
            return
        owner = names.parse_owner(name)
        if owner is None or not stat_module.S_ISREG(status.st_mode):
            yield self.violation("foreign", "owners", name, "no owner's record")
            return
        try:
            record = read_record(self._ops, self._layout.owners, owner)
        except PermissionError:
            yield self.violation("unreadable", "owners", name, "this user cannot read it")
            return
        if record is None or record.owner != owner:
            yield self.violation("owner-unreadable", "owners", name, "holds no record of this owner")
            return
        if record.liveness() == "dead" and not self.leases[owner]:
            yield self.violation("owner-gone", "owners", name, "the process is gone and holds no lease")
        ahead_s = status.st_mtime - self._now
        if record.heartbeat_s is not None and ahead_s > FUTURE_S:
            yield self.violation("future", "owners", name, f"the last beat is {ahead_s:.0f} s in the future")

    def _tmp(self, name: str, status: os.stat_result) -> Iterator[Violation]:
        if not stat_module.S_ISREG(status.st_mode):
            yield self.violation("foreign", "tmp", name, f"a {type_name(status)}")
            return
        owner = name.rpartition(".")[0]
        liveness = self._liveness(owner) if names.is_owner(owner) else None
        if liveness == "dead":
            yield self.violation("leftover", "tmp", name, "left by a process that is gone")
        elif liveness != "alive" and self._now - status.st_mtime > LEFTOVER_S:
            yield self.violation("leftover", "tmp", name, "unfinished for more than an hour")

    def _stream_file(self, name: str, status: os.stat_result) -> Iterator[Violation]:
        if self._stream is None or _ignored(name):
            return
        for kind, problem in self._stream.problems(name, status):
            yield self.violation(kind, STREAM, name, problem)

    def _root(self, name: str, status: os.stat_result) -> Iterator[Violation]:
        if name == ORDER:
            yield from self._order(status)
        elif _replaced_order(name):
            if self._now - status.st_mtime > LEFTOVER_S:
                yield self.violation("leftover", "", name, "an order file that was never put in place")
        elif (
            name not in (SETTINGS, STREAM, LEDGER, *DIRECTORIES)
            and not _ignored(name)
            and not name.startswith("order.lease")
        ):
            yield self.violation("foreign", "", name, "nothing of the queue's")

    def _order(self, status: os.stat_result) -> Iterator[Violation]:
        if not stat_module.S_ISREG(status.st_mode):
            yield self.violation("not-a-file", "", ORDER, f"a {type_name(status)}: nobody can lock or write it")
            return
        if self._participant and not allows(status, write=True):
            yield self.violation("unreadable", "", ORDER, "this user cannot read and write it, so cannot lock it")
        try:
            data = self._ops.read_file(self._layout.root.fd, ORDER)
        except (FileNotFoundError, PermissionError, CorruptRefError):
            return
        header = Header.decode(data[:HEADER_BYTES])
        if data and (header is None or header.cursor > len(data)):
            yield self.violation("order", "", ORDER, "its header is damaged")
        lines = data[header.cursor :].decode("ascii", "replace").split("\n") if header else []
        garbage = sum(1 for line in lines if line and line[0] != "#" and not names.is_stem(line))
        if garbage:
            yield self.violation("order", "", ORDER, f"lines that name nothing: {garbage}")

    def directories(self) -> Iterator[Violation]:
        device = self._ops.fstat(self._layout.root.fd).st_dev
        for place in filter(None, self.places):
            if self._ops.fstat(self.places[place].fd).st_dev != device:
                yield self.violation("other-filesystem", place, "", "refs cannot be renamed between it and the others")
            if not self._ops.access(".", os.W_OK | os.X_OK, dir_fd=self.places[place].fd):
                yield self.violation("not-writable", place, "", "this user cannot change it")


def _ignored(name: str) -> bool:
    """Names that no part of fsqueue looks at: dot files, .nfs..., editors' backups."""
    return name.startswith(".") or name.endswith("~")
