"""Look at who takes part in a queue's stream, without taking part: no lock, no writing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import STREAM, Layout
from fsqueue.stream.members import Member, read_members
from fsqueue.stream.stream import read_quantum


@dataclass(frozen=True)
class MemberStatus:
    """Describe one producer or consumer.

    Attributes:
        state: "open", "closed", "failed", or "silent": open, but without a sign of life, so that the others take it
            for dead.
        process: "alive" or "dead" where this host can know, otherwise "unknown".
        last_seen_s: seconds since its last heartbeat, or since it left.
        expected: how many members of its role it expects in all; 0 where it does not say.
        reason: of a failed member.
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
    """Hold the stream's members, by role and name, and the published quantum."""

    members: list[MemberStatus]
    quantum: QuantumStatus | None


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
        found = [member for _, member in read_members(layout.ops, directory, directory.listing(), now)]
        quantum = read_quantum(layout.ops, directory)
    # CRASH: a member that died while it failed has both an open and a failed file; failed counts.
    failed = {_identity(member) for member in found if member.state == "failed"}
    kept = [_status(m) for m in found if m.state == "failed" or _identity(m) not in failed]
    return StreamStatus(
        members=sorted(kept, key=lambda member: (member.role != "producer", member.name, member.owner)),
        quantum=QuantumStatus(quantum.dp_size, quantum.batch_size, quantum.accumulation_steps, quantum.refs)
        if quantum
        else None,
    )


def _identity(member: Member) -> tuple[str, str, str]:
    return member.role, member.record.name, member.record.process.owner


def _status(member: Member) -> MemberStatus:
    record = member.record
    return MemberStatus(
        role=member.role,
        name=record.name,
        state="silent" if member.is_dead else member.state,
        owner=record.process.owner,
        host=record.process.host,
        pid=record.process.pid,
        process=record.process.liveness(),
        last_seen_s=max(0.0, member.age_s),
        expected=record.expected,
        reason=record.reason,
    )
