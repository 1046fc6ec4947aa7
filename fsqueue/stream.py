"""A stream over the queue: who produces, who consumes, and when it is over.

    stream/<role>@<name>-<owner>@<state>.json     role: producer or consumer; state: open, closed or failed
    stream/quantum.json                    what the consumers take at a time

A member's file is its record; its mtime is the member's heartbeat. Leaving is one rename from open to closed; a
member that fails writes its reason into a failed file first and removes the open one then. The end of the
stream is decided by these files and the refs' own, never by one empty listing.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Container, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Literal, NamedTuple

import msgspec

from fsqueue import names, owners
from fsqueue.codec import UNDECODABLE, tidy
from fsqueue.directory import Directory
from fsqueue.errors import CorruptRefError, MemberFailedError, QueueConfigError
from fsqueue.fileops import FileOps, explained, silently_remove
from fsqueue.handle import Handle
from fsqueue.layout import STREAM, make_directory
from fsqueue.tally import Unchanged, settling_s

Role = Literal["producer", "consumer"]
State = Literal["open", "closed", "failed"]

BEAT_S = 5.0
DEAD_AFTER_S = 30.0
QUANTUM = "quantum.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a member's file says.

    Attributes:
        name: what the user called it; a restarted member takes its dead namesake's place.
        expected: how many members of this role the stream has in all; 0 where nobody said.
        reason, traceback: of a failed member.
    """

    name: str
    process: owners.OwnerRecord
    expected: int = 0
    reason: str | None = None
    traceback: str | None = None


class Quantum(msgspec.Struct, frozen=True):
    """How many refs the consumers take at a time: a high watermark below it would starve them for good."""

    dp_size: int
    batch_size: int
    accumulation_steps: int

    @property
    def refs(self) -> int:
        return self.dp_size * self.batch_size * self.accumulation_steps


class Member(NamedTuple):
    """A member of the stream as its file shows it.

    Attributes:
        age_s: seconds since its last heartbeat, by the filesystem's clock.
    """

    role: Role
    state: State
    record: Record
    age_s: float

    @property
    def is_dead(self) -> bool:
        """Open, but its process is gone or silent for `DEAD_AFTER_S` seconds; a restart has had that long."""
        if self.state != "open" or self.age_s <= DEAD_AFTER_S:
            return False
        return self.record.process.liveness() != "alive"

    def describe(self) -> str:
        process = self.record.process
        return (
            f"{self.role} {self.record.name!r} (pid {process.pid} on {process.host}, last seen {self.age_s:.0f} s ago)"
        )


