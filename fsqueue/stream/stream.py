"""See a stream's members together, and tell when it is over.

    stream/<member>.json     who produces and who consumes (members.py)
    stream/quantum.json      what the consumers take at a time

The end of the stream is decided by the members' files and the refs' own, never by one empty listing.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from fsqueue.disk.counting import Unchanged, standstill_s
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, silently_remove
from fsqueue.engine import owners
from fsqueue.engine.awake import Doubts, grace_s
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import STREAM, read_json
from fsqueue.errors import MemberFailedError, QueueConfigError
from fsqueue.format import names
from fsqueue.stream import members
from fsqueue.stream.members import Member, Membership, Record, Role, parse_member, read_members

QUANTUM = "quantum.json"
_LOOKS = 4
_BETWEEN_LOOKS_S = 0.05


class Quantum(msgspec.Struct, frozen=True):
    """Say how many refs the consumers take at a time: a high watermark below it would starve them for good."""

    dp_size: int
    batch_size: int
    accumulation_steps: int

    @property
    def refs(self) -> int:
        return self.dp_size * self.batch_size * self.accumulation_steps


class Stream:
    """See and change the stream's members, on behalf of one handle.

    Attributes:
        opened_at: when the handle was opened, monotonic; it cannot know what became of members before.
    """

    def __init__(self, handle: Handle, opened_at: float) -> None:
        self.opened_at = opened_at
        self._handle = handle
        self._ops: FileOps = handle.ops
        self.directory = handle.layout.open(STREAM, make_missing=True)
        self._stood: tuple[tuple[int, int], float] = ((0, 0), 0.0)
        self._unchanged = Unchanged(self.directory, handle.layout.filesystem.directory_times, members.BEAT_S)
        self._watched_at = -1e9
        self._failures_seen: set[str] = set()
        self._doubts = Doubts(handle.awake)

    def close(self) -> None:
        self.directory.close()

    def join(self, role: Role, name: str, expected: int, joined: list[Membership]) -> None:
        """Register a member in the place of a namesake that has left, failed or died.

        Args:
            joined: the membership is appended to it, so that it can be withdrawn where the call is cut short.

        Raises:
            QueueConfigError: a member of this name is alive.
        """
        earlier = []
        for file, member in self._namesakes(role, name):
            if member.keeps_its_name:
                raise QueueConfigError(
                    self._handle.layout.path,
                    f"has a {member.describe()}: give this one another name, end that one, or wait until it has been "
                    f"silent for {members.DEAD_AFTER_S:.0f} s",
                )
            earlier.append(file)
        described = owners.describe_self(self._handle.owner, self._ops.time(), members.BEAT_S)
        record = Record(name=name, process=described, expected=expected)
        joined.append(Membership(self._handle, self.directory, role, record))
        silently_remove(self._ops, self.directory.fd, earlier)

    def _namesakes(self, role: Role, name: str) -> list[tuple[str, Member]]:
        """Read the members of this name; one that is merely silent has time to show up after a stall of everybody."""

        def read() -> list[tuple[str, Member]]:
            return [(file, m) for file, m in self._files() if (m.role, m.record.name) == (role, name)]

        found = read()
        left_s = max((self._doubted_s(member) for _, member in found), default=0.0)
        if not left_s:
            return found
        self._ops.sleep(left_s)
        return read()

    def _doubted_s(self, member: Member) -> float:
        """Return for how many seconds more a member's silence does not prove that it is dead."""
        clock = self._handle.clock
        if not member.is_merely_silent or clock.injected:
            return 0.0
        who = member.role, member.record.process.owner
        return self._doubts.about(who, member.beat_at, grace_s(members.BEAT_S, None))

    def members(self) -> list[Member]:
        return [member for _, member in self._files()]

    def _files(self) -> list[tuple[str, Member]]:
        """Read each member with its file.

        RACE: a member whose file is renamed meanwhile must not be missing: so then this lists again.
        """
        while True:
            listing = self.directory.listing()
            now = self._handle.clock.now() if any(map(parse_member, listing)) else 0.0
            found = list(read_members(self._ops, self.directory, listing, now))
            unread = {name for name in listing if parse_member(name)} - {name for name, _ in found}
            if not unread or unread <= set(self.directory.listing()):
                return found

    def raise_failures(self, role: Role, among: Container[str] | None = None) -> None:
        """Raise the error of a member of this role that failed or died, if there is one.

        For its first `members.DEAD_AFTER_S` seconds, a handle ignores what happened before it was opened: the run
        may just have been restarted, and its members take their namesakes' places one after the other.

        Args:
            among: the names to look at; None: all.

        Raises:
            MemberFailedError: names the member and its reason.
        """
        for member in self.members():
            if member.role != role or (among is not None and member.record.name not in among):
                continue
            gone = member.state == "failed" or (member.is_dead and not self._doubted_s(member))
            if gone and not self._is_old(member):
                reason = member.record.reason or "its process is gone or silent"
                raise MemberFailedError(member.describe(), reason, member.record.traceback)

    def watch(self, role: Role) -> None:
        """Do as `raise_failures` for a caller who asks often: look at the directory's mtime, and list after a change.

        The members are read when the names show a new failure, and once a heartbeat, since silence shows nowhere.
        """
        began_at = self._ops.monotonic()
        overdue = began_at - self._watched_at >= members.BEAT_S
        if self._unchanged.holds() and not overdue:
            return
        failed = {name for name in self.directory.listing() if parse_member(name) == (role, "failed")}
        if overdue or not failed <= self._failures_seen:
            self.raise_failures(role)
            self._watched_at = began_at
        self._failures_seen = failed
        self._unchanged.listed(began_at)

    def _is_old(self, member: Member) -> bool:
        """Return whether this handle is too young to raise what became of a member before it was opened."""
        open_s = self._ops.monotonic() - self.opened_at
        return open_s < members.DEAD_AFTER_S and member.age_s > open_s

    def left(self, among: Container[str]) -> Member | None:
        """Return one of these consumers that has left since this handle was opened."""
        for member in self.members():
            closed = member.role == "consumer" and member.state == "closed" and member.record.name in among
            if closed and not self._is_old(member):
                return member
        return None

    def describe(self, role: Role) -> str:
        """Say who was last seen when, for error messages."""
        found = [member for member in self.members() if member.role == role]
        return "; ".join(f"{m.describe()} is {m.state}" for m in found) or f"no {role} has joined"

    def all_closed(self, role: Role) -> bool:
        """Tell whether every expected member of this role has joined and left; False before the first one joins."""
        mine = [member for member in self.members() if member.role == role]
        expected = max((member.record.expected for member in mine), default=1)
        return len(mine) >= max(1, expected) and all(member.state == "closed" for member in mine)

    def open_owners(self, role: Role) -> dict[str, str]:
        """Map names to owners, for the members of this role that have not left."""
        return {
            member.record.name: member.record.process.owner
            for member in self.members()
            if (member.role, member.state) == (role, "open")
        }

    def drained(self, besides: frozenset[str] = frozenset()) -> bool:
        """Tell whether nothing will ever be delivered again: all producers closed, nothing pending, nothing leased.

        Args:
            besides: owners whose leases do not count, since it is they who ask.

        RACE: a ref may hop between pending/ and leased/ while they are listed one after the other. So both mtimes must
        have stood still for longer than their grain before the empty listings, and be the same after them. Where a
        directory's mtime tells nothing, all looks must find nothing, and they are apart by more than a hop takes.
        """
        if not self.all_closed("producer") or self._any_live(besides):
            return False
        if not self._handle.layout.filesystem.directory_times:
            return not any(self._any_live_later(besides) for _ in range(_LOOKS))
        stood = self._stand_still()
        return not self._any_live(besides) and stood == self._changed_at_ns()

    def _any_live(self, besides: frozenset[str]) -> bool:
        pending = self._handle.layout.pending
        return (
            any(map(names.parse_pending, pending.listing()))
            or self._handle.moves.anything_leased(besides)
            or any(map(names.parse_pending, pending.listing()))
        )

    def _any_live_later(self, besides: frozenset[str]) -> bool:
        self._ops.sleep(_BETWEEN_LOOKS_S * (0.5 + self._ops.random()))
        return self._any_live(besides)

    def _changed_at_ns(self) -> tuple[int, int]:
        layout = self._handle.layout
        return layout.pending.changed_at_ns(), layout.leased.changed_at_ns()

    def _stand_still(self) -> tuple[int, int]:
        """Return both directories' mtimes, once that long has passed since they were first seen as they are."""
        found, now = self._changed_at_ns(), self._ops.monotonic()
        if found != self._stood[0]:
            self._stood = found, now
        left_s = self._stood[1] + standstill_s(*found) - now
        if left_s > 0:
            self._ops.sleep(left_s)
        return found

    def publish_quantum(self, quantum: Quantum) -> None:
        """Say what the consumers take at a time; the latest word counts."""
        if min(quantum.dp_size, quantum.batch_size, quantum.accumulation_steps) < 1:
            raise QueueConfigError(self._handle.layout.path, f"needs a quantum of positive factors, found {quantum}")
        data, write = msgspec.json.encode(quantum) + b"\n", self._handle.moves.write
        self._handle.layout.reserve.retrying(lambda: write(data, self.directory, QUANTUM))

    def quantum(self) -> Quantum | None:
        return read_quantum(self._ops, self.directory)


def read_quantum(ops: FileOps, directory: Directory) -> Quantum | None:
    return read_json(ops, directory, QUANTUM, Quantum)
