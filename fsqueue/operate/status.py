"""What a queue looks like: takes no lock and writes nothing, and works where all files belong to another user.

Ages compare this host's clock with the filesystem's stamps; on a shared mount they are off by the clocks' skew.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fsqueue.disk.counting import Counts
from fsqueue.engine.layout import STATES, Layout
from fsqueue.engine.listing import (
    File,
    count_in,
    files_in,
    hinted,
    id_of,
    in_order,
    look_inside,
    packed_in,
    reading,
    stamp_of,
)
from fsqueue.engine.owners import OwnerRecord, read_record
from fsqueue.format import names
from fsqueue.format.codec import Event
from fsqueue.format.untyped import Place, RefSight
from fsqueue.operate.stream_status import StreamStatus, stream_status

_SAMPLE = 256
_LOOKS = 3


@dataclass(frozen=True)
class OwnerStatus:
    """One owner: a handle that leases, or has leased and not ended.

    Attributes:
        host, pid, heartbeat_s: None where the owner's record is missing.
        process: "alive" or "dead" where this host can know, otherwise "unknown".
        oldest_lease_age_s: None where it holds none.
        heartbeat_age_s: seconds since its last beat; None where it keeps no heartbeat.
    """

    owner: str
    host: str | None
    pid: int | None
    process: str
    leases: int
    oldest_lease_age_s: float | None
    heartbeat_s: float | None
    heartbeat_age_s: float | None


@dataclass(frozen=True)
class Status:
    """A queue at one moment.

    Attributes:
        oldest_pending_age_s: how long the ref that comes next has been pending; None where nothing is.
        oldest_pending_is_estimate: the order names none of the pending refs: the oldest of a sample is given.
        stream: None where the queue is not used as a stream.
    """

    queue: str
    at: float
    run_id: str | None
    lease_timeout_s: float | None
    lock: str
    counts: Counts
    oldest_pending_id: str | None
    oldest_pending_age_s: float | None
    oldest_pending_is_estimate: bool
    oldest_lease_age_s: float | None
    owners: list[OwnerStatus]
    stream: StreamStatus | None


def status(path: str | os.PathLike[str]) -> Status:
    """Look at a whole queue: one listing a directory, a stat of each lease and a pending ref, a read of each member."""
    with reading(path) as layout:
        now = layout.ops.time()
        listed = {state: files_in(layout, state) for state in ("pending", "leased")}
        owners = _owners(layout, listed["leased"], now)
        head, estimated = _head(layout, listed["pending"])
        lease_ages = [found.oldest_lease_age_s for found in owners if found.oldest_lease_age_s is not None]
        return Status(
            queue=layout.path,
            at=now,
            run_id=layout.settings.run_id,
            lease_timeout_s=layout.settings.lease_timeout_s,
            lock=layout.settings.lock,
            counts=Counts(
                len(listed["pending"]), len(listed["leased"]), *(count_in(layout, s) for s in ("done", "failed"))
            ),
            oldest_pending_id=id_of(layout, head[0]) if head else None,
            oldest_pending_age_s=_age(now, head[1]) if head else None,
            oldest_pending_is_estimate=estimated,
            oldest_lease_age_s=max(lease_ages, default=None),
            owners=owners,
            stream=stream_status(layout, now),
        )


def _age(now: float, mtime: float) -> float:
    return max(0.0, now - mtime)


def _head(layout: Layout, pending: list[File]) -> tuple[tuple[File, float] | None, bool]:
    """The pending ref that comes next and its mtime; and whether that is only the oldest of a sample."""
    by_stem = {file.place.stem: file for file in pending}
    for stem in hinted(layout):
        found = stamp_of(layout, by_stem[stem]) if stem in by_stem else None
        if found is not None:
            return (by_stem[stem], found.mtime), False
    step = max(1, len(pending) // _SAMPLE)
    stats = ((file, stamp_of(layout, file)) for file in pending[::step])
    sampled = [(file, found.mtime) for file, found in stats if found is not None]
    return min(sampled, key=lambda each: each[1], default=None), bool(sampled)


def _owners(layout: Layout, leased: list[File], now: float) -> list[OwnerStatus]:
    """Every owner that has a record or a lease, by name."""
    leases: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for file in leased:
        owner = file.place.owner or ""
        leases[owner] += 1
        found = stamp_of(layout, file)
        if found is not None:
            oldest[owner] = max(oldest.get(owner, 0.0), _age(now, found.mtime))
    recorded = (names.parse_owner(name) for name in layout.owners.listing())
    known = sorted({owner for owner in recorded if owner} | set(leases))
    return [_owner(layout, owner, leases[owner], oldest.get(owner), now) for owner in known]


def _owner(layout: Layout, owner: str, leases: int, oldest_s: float | None, now: float) -> OwnerStatus:
    record = _record(layout, owner)
    beat = None
    if record is not None and record.heartbeat_s is not None:
        beat = layout.ops.fresh_mtime(layout.owners.fd, names.ref_file(owner))
    return OwnerStatus(
        owner=owner,
        host=record.host if record else None,
        pid=record.pid if record else names.pid_of(owner),
        process=record.liveness() if record else "unknown",
        leases=leases,
        oldest_lease_age_s=oldest_s,
        heartbeat_s=record.heartbeat_s if record else None,
        heartbeat_age_s=_age(now, beat) if beat is not None else None,
    )


def _record(layout: Layout, owner: str) -> OwnerRecord | None:
    try:
        return read_record(layout.ops, layout.owners, owner)
    except PermissionError:
        return None


@dataclass(frozen=True)
class Entry:
    """One line of a listing.

    Attributes:
        age_s, size_bytes, attempts, reason: None where details were not asked for.
    """

    state: str
    id: str
    path: str
    owner: str | None
    step: int | None
    age_s: float | None = None
    size_bytes: int | None = None
    attempts: int | None = None
    reason: str | None = None


def entries(
    path: str | os.PathLike[str],
    states: list[str],
    *,
    owner: str | None = None,
    limit: int | None = None,
    details: bool = False,
) -> list[Entry]:
    """The refs of these states in order (`in_order`); with details, at the cost of a stat and a read of each."""
    with reading(path) as layout:
        now = layout.ops.time()
        files = (file for state in states for file in in_order(layout, state, owner))
        found = (_entry(layout, file, now, details) for file in files)
        return list(islice((entry for entry in found if entry is not None), limit))


def _entry(layout: Layout, file: File, now: float, details: bool) -> Entry | None:
    """One line; None where the file has moved on since it was listed."""
    plain = Entry(
        state=file.state,
        id=id_of(layout, file),
        path=os.path.join(layout.path, file.state, file.name),
        owner=file.place.owner,
        step=file.place.step,
    )
    if not details:
        return plain
    status, seen = stamp_of(layout, file), look_inside(layout, file)
    if status is None:
        return None
    return replace(
        plain,
        age_s=_age(now, status.mtime),
        size_bytes=status.size_bytes,
        attempts=seen.bookkeeping.attempts if seen else None,
        reason=seen.bookkeeping.reason if seen else None,
    )


@dataclass(frozen=True)
class Detail:
    """What one file of a ref says.

    Attributes:
        age_s: seconds since its last stamp: when it was put, leased, renewed, or got history.
        reason: why a dead letter is one.
        ref: the ref's fields; None where the file holds no JSON object.
        problem: why it holds no ref; None where it does.
    """

    state: str
    path: str
    sample_id: str
    owner: OwnerStatus | None
    step: int | None
    age_s: float
    attempts: int
    reason: str | None
    history: list[Event]
    ref: dict[str, Any] | None
    problem: str | None


def show(path: str | os.PathLike[str], sample_id: str) -> list[Detail]:
    """Everything about one id: a file for the live ref, and those of its earlier lives; empty where there is none.

    RACE: a ref that moves while its places are looked at is looked for again.
    """
    stem = names.stem_of(sample_id)
    with reading(path) as layout:
        for _ in range(_LOOKS):
            found = _details(layout, stem)
            if found:
                break
        return found


def _details(layout: Layout, stem: str) -> list[Detail]:
    now = layout.ops.time()
    found: dict[object, Detail] = {}
    for state in STATES:
        for file in _files_of(layout, state, stem):
            status, seen = stamp_of(layout, file), look_inside(layout, file)
            if status is not None and seen is not None:
                found.pop(status.identity, None)  # the same file, moved on since
                found[status.identity] = _detail(layout, file, seen, _age(now, status.mtime), now)
    return list(found.values())


def _files_of(layout: Layout, state: str, stem: str) -> list[File]:
    if state == "failed":
        return [File(state, names.ref_file(stem), Place(stem))]
    files = [file for file in files_in(layout, state) if file.place.stem == stem]
    return [*packed_in(layout, stem), *files] if state == "done" else files


def _detail(layout: Layout, file: File, seen: RefSight, age_s: float, now: float) -> Detail:
    owner = file.place.owner
    return Detail(
        state=file.state,
        path=os.path.join(layout.path, file.state, file.name),
        sample_id=seen.sample_id or file.place.stem,
        owner=_owner(layout, owner, 1, age_s, now) if owner else None,
        step=file.place.step,
        age_s=age_s,
        attempts=seen.bookkeeping.attempts,
        reason=seen.bookkeeping.reason,
        history=seen.bookkeeping.history,
        ref=seen.fields,
        problem=seen.problem,
    )
