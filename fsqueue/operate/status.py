"""Look at a queue as a whole: takes no lock, writes nothing, and works where all files belong to another user.

Ages go by the clock that stamps the files, whatever this host's says; `time_there` tells how, and where it cannot.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from fsqueue.disk.counting import Counts
from fsqueue.engine.layout import STATES, Layout
from fsqueue.engine.listing import File, count_in, files_in, hinted, id_of, reading, stamp_of
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.owners import read_record
from fsqueue.engine.pausing import Paused, find_pause
from fsqueue.format import names
from fsqueue.format.untyped import Place, place_of
from fsqueue.operate.stream_status import StreamStatus, stream_status

_SAMPLE = 256
_HINTS = 1 << 16


@dataclass(frozen=True)
class OwnerStatus:
    """Describe one owner: a handle that leases, or has leased and not ended.

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
    """Describe a queue at one moment.

    Attributes:
        at: when that was, by the filesystem's clock.
        paused: since when nobody may lease, by whom, and why; None: the queue is not paused.
        delayed: how many of the leased refs nobody holds: they have failed, and wait to come again.
        oldest_pending_age_s: how long the ref that comes next has been pending; None where nothing is.
        oldest_pending_is_estimate: the order names none of the pending refs: the oldest of a sample is given.
        stream: None where the queue is not used as a stream.
    """

    queue: str
    at: float
    run_id: str | None
    lease_timeout_s: float | None
    lock: str
    paused: Paused | None
    counts: Counts
    delayed: int
    oldest_pending_id: str | None
    oldest_pending_age_s: float | None
    oldest_pending_is_estimate: bool
    oldest_lease_age_s: float | None
    owners: list[OwnerStatus]
    stream: StreamStatus | None


def status(path: str | os.PathLike[str]) -> Status:
    """Look at a queue: one listing a directory, a stat of each lease and of one pending ref, a read of each member.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    with reading(path) as layout:
        now = time_there(layout)
        pending = layout.pending.listing()
        leased = files_in(layout, "leased")
        held = [file for file in leased if file.place.due is None]
        owners = _owners(layout, held, now)
        head, estimated = _head(layout, pending)
        lease_ages = [found.oldest_lease_age_s for found in owners if found.oldest_lease_age_s is not None]
        return Status(
            queue=layout.path,
            at=now,
            run_id=layout.settings.run_id,
            lease_timeout_s=layout.settings.lease_timeout_s,
            lock=layout.settings.lock,
            paused=find_pause(layout),
            counts=Counts(
                names.count_refs(pending, names.parse_pending),
                len(leased),
                *(count_in(layout, state) for state in ("done", "failed")),
            ),
            delayed=len(leased) - len(held),
            oldest_pending_id=id_of(layout, head[0]) if head else None,
            oldest_pending_age_s=elapsed_s(now, head[1]) if head else None,
            oldest_pending_is_estimate=estimated,
            oldest_lease_age_s=max(lease_ages, default=None),
            owners=owners,
            stream=stream_status(layout, now),
        )


def counts(path: str | os.PathLike[str]) -> Counts:
    """Count the refs in each state: one listing a directory, and nothing else.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    with reading(path) as layout:
        return Counts(*(count_in(layout, state) for state in STATES))


def elapsed_s(now: float, mtime: float) -> float:
    """Return the seconds since a stamp: 0 where that is in the future."""
    return max(0.0, now - mtime)


def _head(layout: Layout, pending: list[str]) -> tuple[tuple[File, float] | None, bool]:
    """Return the pending ref that comes next with its mtime, and whether it is only the oldest of a sample."""
    for stem in islice(hinted(layout), _HINTS) if pending else ():
        file = File("pending", names.ref_file(stem), Place(stem))
        found = stamp_of(layout, file)
        if found is not None:
            return (file, found.mtime), False
    step = max(1, len(pending) // _SAMPLE)
    parsed = ((name, place_of("pending", name)) for name in pending[::step])
    files = (File("pending", name, place) for name, place in parsed if place is not None)
    stats = ((file, stamp_of(layout, file)) for file in files)
    sampled = [(file, found.mtime) for file, found in stats if found is not None]
    return min(sampled, key=lambda each: each[1], default=None), bool(sampled)


def _owners(layout: Layout, leased: list[File], now: float) -> list[OwnerStatus]:
    """Describe every owner that has a record or a lease, by name."""
    leases: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for file in leased:
        owner = file.place.owner or ""
        leases[owner] += 1
        found = stamp_of(layout, file)
        if found is not None:
            oldest[owner] = max(oldest.get(owner, 0.0), elapsed_s(now, found.mtime))
    recorded = (names.parse_owner(name) for name in layout.owners.listing())
    known = sorted({owner for owner in recorded if owner} | set(leases))
    return [owner_status(layout, owner, leases[owner], oldest.get(owner), now) for owner in known]


def owner_status(layout: Layout, owner: str, leases: int, oldest_s: float | None, now: float) -> OwnerStatus:
    """Describe an owner by its record, where this user can read one, and by what its leases show."""
    record, beat = None, None
    with suppress(PermissionError):
        record = read_record(layout.owners, owner)
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
        heartbeat_age_s=elapsed_s(now, beat) if beat is not None else None,
    )
