"""Look at one directory entry of a queue for what is wrong with it, by itself."""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from typing import NamedTuple

from fsqueue.engine.departed import ABANDONED_AFTER_S
from fsqueue.engine.layout import DIRECTORIES, HEADER_BYTES, LEDGER, ORDER, REF_TYPE, STATES, STREAM, Layout, read_json
from fsqueue.engine.order import Header
from fsqueue.engine.owners import read_record
from fsqueue.engine.packing.revision import is_abandoned
from fsqueue.engine.pausing import PAUSED
from fsqueue.engine.settings import SETTINGS
from fsqueue.errors import CorruptRefError
from fsqueue.format import names, packed
from fsqueue.format.lines import stem_in
from fsqueue.format.ref_type import RefType
from fsqueue.format.untyped import Place, RefSight, allows, place_of, sight, type_name
from fsqueue.operate.check.sound import Sound
from fsqueue.operate.check.stream_looks import StreamLooks
from fsqueue.operate.check.violations import Problem, Severity, Violation, violation
from fsqueue.operate.stream_status import open_stream

LEFTOVER_S = 3600.0
FUTURE_S = 3600.0
_KNOWN = (SETTINGS, PAUSED, STREAM, LEDGER, REF_TYPE, *DIRECTORIES)
_unplaced = re.compile(rf"\.({'|'.join(map(re.escape, (ORDER, SETTINGS, PAUSED)))})\.[0-9]+\.[0-9a-f]{{12}}\Z").match

Signature = tuple[int, int, int]


class Copy(NamedTuple):
    """Name one file of a live ref."""

    state: str
    name: str
    owner: str | None


class Look(NamedTuple):
    """Hold what was seen at a name.

    Attributes:
        where: the directory, "" for the queue's own.
        signature: which file it was, in which version; None: there was none.
    """

    where: str
    name: str
    signature: Signature | None
    found: list[Violation]