class Stream:
    """The stream's members, as one handle sees them."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._ops: FileOps = handle.ops
        path = os.path.join(handle.layout.path, STREAM)
        make_directory(self._ops, path)
        self.directory = Directory(self._ops, path)
        self._stood: tuple[tuple[int, int], float] = ((0, 0), 0.0)
        self._unchanged = Unchanged(self.directory)
        self._watched_at = -1e9

    @classmethod
    def of(cls, handle: Handle) -> Stream:
        """The handle's stream, opened on first use."""
        if handle.stream is None:
            handle.stream = cls(handle)
        return handle.stream

    def close(self) -> None:
        self.directory.close()

    def join(self, role: Role, name: str, expected: int) -> Membership:
        """Register a member in the place of a namesake that has left, failed or died.

        Raises:
            QueueConfigError: a member of this name is alive.
        """
        earlier = []
        for file, member in self._files():
            if (member.role, member.record.name) != (role, name):
                continue
            if member.state == "open" and member.record.process.liveness() != "dead" and member.age_s <= DEAD_AFTER_S:
                raise QueueConfigError(
                    self._handle.layout.path,
                    f"has a {member.describe()}: give this one another name, end that one, or wait until it has been "
                    f"silent for {DEAD_AFTER_S:.0f} s",
                )
            earlier.append(file)
        described = owners.describe_self(self._handle.owner, self._ops.time(), BEAT_S)
        record = Record(name=name, process=described, expected=expected)
        membership = Membership(self._handle, self.directory, role, record)
        try:
            silently_remove(self._ops, self.directory.fd, earlier)
        except BaseException:
            membership.withdraw()
            raise
        return membership

    def members(self) -> list[Member]:
        return [member for _, member in self._files()]

    def _files(self) -> list[tuple[str, Member]]:
        """RACE: a member whose file is renamed while this reads must not be missing, so then it is listed again."""
        while True:
            listing = self.directory.listing()
            now = self._handle.clock.now() if any(map(parse_member, listing)) else 0.0
            found = list(read_members(self._ops, self.directory, listing, now))
            unread = {name for name in listing if parse_member(name)} - {name for name, _ in found}
            if not unread or unread <= set(self.directory.listing()):
                return found

    def raise_failures(self, role: Role, among: Container[str] | None = None) -> None:
        """Raise the error of a member of this role that failed or died, if there is one.

        For its first `DEAD_AFTER_S` seconds, a handle leaves aside what happened before it was opened: the run may
        just have been started again, and its members take their namesakes' places one after the other.

        Args:
            among: the names to look at; None: all.

        Raises:
            MemberFailedError: names the member and its reason.
        """
        for member in self.members():
            if member.role != role or (among is not None and member.record.name not in among):
                continue
            if (member.state == "failed" or member.is_dead) and not self._is_old(member):
                reason = member.record.reason or "its process is gone or silent"
                raise MemberFailedError(member.describe(), reason, member.record.traceback)

    def watch(self, role: Role) -> None:
        """As `raise_failures`, for who asks often: a look at the directory's mtime, and at the members after a change.

        Who has fallen silent changes nothing there, so the members are looked at every `BEAT_S` seconds, too.
        """
        began_at = self._ops.monotonic()
        if self._unchanged.holds() and began_at - self._watched_at < BEAT_S:
            return
        self.raise_failures(role)
        self._unchanged.listed(began_at)
        self._watched_at = began_at

    def _is_old(self, member: Member) -> bool:
        """Whether this handle is too young to hold what became of a member against it."""
        open_s = self._ops.monotonic() - self._handle.opened_at
        return open_s < DEAD_AFTER_S and member.age_s > open_s

    def left(self, among: Container[str]) -> Member | None:
        """One of these consumers that has left since this handle was opened."""
        for member in self.members():
            closed = member.role == "consumer" and member.state == "closed" and member.record.name in among
            if closed and not self._is_old(member):
                return member
        return None

    def describe(self, role: Role) -> str:
        """Who was last seen when, for error messages."""
        found = [member for member in self.members() if member.role == role]
        return "; ".join(f"{m.describe()} is {m.state}" for m in found) or f"no {role} has joined"

    def all_closed(self, role: Role) -> bool:
        """Whether every expected member of this role has joined and left; false before the first one joins."""
        mine = [member for member in self.members() if member.role == role]
        expected = max((member.record.expected for member in mine), default=1)
        return len(mine) >= max(1, expected) and all(member.state == "closed" for member in mine)

    def open_owners(self, role: Role) -> dict[str, str]:
        """Name to owner of the members of this role that have not left."""
        return {
            member.record.name: member.record.process.owner
            for member in self.members()
            if (member.role, member.state) == (role, "open")
        }

    def drained(self, besides: frozenset[str] = frozenset()) -> bool:
        """Whether nothing will ever be delivered again: all producers closed, nothing pending, nothing leased.

        Args:
            besides: owners whose leases do not count, since they ask.

        RACE: a ref may hop between pending/ and leased/ while they are listed one after the other. Both directories'
        mtimes must have stood still for longer than their grain before the empty listings, and be the same after them.
        """
        if not self.all_closed("producer") or self._any_live(besides):
            return False
        settled = self._settle()
        return not self._any_live(besides) and settled == self._changed_at_ns()

    def _any_live(self, besides: frozenset[str]) -> bool:
        pending = self._handle.layout.pending
        return (
            any(map(names.parse_pending, pending.listing()))
            or bool(self._handle.moves.owners_holding() - besides)
            or any(map(names.parse_pending, pending.listing()))
        )

    def _changed_at_ns(self) -> tuple[int, int]:
        layout = self._handle.layout
        return layout.pending.changed_at_ns(), layout.leased.changed_at_ns()

    def _settle(self) -> tuple[int, int]:
        """Both directories' mtimes, after they had the time to change; they have had it since they were first seen."""
        found, now = self._changed_at_ns(), self._ops.monotonic()
        if found != self._stood[0]:
            self._stood = found, now
        left_s = self._stood[1] + settling_s(*found) - now
        if left_s > 0:
            self._ops.sleep(left_s)
        return found

    def publish_quantum(self, quantum: Quantum) -> None:
        """Say what the consumers take at a time; the latest word counts."""
        if min(quantum.dp_size, quantum.batch_size, quantum.accumulation_steps) < 1:
            raise QueueConfigError(self._handle.layout.path, f"needs a quantum of positive factors, found {quantum}")
        self._handle.moves.write(msgspec.json.encode(quantum) + b"\n", self.directory, QUANTUM)

    def quantum(self) -> Quantum | None:
        return read_quantum(self._ops, self.directory)


