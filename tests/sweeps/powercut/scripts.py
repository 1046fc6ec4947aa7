"""Short scripts that are under way when the power fails, each on a queue of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from fsqueue import FileSampleRefQueue, SampleRef, operate
from fsqueue.disk.fileops import using
from fsqueue.stream.membership import Membership
from simulation.script import make_ref
from tests.sweeps.powercut.journal import Entries, Journal, Record, Synced, Truncate, Write
from tests.sweeps.powercut.trial import QUEUE

LEASE_S = 10.0
AT_ONCE_S = -3600.0
Handle = FileSampleRefQueue[SampleRef]


class Stage:
    """A queue whose operations are recorded, and the calls that the scripts make on it.

    Attributes:
        first: the power is not cut before so many records.
    """

    def __init__(self, base: Path, durable: bool) -> None:
        self.base = base
        self.journal = Journal(base)
        self.first = 0
        self._durable = durable
        self._handles: list[Handle] = []

    def open(self, **options: Any) -> Handle:
        with using(self.journal.ops):
            handle = FileSampleRefQueue(self.base / QUEUE, lease_timeout_s=LEASE_S, durable=self._durable, **options)
        self._handles.append(handle)
        return handle

    def put(self, handle: Handle, *ids: str) -> None:
        self.journal.mark("put begins", list(ids))
        handle.put([make_ref(sample_id) for sample_id in ids])
        self.journal.mark("put returned", list(ids))

    def settled(self, how: str, ids: list[str], lost: list[str]) -> None:
        self.journal.mark(f"{how} returned", [sample_id for sample_id in ids if sample_id not in lost])

    def acked(self, handle: Handle, *ids: str, step: int) -> None:
        """Refs are put, leased and acknowledged."""
        self.put(handle, *ids)
        self.settled("ack", list(ids), handle.ack(handle.get(len(ids)), step=step))

    def join(self, handle: Handle, name: str) -> Membership:
        member = handle.producer(name)
        self.journal.mark("producer joined", [name])
        return member

    def leave(self, member: Membership) -> None:
        self.journal.mark("producer leaves", [member.name])
        member.close()

    def on_disk(self) -> None:
        """All that was done so far reaches the disk, and the power is cut later."""
        records = self.journal.records
        nodes = {node for record in records for node in _nodes(record)}
        records += [Synced(node) for node in sorted(nodes)]
        self.first = len(records)

    def close(self) -> None:
        for handle in self._handles:
            handle.close()


def _nodes(record: Record) -> set[int]:
    if isinstance(record, Entries):
        return {directory for directory, _, _ in record.changes} | {node for _, _, node in record.changes if node}
    return {record.node} if isinstance(record, (Write, Truncate, Synced)) else set()


def put_one(stage: Stage) -> None:
    stage.put(stage.open(), "a")


def put_three(stage: Stage) -> None:
    stage.put(stage.open(), "a", "b", "c")


def put_twice(stage: Stage) -> None:
    """The second put finds its ref there already."""
    stage.put(stage.open(), "a")
    stage.put(stage.open(), "a", "b")


def put_known_before_it_is_synced(stage: Stage) -> None:
    """Another handle puts the same id at the moment before the first one syncs pending/."""
    first, second = stage.open(), stage.open()

    def put_meanwhile(name: str) -> None:
        if name == "pending":
            stage.journal.on_sync = None
            stage.put(second, "a")

    stage.journal.on_sync = put_meanwhile
    stage.put(first, "a")


def get_and_ack(stage: Stage) -> None:
    queue = stage.open()
    stage.put(queue, "a", "b")
    refs = queue.get(2)
    stage.settled("ack", ["a"], queue.ack(refs[:1], step=7))


def put_while_leases_are_unsynced(stage: Stage) -> None:
    """A put syncs pending/ after a get has moved refs out of it and nobody synced leased/."""
    queue = stage.open()
    stage.put(queue, "a", "b")
    queue.get(1)
    stage.put(stage.open(), "c")


def fail_retryably(stage: Stage) -> None:
    queue = stage.open()
    stage.put(queue, "a")
    queue.fail(queue.get(1), "first", retryable=True)
    queue.fail(queue.get(1), "second, longer than the first", retryable=True)


def fail_finally(stage: Stage) -> None:
    queue = stage.open()
    stage.put(queue, "a")
    stage.settled("final fail", ["a"], queue.fail(queue.get(1), "broken", retryable=False))


def release(stage: Stage) -> None:
    queue = stage.open()
    stage.put(queue, "a", "b")
    queue.release(queue.get(2))


def reclaim(stage: Stage) -> None:
    """A lease that has expired is brought back by another handle."""
    queue = stage.open()
    stage.put(queue, "a")
    queue.get(1)
    for name in os.listdir(stage.base / QUEUE / "leased"):
        os.utime(stage.base / QUEUE / "leased" / name, (0, 0))
    assert stage.open().reclaim() == 1


def ack_without_done_files(stage: Stage) -> None:
    """Acknowledged refs are removed."""
    queue = stage.open(keep_done=False)
    stage.put(queue, "a", "b")
    refs = queue.get(1)
    stage.journal.mark("removal begins", ["a"])
    stage.settled("ack", ["a"], queue.ack(refs))


def requeue(stage: Stage) -> None:
    """A dead letter goes back to pending/, its bookkeeping shorter than before."""
    queue = stage.open()
    stage.put(queue, "a")
    stage.settled("final fail", ["a"], queue.fail(queue.get(1), "a reason that is rather long", retryable=False))
    stage.journal.mark("return begins", ["a"])
    with using(stage.journal.ops):
        operate.requeue(str(stage.base / QUEUE), ["a"])


def rewind(stage: Stage) -> None:
    """Take back what was acknowledged after a checkpoint."""
    queue = stage.open()
    stage.put(queue, "a", "b")
    stage.settled("ack", ["a", "b"], queue.ack(queue.get(2), step=3))
    stage.journal.mark("return begins", ["a", "b"])
    queue.rewind(after_step=2)


def put_again(stage: Stage) -> None:
    """An acknowledged id begins a second life."""
    queue = stage.open()
    stage.put(queue, "a")
    stage.settled("ack", ["a"], queue.ack(queue.get(1)))
    stage.put(queue, "a")


def ack_and_pack(stage: Stage) -> None:
    """Done files become lines of a segment as soon as they are acknowledged."""
    queue = stage.open()
    stage.acked(queue, "a", step=3)
    queue.pack(older_than_s=AT_ONCE_S)


def pack_more(stage: Stage) -> None:
    """A second packing takes over the first one's segment."""
    queue = stage.open()
    stage.acked(queue, "a", step=3)
    queue.pack(older_than_s=AT_ONCE_S)
    stage.acked(queue, "b", step=4)
    stage.on_disk()
    queue.pack(older_than_s=AT_ONCE_S)