class Looks:
    """Look at the entries of one open queue.

    Attributes:
        directories: those to look at, by name; "" for the queue's own.
        leases: how many leases each owner holds, as of the last `refresh`.
        sound: passes over what is sound by itself.
        live: the files in pending/ and leased/ by sample id, as far as they were looked at closely (`pair_up`).
        linked: by inode, (state, name) of the refs' files that have several hard links.
    """

    def __init__(self, layout: Layout) -> None:
        self._ops = layout.ops
        self.layout = layout
        self._now = layout.ops.time()
        self._participant = self._ops.access(".", os.W_OK, dir_fd=layout.pending.fd)
        beside = {directory.name: directory for directory in layout.more_tmp()}
        self.directories = {"": layout.root, **{name: getattr(layout, name) for name in DIRECTORIES}, **beside}
        self._stream: StreamLooks | None = None
        stream = open_stream(layout)
        if stream is not None:
            self.directories[STREAM] = stream
            self._stream = StreamLooks(layout, stream, LEFTOVER_S)
        self.leases: Counter[str] = Counter()
        self.live: dict[str, dict[Copy, None]] = defaultdict(dict)
        self.linked: dict[int, dict[tuple[str, str], None]] = defaultdict(dict)
        self.sound = Sound(layout, self._now + FUTURE_S, self._participant)
        self._revisions: set[str] = set()
        self._replaced: set[str] = set()

    def close(self) -> None:
        """Close what the layout does not."""
        if self._stream is not None:
            self.directories[STREAM].close()

    def refresh(self) -> None:
        """Learn anew what one file's problems depend on beside the file."""
        if self._stream is not None:
            self._stream.refresh()
        parsed = (names.parse_leased(name) for name in self.layout.leased.listing())
        self.leases = Counter(lease.owner for lease in parsed if lease and lease.is_held)
        done = packed.read_names(packed.of_packing(self.layout.done.listing()))
        running = (found for found in done.licences if not is_abandoned(self.layout, found, self._now))
        self._revisions = {licence.revision for licence in running}
        self._replaced = {segment.name for segment in done.replaced}

    def names_in(self, where: str) -> list[str]:
        """Return the names to look at: those that are there, and those that ought to be."""
        listed = self.directories[where].listing()
        if where == "":
            listed.append(ORDER)
        elif where == "owners":
            listed += [names.ref_file(owner) for owner in self.leases]
        return list(dict.fromkeys(listed))

    def look(self, where: str, name: str) -> Look:
        """Look at a name in a directory, whether it is there or not."""
        signature: Signature | None = None
        try:
            status = self._ops.stat(name, dir_fd=self.directories[where].fd, follow_symlinks=False)
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            problems = list(self._present(where, name, status))
        except OSError as error:
            if not self._is_gone(error):
                raise
            signature, problems = None, list(self._absent(where, name))
        return Look(where, name, signature, [self.violation(kind, where, name, text) for kind, text in problems])

    def _is_gone(self, error: OSError) -> bool:
        """Tell whether a look has failed since somebody has removed or replaced the file: the next one sees what is so.

        On a shared mount ESTALE and EBADF say so too, of a file that a rename has just replaced.
        """
        return error.errno == errno.ENOENT or (self.layout.remote and error.errno in (errno.ESTALE, errno.EBADF))

    def violation(self, kind: str, where: str, name: str, problem: str, severity: Severity | None = None) -> Violation:
        """Return a violation at a name in a directory."""
        return violation(kind, os.path.join(self.layout.path, *filter(None, (where, name))), problem, severity)

    def _present(self, where: str, name: str, status: os.stat_result) -> Iterator[Problem]:
        if where in STATES:
            return self._ref(where, name, status)
        looks = {"": self._root, "owners": self._owner, STREAM: self._stream_file}
        return looks.get(where, self._unfinished)(name, status)

    def _absent(self, where: str, name: str) -> Iterator[Problem]:
        owner = names.parse_owner(name) if where == "owners" else None
        if owner and self.leases[owner]:
            yield "no-record", f"missing, though leases name it: {self.leases[owner]}"
        if (where, name) == ("", ORDER):
            yield "order", "missing"

    def _ref(self, state: str, name: str, status: os.stat_result) -> Iterator[Problem]:
        if _ignored(name):
            return
        if state == "done" and (revision := packed.revision_of(name)) is not None:
            yield from self._packed(name, revision, status)
            return
        place = place_of(state, name)
        if place is None and not name.endswith(names.SUFFIX):
            yield "foreign", "no file of the queue's"
            return
        if not stat_module.S_ISREG(status.st_mode):
            yield "not-a-file", f"a {type_name(status)} in a ref's place"
            return
        yield from self._permissions(state, status)
        data = yield from self._data(state, name)
        if data is not None:
            yield from self._content(state, name, place, sight(data))
            yield from self._status(state, name, status)

    def _data(self, state: str, name: str) -> Generator[Problem, None, bytes | None]:
        """Read a file; None where it is gone, this user cannot read it, or it is no regular one."""
        try:
            return self._ops.read_file(self.directories[state].fd, name)
        except (FileNotFoundError, PermissionError):
            return None
        except CorruptRefError as error:
            yield "not-a-file", error.reason
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # A get buries such a file at last, as it is.
            yield ("dead-unread" if state == "failed" else "unread"), "cannot be read: EIO, an error of the storage"
            return None

    def _packed(self, name: str, revision: str, status: os.stat_result) -> Iterator[Problem]:
        """Look at a segment, or at what a revision has in hand."""
        segment = packed.parse_segment(name)
        if not stat_module.S_ISREG(status.st_mode):
            yield "not-a-file", f"a {type_name(status)} in the place of packed refs"
        elif segment is None or name in self._replaced:
            if revision not in self._revisions:
                yield "packing", "of a packing that was cut short, or of an ack whose rename this mount did not make"
        elif not allows(status, write=False):
            yield "unreadable", "this user cannot read it"
        else:
            yield from self._segment(segment)

    def _segment(self, segment: packed.Segment) -> Iterator[Problem]:
        data = yield from self._data("done", segment.name)
        if data is None:
            return
        held = packed.count_lines(data)
        if held is None:
            size = sum(end - start for start, end in packed.whole_lines(data)[1])
            yield "segment", f"{size} bytes in it belong to no whole line"
        elif held != segment.refs:
            yield "segment", f"it holds {held} refs, its name says {segment.refs}"

    def _permissions(self, state: str, status: os.stat_result) -> Iterator[Problem]:
        if not allows(status, write=False):
            yield "unreadable", "this user cannot read it"
        elif self._participant and state in ("pending", "leased") and not allows(status, write=True):
            yield "unreadable", "this user cannot write it, so cannot lease it"

    def _content(self, state: str, name: str, place: Place | None, ref: RefSight) -> Iterator[Problem]:
        if ref.torn:
            # CRASH: a process that died while it wrote history leaves a leased file so.
            kind = "torn-lease" if state == "leased" else "torn"
            yield kind, "its bookkeeping does not decode"
        if ref.sample_id is None:
            if place is None:
                yield "foreign", f"no file of the queue's: it {ref.problem}"
            elif state != "failed" or ref.bookkeeping.reason is None:
                yield "undecodable" if ref.fields is None else "no-id", f"it {ref.problem}"
            return
        if state in ("pending", "leased"):
            self.live[ref.sample_id][Copy(state, name, place.owner if place else None)] = None
        stem = names.stem_of(ref.sample_id)
        if state == "leased" and place is None:
            yield "unowned", f"holds the ref {ref.sample_id!r}, but its name has no owner"
        elif place is None or (place.stem != stem and not self._being_renamed(state, place)):
            yield "misnamed", f"holds the ref {ref.sample_id!r}, whose name is {stem}"

    def _being_renamed(self, state: str, place: Place) -> bool:
        """Tell whether a process that runs may be giving a claimed file its right name.

        RACE: a get claims a file by the name it has, and renames it after reading it.
        """
        return state == "leased" and place.owner is not None and self.liveness(place.owner) == "alive"

    def liveness(self, owner: str) -> str | None:
        """Tell whether an owner's process is "alive", "dead" or "unknown"; None where it has no record."""
        record = read_record(self.layout.owners, owner)
        return record.liveness() if record else None

    def _status(self, state: str, name: str, status: os.stat_result) -> Iterator[Problem]:
        ahead_s = status.st_mtime - self._now
        if state == "leased" and ahead_s > FUTURE_S:
            yield "future", f"stamped {ahead_s:.0f} s in the future: expires so much later"
        if status.st_nlink > 1:
            self.linked[status.st_ino][state, name] = None
            yield "linked", f"it has {status.st_nlink} hard links"

    def _owner(self, name: str, status: os.stat_result) -> Iterator[Problem]:
        if _ignored(name):
            return
        owner = names.parse_owner(name)
        if owner is None or not stat_module.S_ISREG(status.st_mode):
            yield "foreign", "no owner's record"
            return
        try:
            record = read_record(self.layout.owners, owner)
        except PermissionError:
            yield "unreadable", "this user cannot read it"
            return
        if record is None or record.owner != owner:
            yield "owner-unreadable", "holds no record of this owner"
            return
        if record.liveness() == "dead" and not self.leases[owner]:
            yield "owner-gone", "the process is gone and holds no lease"
        ahead_s = status.st_mtime - self._now
        if record.heartbeat_s is not None and ahead_s > FUTURE_S:
            yield "future", f"the last beat is {ahead_s:.0f} s in the future"

    def _unfinished(self, name: str, status: os.stat_result) -> Iterator[Problem]:
        if not stat_module.S_ISREG(status.st_mode):
            yield "foreign", f"a {type_name(status)}"
            return
        owner = name.rpartition(".")[0]
        is_owner, age_s = names.is_owner(owner), self._now - status.st_mtime
        liveness = self.liveness(owner) if is_owner else None
        if liveness == "dead":
            yield "leftover", "left by a process that is gone"
        elif not is_owner and age_s > LEFTOVER_S:
            yield "leftover", "unfinished for more than an hour"
        elif liveness is None and age_s > ABANDONED_AFTER_S:
            yield "leftover", "unfinished for more than a day, by an owner without a record"

    def _stream_file(self, name: str, status: os.stat_result) -> Iterator[Problem]:
        if self._stream is not None and not _ignored(name):
            yield from self._stream.problems(name, status)

    def _root(self, name: str, status: os.stat_result) -> Iterator[Problem]:
        if name == ORDER:
            yield from self._order(status)
        elif name == REF_TYPE:
            yield from self._ref_type(status)
        elif unplaced := _unplaced(name):
            if self._now - status.st_mtime > LEFTOVER_S:
                yield "leftover", f"a {unplaced[1]} that was never put in place"
        elif name not in _KNOWN and not _ignored(name) and not name.startswith("order.lease"):
            yield "foreign", "nothing of the queue's"

    def _ref_type(self, status: os.stat_result) -> Iterator[Problem]:
        try:
            found = read_json(self.layout.root, REF_TYPE, RefType)
        except PermissionError:
            yield "unreadable", "this user cannot read it, so can neither put nor get"
            return
        if found is None:
            what = "is damaged" if stat_module.S_ISREG(status.st_mode) else f"is a {type_name(status)}"
            yield "type-unreadable", f"{what}, so that handles put and get refs of any class"

    def _order(self, status: os.stat_result) -> Iterator[Problem]:
        if not stat_module.S_ISREG(status.st_mode):
            yield "not-a-file", f"a {type_name(status)}: nobody can lock or write it"
            return
        if self._participant and not allows(status, write=True):
            yield "unreadable", "this user cannot read and write it, so cannot lock it"
        try:
            data = self._ops.read_file(self.layout.root.fd, ORDER)
        except (FileNotFoundError, PermissionError, CorruptRefError):
            return
        except OSError as error:
            yield "order", f"cannot be read ({error.strerror}): the next put or get replaces it"
            return
        header = Header.decode(data[:HEADER_BYTES])
        if data and (header is None or header.cursor > len(data)):
            yield "order", "its header is damaged"
        lines = data[header.cursor :].decode("ascii", "replace").split("\n") if header else []
        garbage = sum(1 for line in lines if line and line[0] != "#" and stem_in(line) is None)
        if garbage:
            yield "order", f"lines that name nothing: {garbage}"

    def unfit_directories(self) -> Iterator[Violation]:
        """Yield the directories that this user cannot write in, or that refs cannot be renamed into."""
        device = self._ops.fstat(self.layout.root.fd).st_dev
        for where in filter(None, self.directories):
            fd = self.directories[where].fd
            if self._ops.fstat(fd).st_dev != device:
                yield self.violation("other-filesystem", where, "", "refs cannot be renamed between it and the others")
            if not self._ops.access(".", os.W_OK | os.X_OK, dir_fd=fd):
                yield self.violation("not-writable", where, "", "this user cannot change it")


def _ignored(name: str) -> bool:
    """Tell whether no part of fsqueue looks at such names: dot files, .nfs..., editors' backups."""
    return name.startswith(".") or name.endswith("~")