class Membership:
    """One member's part in the stream: a context manager that says how it ended.

    Leaving the block normally closes this member's end, an exception marks it failed with its reason and
    traceback, and a process that is killed is noticed by its heartbeat, which a thread keeps. A forked child has no
    part in it: however it leaves the block, the member is still its parent.
    """

    def __init__(self, handle: Handle, directory: Directory, role: Role, record: Record) -> None:
        self._handle = handle
        self._directory = directory
        self._role: Role = role
        self._record = record
        self._ended = False
        self._beat_key: int | None = None
        try:
            with explained(f"joining as {role}", directory.path):
                self._write("open", record)
            self._beat_key = owners.heartbeats.register(self.beat, BEAT_S, handle.ops.monotonic)
        except BaseException:
            self.withdraw()
            raise

    @property
    def name(self) -> str:
        return self._record.name

    def beat(self) -> None:
        """Show that this member lives."""
        with suppress(FileNotFoundError):
            self._handle.clock.stamp(self._directory, self._file("open"))

    def close(self) -> None:
        """Leave: this member has produced, or consumed, all that it will."""
        if self._is_over():
            return
        ops, fd = self._handle.ops, self._directory.fd
        with explained("leaving", self._directory.path), suppress(FileNotFoundError):
            ops.rename(self._file("open"), self._file("closed"), src_dir_fd=fd, dst_dir_fd=fd)
        self._end()

    def fail(self, reason: str, trace: str | None = None) -> None:
        """Mark this member failed: the other side stops with an error that carries the reason.

        CRASH: between the two steps the member is both open and failed, and failed counts.
        """
        if self._is_over():
            return
        record = msgspec.structs.replace(self._record, reason=tidy(reason), traceback=tidy(trace) if trace else None)
        with explained("marking a failure in", self._directory.path):
            self._write("failed", record)
        self.withdraw()

    def _is_over(self) -> bool:
        return self._ended or self._record.process.pid != os.getpid()

    def withdraw(self) -> None:
        """Be a member no longer, as if this one had never joined."""
        self._end()
        silently_remove(self._handle.ops, self._directory.fd, [self._file("open")])

    def _write(self, state: State, record: Record) -> None:
        self._handle.moves.write(msgspec.json.encode(record) + b"\n", self._directory, self._file(state))

    def _end(self) -> None:
        self._ended = True
        if self._beat_key is not None:
            owners.heartbeats.unregister(self._beat_key)

    def _file(self, state: State) -> str:
        return f"{self._role}@{names.owner_name(self.name)}-{self._record.process.owner}@{state}{names.SUFFIX}"

    def __enter__(self) -> Membership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.fail(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def parse_member(name: str) -> tuple[Role, State] | None:
    """Role and state in a member's file name; None for other names."""
    parts = name.removesuffix(names.SUFFIX).split("@")
    if not name.endswith(names.SUFFIX) or len(parts) != 3:
        return None
    role, _, state = parts
    if role not in ("producer", "consumer") or state not in ("open", "closed", "failed"):
        return None
    return role, state  # type: ignore[return-value]


def read_members(ops: FileOps, directory: Directory, listing: list[str], now: float) -> Iterator[tuple[str, Member]]:
    """Each member that a listing of stream/ names, with its file; what is gone or holds no record is left out."""
    for name in listing:
        parsed = parse_member(name)
        if parsed is None:
            continue
        try:
            beat = ops.fresh_mtime(directory.fd, name)
            record = msgspec.json.decode(ops.read_file(directory.fd, name), type=Record)
        except (FileNotFoundError, CorruptRefError, *UNDECODABLE):
            continue
        yield name, Member(*parsed, record, now - (beat or 0.0))


def read_quantum(ops: FileOps, directory: Directory) -> Quantum | None:
    try:
        return msgspec.json.decode(ops.read_file(directory.fd, QUANTUM), type=Quantum)
    except (FileNotFoundError, CorruptRefError, *UNDECODABLE):
        return None
