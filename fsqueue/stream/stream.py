"""See a stream's members together, and tell when it is over.

    stream/<member>.json     who produces and who consumes (members.py)
    stream/policy.json       who is missed, and for how long (policy.py)
    stream/quantum.json      what the consumers take at a time

The end of the stream is decided by the members' files and the refs' own, never by one empty listing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from contextlib import suppress
from weakref import WeakSet

import msgspec

from fsqueue.disk.counting import Unchanged, standstill_s
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, silently_remove
from fsqueue.engine import owners
from fsqueue.engine.awake import Doubts, grace_s
from fsqueue.engine.engine import reaching
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import STREAM, read_json
from fsqueue.errors import InvalidArgumentError, MemberFailedError, MemberMissingError, QueueConfigError
from fsqueue.format import names
from fsqueue.stream.joining import Places
from fsqueue.stream.launch import launch
from fsqueue.stream.members import (
    LEFT,
    Member,
    Record,
    Role,
    member_file,
    parse_member,
    read_members,
    without_leaving,
)
from fsqueue.stream.membership import Membership
from fsqueue.stream.policy import BEAT_S, POLICY, StreamPolicy, read_policy
from fsqueue.stream.roster import Roster
from fsqueue.stream.sigterm import OnSigterm, SigtermHandler

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

    Args:
        opened_at: when the handle was opened, monotonic; what became of members before concerns an earlier run.
        run: which run the handle belongs to, where somebody said.
        bring_back: makes the leases of owners pending again whose processes are proven to be gone.
    """

    def __init__(
        self,
        handle: Handle,
        opened_at: float,
        run: str | None = None,
        bring_back: Callable[[Collection[str]], object] = lambda owners: None,
    ) -> None:
        self.opened_at = opened_at
        self._run = run
        self._bring_back = bring_back
        self._handle = handle
        self._ops: FileOps = handle.ops
        self.directory = handle.layout.open(STREAM, make_missing=not handle.read_only)
        self._stood: tuple[tuple[int, int], float] = ((0, 0), 0.0)
        self._unchanged = Unchanged(self.directory, handle.layout.filesystem.directory_times, BEAT_S)
        self._watched_at = -1e9
        self._failures_seen: set[str] = set()
        self._seen: set[str] = set()  # files of members at work
        self._mine: WeakSet[Membership] = WeakSet()
        self._doubts = Doubts(handle.awake)
        self._beat_s = BEAT_S
        self._voices = 0
        self._roster = Roster(handle, self.directory, self._files)
        self._closed: set[Role] = set()  # of whom a listing has shown some that have closed
        self._came: dict[Role, tuple[int, float]] = {}  # how many have come, and since when that was not enough

    def close(self) -> None:
        self.directory.close()

    def join(
        self,
        role: Role,
        name: str,
        joined: list[Membership],
        *,
        expected: int = 0,
        required: bool = False,
        attempt: int | None = None,
        group: str | None = None,
        ranks: Collection[str] = (),
        release: Callable[[], object] = lambda: None,
        on_sigterm: OnSigterm = None,
    ) -> None:
        """Register a member in the place of a namesake that has left, failed or died; wait until that is certain.

        Where the launcher proves that, the leases of that one's handle come back at once.
        CRASH: its file goes last, so that the next one to join finds by it what is left to bring back.

        Args:
            joined: the membership is appended to it, so that it can vanish where the call is cut short.
            group, ranks: of one of several ranks, the session and the names of all of them.

        Raises:
            QueueConfigError: a member of this name is alive.
            SystemExit: SIGTERM came while it waited, with on_sigterm.
        """
        self._handle.require_writable(role)
        record = Record(
            name=name,
            process=owners.describe_self(self._handle.owner, self._ops.time(), self.policy().beat_s),
            expected=expected,
            required=required,
            run=self._run,
            launch=launch(attempt),
            group=group,
        )
        if len(member_file(role, record, "withdrawn")) > names.FILE_NAME_LIMIT:
            raise InvalidArgumentError(f"{role}(name)", "a shorter name, since file names hold it", name)
        sigterm = SigtermHandler(on_sigterm)
        sigterm.install()
        try:
            places = Places(self._handle, self._files, self._doubted_s, self._left_behind, sigterm.raise_if_told)
            earlier = places.taken_by(role, record, frozenset(ranks))
            gone = {it.record.process.owner for _, it in earlier if record.launch.succeeds(it.record.launch)}
            if gone:
                self._bring_back(gone)
            before = [file for file, _ in earlier]
            joined.append(Membership(self._handle, self.directory, role, record, release, sigterm, before))
        except BaseException:
            sigterm.restore()
            raise
        self._stands_for(joined[-1])
        mine = member_file(role, record, "open")  # which a handle may have left behind itself
        self._seen.add(mine)
        silently_remove(self._ops, self.directory.fd, [file for file in before if file != mine])
        if earlier:
            self._remove_marks_of([member for _, member in earlier])

    def _stands_for(self, member: Membership) -> None:
        """Note that it is this handle's, in the place of one that was so before."""
        for former in list(self._mine):
            if former.place == member.place:
                self._mine.discard(former)
        self._mine.add(member)

    def _remove_marks_of(self, replaced: list[Member]) -> None:
        """Remove how they say that they have left, where they have just said so."""
        marks = {member_file(it.role, it.record, state) for it in replaced for state in LEFT}
        silently_remove(self._ops, self.directory.fd, marks.intersection(self.directory.listing()))

    def _left_behind(self, member: Member) -> bool:
        """Tell whether a member is this handle's and nobody stands for it: where it joined, a server did not answer."""
        stand = {it.place for it in list(self._mine) if not it.is_over()}
        return member.record.process.owner == self._handle.owner and (member.role, member.record.name) not in stand

    def _doubted_s(self, member: Member) -> float:
        """Return for how many seconds more a member's silence does not prove that it is gone."""
        clock = self._handle.clock
        if not member.is_merely_silent or clock.injected:
            return 0.0
        who = member.role, member.record.process.owner
        return self._doubts.about(who, member.beat_at, grace_s(member.record.process.heartbeat_s or BEAT_S, None))

    def members(self) -> list[Member]:
        return [member for _, member in without_leaving(self._files())]

    def watched(self, listing: list[str] | None = None) -> list[Member]:
        """Return the members for a caller who asks often: on a shared mount, of who is at work, as of an older look.

        Args:
            listing: of stream/, where it was just made.
        """
        with reaching("reading the members of", self._handle.layout):
            if listing is None:
                listing = self.directory.listing()
                self.greet(listing)
            self._closed = {parsed[0] for parsed in map(parse_member, listing) if parsed and parsed[1] == "closed"}
            return [member for _, member in without_leaving(self._roster.look(listing))]

    def _files(self, listing: list[str] | None = None) -> list[tuple[str, Member]]:
        """Read each member with its file.

        RACE: a member whose file is renamed meanwhile must not be missing: so then this lists again.
        """
        with reaching("reading the members of", self._handle.layout):
            while True:
                if listing is None:
                    listing = self.directory.listing()
                    self.greet(listing)
                now = self._handle.clock.now() if any(map(parse_member, listing)) else 0.0
                found = list(read_members(self._ops, self.directory, listing, now))
                unread = {name for name in listing if parse_member(name)} - {name for name, _ in found}
                if not unread or unread <= set(self.directory.listing()):
                    self._beat_s = min((member.policy.beat_s for _, member in found), default=BEAT_S)
                    return found
                listing = None

    def greet(self, listing: list[str]) -> None:
        """Show newcomers that are in a listing of stream/ that this handle's members live, and see who was replaced.

        A newcomer takes one whose last sign is older than itself for a member of an earlier run, for which nobody
        stops: so one that is killed soon after it came would be waited for as if a successor were due.
        """
        at_work = {name for name in listing if (parse_member(name) or ("", ""))[1] == "open"}
        mine = {membership.file for membership in list(self._mine) if not membership.is_over()}
        if not (at_work <= self._seen and mine <= at_work):
            with suppress(OSError):  # the heartbeat comes later, and says more
                for membership in list(self._mine):
                    membership.beat()
        self._seen = at_work

    def raise_if_replaced(self, role: Role) -> None:
        """Raise a MemberReplacedError where a successor has taken the place of one of this handle's own members."""
        for membership in list(self._mine):
            if membership.place[0] == role and not membership.has_left:
                membership.raise_if_replaced()

    def raise_failures(
        self, role: Role, among: Container[str] | None = None, found: list[Member] | None = None
    ) -> None:
        """Raise the error of a member of this role without which the others cannot go on, if there is one.

        That is one that failed, one that is required and missing, and one that was awaited for long enough; the last
        of these only where no other member of the role is at work, or where the ranks of a group need each other.

        Args:
            among: the names to look at; None: all.
            found: the members, where they were just read.

        Raises:
            MemberFailedError: names the member and its reason.
        """
        looked_at = [
            m
            for m in (self.members() if found is None else found)
            if m.role == role and (among is None or m.unreadable or m.record.name in among)
        ]
        at_work = any(member.standing == "joined" for member in looked_at)
        awaited: MemberFailedError | None = None
        for member in looked_at:
            if not member.is_missing or self._is_of_another_run(member):
                continue
            error = self._why_not_to_wait(member)
            if error is not None:
                raise error
            awaited = awaited or self._awaited_in_vain(member)
        absent = self._absent_for_too_long(role, looked_at, waits=among is not None or not at_work)
        awaited = awaited or absent
        if awaited is not None and (among is not None or not at_work):
            raise awaited

    def _is_of_another_run(self, member: Member) -> bool:
        return None not in (self._run, member.record.run) and self._run != member.record.run

    def _open_s(self) -> float:
        return self._ops.monotonic() - self.opened_at

    def _happened_before(self, member: Member) -> bool:
        """Tell whether a member was last there before this handle was opened: that is an earlier run's affair."""
        return member.age_s > self._open_s()

    def _why_not_to_wait(self, member: Member) -> MemberFailedError | None:
        record, policy = member.record, member.policy
        if self._happened_before(member):
            return None
        if member.state == "failed" and member.age_s >= policy.restart_s:
            return MemberFailedError(member.describe(), record.reason or "it does not say why", record.traceback)
        if record.required and member.state != "failed" and not self._doubted_s(member):
            return MemberMissingError(member.describe(), _what_became_of(member), None)
        return None

    def _awaited_in_vain(self, member: Member) -> MemberFailedError | None:
        """Return the error about a member that was awaited for too long, counted from when this handle was opened."""
        waited_s = min(self._open_s(), member.age_s)
        if waited_s <= member.policy.await_s or self._doubted_s(member):
            return None
        return MemberMissingError(member.describe(), _what_became_of(member), waited_s)

    def _absent_for_too_long(self, role: Role, found: list[Member], waits: bool) -> MemberFailedError | None:
        """Return the error about members that never came, counted from when those who did left the others waiting.

        Where none has come yet, nobody knows how many there are to be: their launcher may start them much later.
        """
        now = self._ops.monotonic()
        came, since = self._came.get(role, (-1, now))
        self._came[role] = len(found), (since if waits and came == len(found) else now)
        absent, waited_s = _wanted(role, found) - len(found), now - self._came[role][1]
        if not found or absent <= 0 or waited_s <= found[0].policy.await_s:
            return None
        never_came = f"{absent} never came, and {'was' if absent == 1 else 'were'} awaited for {waited_s:.0f} s"
        return MemberMissingError(_described(role, found), never_came, waited_s, absent)

    def watch(self, role: Role) -> None:
        """Do as `raise_failures` for a caller who asks often: look at the directory's mtime, and list after a change.

        The members are read when the names show a new failure, and once a heartbeat, since silence shows nowhere.
        """
        began_at = self._ops.monotonic()
        overdue = began_at - self._watched_at >= self._beat_s
        if self._unchanged.holds() and not overdue:
            return
        listing = self.directory.listing()
        self.greet(listing)
        marks = (role, "failed"), (role, "withdrawn")
        left = {name for name in listing if parse_member(name) in marks}
        if overdue or not left <= self._failures_seen:
            self.raise_failures(role, found=self.watched(listing))
            self._watched_at = began_at
        self._failures_seen = left
        self._unchanged.listed(began_at)

    def left(self, among: Container[str], found: list[Member]) -> Member | None:
        """Return one of these consumers that has left since this handle was opened, or has not come back for `await_s`.

        Of the members found, that is. Ranks that are started again all together find the others of before, which come
        back one after the other.
        """
        for member in found:
            closed = member.role == "consumer" and member.state == "closed" and member.record.name in among
            if closed and (not self._happened_before(member) or self._open_s() > member.policy.await_s):
                return member
        return None

    def have_closed(self, names: Collection[str]) -> bool:
        """Tell whether all of these consumers have left."""
        closed = {m.record.name for m in self.members() if (m.role, m.state) == ("consumer", "closed")}
        return closed >= set(names)

    def describe(self, role: Role) -> str:
        """Say who was last seen when, and whether the queue is paused, for error messages."""
        found = _described(role, [member for member in self.members() if member.role == role])
        paused = self._handle.pause.look_now()
        waits = [] if paused is None else [f"the queue is paused{paused} (`fsqueue resume` lets it go on)"]
        return "; ".join([found, *waits])

    def some_had_closed(self, role: Role) -> bool:
        """Tell whether any member of this role had closed when `watched` was last called."""
        return role in self._closed

    def all_closed(self, role: Role) -> bool:
        """Tell whether every expected member of this role has joined and left; False before the first one joins.

        Where the policy names a quorum, so many producers are enough, once no other one is at work.
        """
        with reaching("reading the members of", self._handle.layout):
            listing = self.directory.listing()
        self.greet(listing)
        if not any(parse_member(name) == (role, "closed") for name in listing):
            return False
        mine = [member for member in self.members() if member.role == role]
        if quorum := _quorum(role, mine):
            closed = sum(member.state == "closed" for member in mine)
            return closed >= quorum and all(member.standing != "joined" for member in mine)
        return len(mine) >= max(1, _wanted(role, mine)) and all(member.state == "closed" for member in mine)

    def open_owners(self, role: Role, names: Container[str]) -> list[str]:
        """Return the owners of those members that have not left, among these names."""
        return [
            member.record.process.owner
            for member in self.members()
            if (member.role, member.state) == (role, "open") and member.record.name in names
        ]

    def owner_in_place(
        self, role: Role, name: str, before: str | None, members: list[Member] | None = None
    ) -> str | None:
        """Return who has a member's place: the only one that is open, or else who had it before.

        One that has closed since this handle was opened had it.
        """
        members = self.members() if members is None else members
        found = [member for member in members if (member.role, member.record.name) == (role, name)]
        there = [member.record.process.owner for member in found if member.state == "open"]
        if before is None and not there:
            there = [it.record.process.owner for it in found if it.state == "closed" and not self._happened_before(it)]
        return there[0] if len(there) == 1 else before

    def new_voice(self) -> str:
        """Return a name for one view of this handle, by which its words are told from those of its earlier views."""
        self._voices += 1
        return self._handle.owner if self._voices == 1 else f"{self._handle.owner}+{self._voices}"

    def drained(self, besides: frozenset[str] = frozenset()) -> bool:
        """Tell whether nothing will ever be delivered again: all producers closed, nothing pending, nothing leased.

        A queue that is paused is not drained: somebody is about to do something with it.

        Args:
            besides: owners whose leases do not count, since it is they who ask.

        RACE: a ref may hop between pending/ and leased/ while they are listed one after the other. So both mtimes must
        have stood still for longer than their grain before the empty listings, and be the same after them. Where a
        directory's mtime tells nothing, all looks must find nothing, and they are apart by more than a hop takes.
        """
        with reaching("looking at the stream of", self._handle.layout):
            if not self.all_closed("producer") or self._any_live(besides):
                return False
            if not self._handle.layout.filesystem.directory_times:
                drained = not any(self._any_live_later(besides) for _ in range(_LOOKS))
            else:
                stood = self._stand_still()
                drained = not self._any_live(besides) and stood == self._changed_at_ns()
            return drained and self._handle.pause.look_now() is None

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

    def policy(self) -> StreamPolicy:
        return read_policy(self.directory)

    def change_policy(self, changes: Mapping[str, float]) -> StreamPolicy:
        """Say who is missed, and for how long; the latest word counts, for all members."""
        policy = msgspec.structs.replace(self.policy(), **changes)
        policy.validate(self._handle.layout.path)
        self._write(POLICY, policy)
        return policy

    def publish_quantum(self, quantum: Quantum) -> None:
        """Say what the consumers take at a time; the latest word counts."""
        if min(quantum.dp_size, quantum.batch_size, quantum.accumulation_steps) < 1:
            raise QueueConfigError(self._handle.layout.path, f"needs a quantum of positive factors, found {quantum}")
        self._write(QUANTUM, quantum)

    def _write(self, name: str, content: msgspec.Struct) -> None:
        self._handle.require_writable(f"writing {name}")
        self._handle.moves.write(msgspec.json.encode(content) + b"\n", self.directory, name, vital=True)

    def quantum(self) -> Quantum | None:
        return read_quantum(self.directory)


def _quorum(role: Role, found: list[Member]) -> int:
    """Return how many producers that have closed are enough; 0: all have to, as all consumers have."""
    return found[0].policy.quorum if found and role == "producer" else 0


def _wanted(role: Role, found: list[Member]) -> int:
    """Return how many members of a role there have to be, as far as those who have come say."""
    return _quorum(role, found) or max((member.record.expected for member in found), default=0)


def _described(role: Role, found: list[Member]) -> str:
    wanted = _wanted(role, found)
    counted = f"{len(found)} of {wanted} {role}s joined: " if 0 < len(found) < wanted else ""
    return counted + ("; ".join(f"{m.describe()} is {m.standing}" for m in found) or f"no {role} has joined")


def _what_became_of(member: Member) -> str:
    if member.state == "failed":
        return f"failed: {member.record.reason or 'it does not say why'}"
    if member.state == "withdrawn":
        return member.record.reason or "withdrew"
    silent = f"its process is gone or silent: no heartbeat for {member.age_s:.0f} s"
    return f"{silent}; `fsqueue check --repair` removes a file that cannot be read" if member.unreadable else silent


def read_quantum(directory: Directory) -> Quantum | None:
    return read_json(directory, QUANTUM, Quantum)
