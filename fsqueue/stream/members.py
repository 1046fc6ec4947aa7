"""Read who takes part in a stream: each member shows itself by a file.

    stream/<role>@<name>-<owner>@<state>.json     role: producer or consumer
                                                  state: open, withdrawn, closed or failed

A member's file is its record; its mtime is the member's heartbeat, or when it left. Leaving is one rename, from open to
closed or withdrawn; a member that fails writes its reason into a failed file first and removes the open one then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.layout import read_json
from fsqueue.engine.owners import OwnerRecord
from fsqueue.format import names
from fsqueue.stream.launch import Launch
from fsqueue.stream.policy import StreamPolicy, read_policy

Role = Literal["producer", "consumer"]
State = Literal["open", "withdrawn", "closed", "failed"]
Standing = Literal["joined", "silent", "withdrawn", "closed", "failed"]

LEFT: tuple[State, ...] = ("withdrawn", "closed", "failed")
STATES: tuple[State, ...] = ("open", *LEFT)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a member's file says.

    Attributes:
        name: what the user called it; a restarted member takes its namesake's place.
        expected: how many members of this role the stream has in all; 0 where nobody said.
        required: the run stops where this one is missing, and does not wait for it.
        run: which run it belongs to, where somebody said; marks of another run concern nobody.
        launch: as what its process was started.
        group: the session of the ranks that it is one of; None for a member of its own.
        reason, traceback: of a failed member, and the reason of one that withdrew.
    """

    name: str
    process: OwnerRecord
    expected: int = 0
    required: bool = False
    run: str | None = None
    launch: Launch = Launch()
    group: str | None = None
    reason: str | None = None
    traceback: str | None = None


class Member(NamedTuple):
    """Describe a member of the stream as its file shows it.

    Attributes:
        age_s: seconds since its last heartbeat, or since it left, by the filesystem's clock.
        beat_at: when that was.
        policy: what the stream's members have agreed on.
        unreadable: its file holds no record; all that is known is what the file's name says.
    """

    role: Role
    state: State
    record: Record
    age_s: float
    beat_at: float
    policy: StreamPolicy
    unreadable: bool = False

    @property
    def standing(self) -> Standing:
        """Say how the others see it: one that is open is silent where it is, and not known to live."""
        if self.state != "open":
            return self.state
        return "silent" if self._has_fallen_silent and self.record.process.liveness() != "alive" else "joined"

    @property
    def is_missing(self) -> bool:
        """True where it is neither at work nor done."""
        return self.standing not in ("joined", "closed")

    @property
    def is_merely_silent(self) -> bool:
        """True where nothing but its silence says that it is gone."""
        return self.state == "open" and self._has_fallen_silent and self.record.process.liveness() == "unknown"

    @property
    def _has_fallen_silent(self) -> bool:
        return self.age_s > self.silence_s

    @property
    def silence_s(self) -> float:
        return self.policy.silence_of(self.record.process.heartbeat_s)

    def may_be_called(self, name: str) -> bool:
        """Tell whether this is its name; of one that cannot be read, as far as its file's name says."""
        if self.unreadable:
            return self.record.name.startswith(f"{names.owner_name(name)}-")
        return self.record.name == name

    def describe(self) -> str:
        if self.unreadable:
            return (
                f"{self.role} whose file in stream/, for {self.record.name!r}, cannot be read "
                f"(last seen {self.age_s:.0f} s ago)"
            )
        process = self.record.process
        return (
            f"{self.role} {self.record.name!r} (pid {process.pid} on {process.host}, last seen {self.age_s:.0f} s ago)"
        )


def member_file(role: Role, record: Record, state: State) -> str:
    """Return the name of a member's file."""
    return _file(role, record.name, record.process.owner, state)


def open_file(role: Role, name: str, owner: str) -> str:
    """Return the name of a member's file while it has not left."""
    return _file(role, name, owner, "open")


def _file(role: Role, name: str, owner: str, state: State) -> str:
    return f"{role}@{names.owner_name(name)}-{owner}@{state}{names.SUFFIX}"


def parse_member(name: str) -> tuple[Role, State] | None:
    """Return role and state in a member's file name; None for other names."""
    parts = name.removesuffix(names.SUFFIX).split("@")
    if not name.endswith(names.SUFFIX) or len(parts) != 3:
        return None
    role, _, state = parts
    if role not in ("producer", "consumer") or state not in STATES:
        return None
    return role, state  # type: ignore[return-value]


def has_namesake_in(directory: Directory, file: str, role: Role, record: Record) -> bool:
    """Tell whether a file is that of another open member of this name."""
    if parse_member(file) != (role, "open") or file == member_file(role, record, "open"):
        return False
    if not file.startswith(f"{role}@{names.owner_name(record.name)}-"):
        return False
    other = read_json(directory, file, Record)
    return other is not None and other.name == record.name


def without_leaving(found: Iterable[tuple[str, Member]]) -> list[tuple[str, Member]]:
    """Drop the open file of a member that is failing or withdrawing: what it wrote last counts.

    CRASH: one that dies between the two steps leaves both.

    Drop all files of one whose launcher has started another in its place, by proof, also the mark that it is making.
    """
    members = list(found)
    left = {_identity(member) for _, member in members if member.state != "open"}
    launches: dict[tuple[Role, str], list[Launch]] = {}
    for _, member in members:
        launches.setdefault((member.role, member.record.name), []).append(member.record.launch)
    return [
        (file, m)
        for file, m in members
        if (m.state != "open" or _identity(m) not in left)
        and not any(it.succeeds(m.record.launch) for it in launches[m.role, m.record.name])
    ]


def _identity(member: Member) -> tuple[str, str, str]:
    return member.role, member.record.name, member.record.process.owner


def read_members(ops: FileOps, directory: Directory, listing: list[str], now: float) -> Iterator[tuple[str, Member]]:
    """Yield each member that a listing of stream/ names, with its file, unless it is gone.

    One whose file holds no record is a member all the same: the stream must not end while it works.
    """
    policy = read_policy(directory)
    for name in listing:
        parsed = parse_member(name)
        if parsed is None:
            continue
        beat = ops.fresh_mtime(directory.fd, name)
        record = read_json(directory, name, Record)
        if record is not None:
            yield name, Member(*parsed, record, now - (beat or 0.0), beat or 0.0, policy)
        elif beat is not None and ops.exists(directory.fd, name):
            yield name, Member(*parsed, _unread(name), now - beat, beat, policy, unreadable=True)


def _unread(file: str) -> Record:
    """Return what a file's name says of a member: name and owner are not told apart there."""
    who = file.split("@")[1]
    nobody = OwnerRecord(who, "an unknown host", None, None, 0, None, 0.0)
    return Record(name=who, process=nobody)
