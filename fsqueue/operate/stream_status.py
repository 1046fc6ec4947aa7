"""Look at who takes part in a queue's stream, without taking part: no lock, no writing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import STREAM, Layout
from fsqueue.stream.members import Member, read_members, without_leaving
from fsqueue.stream.policy import read_policy
from fsqueue.stream.stream import read_quantum


@dataclass(frozen=True)
class MemberStatus:
    """Describe one producer or consumer.

    Attributes:
        state: "joined", "closed", or what the others wait for: "silent" (without a sign of life), "withdrawn" or
            "failed".
        process: "alive" or "dead" where this host can know, otherwise "unknown".
        last_seen_s: seconds since its last heartbeat, or since it left.
        expected: how many members of its role it expects in all; 0 where it does not say.
        required: the others stop where it is missing.
        run: which run it belongs to, where somebody said.
        restarts: how often its launchers have started it again, the outer one first.
        reason: of a failed or withdrawn member.
    """

    role: str
    name: str
    state: str
    owner: str
    host: str
    pid: int
    process: str
    last_seen_s: float
    expected: int
    required: bool
    run: str | None
    restarts: list[int]
    reason: str | None


@dataclass(frozen=True)
class QuantumStatus:
    """Say what the consumers take at a time; refs is the product."""

    dp_size: int
    batch_size: int
    accumulation_steps: int
    refs: int


@dataclass(frozen=True)
class StreamStatus:
    """Hold the stream's members, by role and name, what they have agreed on, and the published quantum."""

    members: list[MemberStatus]
    policy: dict[str, float]
    quantum: QuantumStatus | None

    def expected(self, role: str) -> int:
        """Return how many members of a role there are to be in all, as far as anybody said."""
        mine = [member for member in self.members if member.role == role]
        return max([len(mine), *(member.expected for member in mine)])

    def joined(self, role: str) -> int:
        """Return how many members of a role are at work."""
        return sum(member.role == role and member.state == "joined" for member in self.members)

    def closed(self, role: str) -> int:
        """Return how many members of a role have come and have closed their end."""
        return sum(member.role == role and member.state == "closed" for member in self.members)


def open_stream(layout: Layout) -> Directory | None:
    """Open the directory of a queue's stream; None where it has none."""
    try:
        return layout.within(STREAM)
    except (FileNotFoundError, NotADirectoryError):
        return None


def stream_status(layout: Layout, now: float) -> StreamStatus | None:
    """Describe the stream of an open queue; None where it has none."""
    directory = open_stream(layout)
    if directory is None:
        return None
    with closing(directory):
        found = without_leaving(read_members(layout.ops, directory, directory.listing(), now))
        quantum = read_quantum(directory)
        policy = msgspec.structs.asdict(read_policy(directory))
    kept = [_status(member) for _, member in found]
    return StreamStatus(
        policy=policy,
        members=sorted(kept, key=lambda member: (member.role != "producer", member.name, member.owner)),
        quantum=QuantumStatus(quantum.dp_size, quantum.batch_size, quantum.accumulation_steps, quantum.refs)
        if quantum
        else None,
    )


def _status(member: Member) -> MemberStatus:
    record = member.record
    return MemberStatus(
        role=member.role,
        name=record.name,
        state=member.standing,
        owner=record.process.owner,
        host=record.process.host,
        pid=record.process.pid,
        process=record.process.liveness(),
        last_seen_s=max(0.0, member.age_s),
        expected=record.expected,
        required=record.required,
        run=record.run,
        restarts=list(record.launch.restarts),
        reason=record.reason,
    )