def rewind_what_is_packed(stage: Stage) -> None:
    """One of the refs in a segment leaves it, the other one stays."""
    queue = stage.open()
    stage.acked(queue, "a", step=3)
    stage.acked(queue, "b", step=4)
    queue.pack(older_than_s=AT_ONCE_S)
    stage.on_disk()
    stage.journal.mark("return begins", ["b"])
    queue.rewind(after_step=3)


def pack_what_was_rewound(stage: Stage) -> None:
    """A ref that left a segment is acknowledged again, and packed with that segment's rest."""
    queue = stage.open()
    stage.acked(queue, "a", step=3)
    stage.acked(queue, "b", step=4)
    queue.pack(older_than_s=AT_ONCE_S)
    stage.journal.mark("return begins", ["b"])
    queue.rewind(after_step=3)
    stage.on_disk()
    stage.settled("ack", ["b"], queue.ack(queue.get(1), step=4))
    queue.pack(older_than_s=AT_ONCE_S)


def two_producers(stage: Stage) -> None:
    """One leaves the stream while the other one goes on."""
    queue = stage.open()
    first = stage.join(queue, "p1")
    second = stage.join(queue, "p2")
    stage.put(queue, "a")
    stage.leave(first)
    stage.put(queue, "b")
    stage.leave(second)


def create(stage: Stage) -> None:
    """Nothing is there before; the first put follows."""
    stage.put(stage.open(), "a")


SCRIPTS: dict[str, Callable[[Stage], None]] = {
    script.__name__: script
    for script in (
        create,
        put_one,
        put_three,
        put_twice,
        put_known_before_it_is_synced,
        get_and_ack,
        put_while_leases_are_unsynced,
        fail_retryably,
        fail_finally,
        release,
        reclaim,
        ack_without_done_files,
        requeue,
        rewind,
        put_again,
        ack_and_pack,
        pack_more,
        rewind_what_is_packed,
        pack_what_was_rewound,
        two_producers,
    )
}


def record(script: Callable[[Stage], None], base: Path, durable: bool) -> tuple[list[Record], int]:
    """Run a script; returns its records, and the first one after which the power may be cut.

    The queue's creation has reached the disk by then, unless it is what the script is about.
    """
    base.mkdir()
    stage = Stage(base, durable)
    try:
        if script is not create:
            stage.open()
            stage.on_disk()
        with mock.patch("fsqueue.engine.owners.boot_id", lambda: "the boot before the power cut"):
            script(stage)
        return stage.journal.records, stage.first
    finally:
        stage.close()
