"""Queues to run an operation on: a batch of refs, brought into the state that the operation starts from."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsqueue import (
    DataFlowController,
    FileMetadataStore,
    FileSampleRefQueue,
    MemberReplacedError,
    SampleRef,
    TrainerView,
    dp_partition,
)
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.membership import Membership
from tests.support import ids
from tests.support.implementations import make_ref

LEASE_S = 3600.0
CORRUPT = "corrupt"
LONG_AGO_S = 1_000_000_000
ORDER_FILLER_LINES = 4000


@dataclass
class Stage:
    """A queue with a batch, and the handle that an operation runs on.

    Attributes:
        others: what must stay open while the operation runs.
        member, view, ranks, controller: what the operation works on, where that is not the handle itself.
        returned: what the operation returned.
    """

    path: Path
    batch: list[SampleRef]
    options: dict[str, Any]
    queue: FileSampleRefQueue[SampleRef] = field(init=False)
    others: list[Any] = field(default_factory=list)
    member: Membership | None = None
    view: TrainerView[SampleRef] | None = None
    ranks: list[Rendezvous] = field(default_factory=list)
    controller: Any = None
    returned: Any = None

    def open(self, **options: Any) -> FileSampleRefQueue[SampleRef]:
        return FileSampleRefQueue(self.path, **{"lease_timeout_s": LEASE_S, **self.options, **options})

    def close(self) -> None:
        for other in (*self.others, self.view, self.member):
            if other is not None:
                with suppress(MemberReplacedError):  # what one hears whose successor has joined
                    other.close()
        if hasattr(self, "queue"):
            self.queue.close()


def new_batch(size: int) -> list[SampleRef]:
    """Refs whose names use what the grammar has; all of them in partition 0 of 2."""
    shapes = ("b{}", "b/{}", "b {}é", "b" * 200 + "{}", ".b{}")
    found: list[SampleRef] = []
    serial = 0
    while len(found) < size:
        sample_id = shapes[len(found) % len(shapes)].format(serial)
        serial += 1
        if dp_partition(sample_id, 2) == 0:
            found.append(make_ref(sample_id, num_tokens=serial, metadata={"pair": (1, "two")}))
    return found


def dead_letters(stage: Stage) -> None:
    leased(stage)
    stage.queue.fail(stage.batch, "broken", retryable=False)


def acked(stage: Stage) -> None:
    leased(stage)
    stage.queue.ack(stage.batch, step=9)


def acked_long_ago(stage: Stage) -> None:
    acked(stage)
    for name in os.listdir(stage.path / "done"):
        if "@9." in name:
            os.utime(stage.path / "done" / name, (LONG_AGO_S, LONG_AGO_S))


def _pack_all(stage: Stage) -> None:
    for name in os.listdir(stage.path / "done"):
        os.utime(stage.path / "done" / name, (LONG_AGO_S, LONG_AGO_S))
    stage.queue.pack(older_than_s=LEASE_S)


def packed(stage: Stage) -> None:
    """The batch was acked, and is packed in one segment with the bystander that was done before."""
    acked(stage)
    _pack_all(stage)


def packed_alone(stage: Stage) -> None:
    acked_long_ago(stage)
    stage.queue.pack(older_than_s=LEASE_S)


def packed_before(stage: Stage) -> None:
    """A segment that is not full, with a bystander, and the batch acked long ago."""
    opened(stage)
    _pack_all(stage)
    stage.queue.close()
    acked_long_ago(stage)


def damaged(stage: Stage) -> None:
    """Refs under wrong names, no order, and what a producer that died left behind."""
    misnamed(stage)
    (stage.path / "order.lock").write_bytes(b"\0" * 100)
    leftover = stage.path / "tmp" / "gone.1.abcdef.0"
    leftover.write_bytes(b"{")
    os.utime(leftover, (LONG_AGO_S, LONG_AGO_S))


def nothing(stage: Stage) -> None:
    """The operation itself opens the queue."""


def opened(stage: Stage) -> None:
    stage.queue = stage.open()


def pending(stage: Stage) -> None:
    opened(stage)
    stage.queue.put(stage.batch)


def leased(stage: Stage) -> None:
    pending(stage)
    assert ids(stage.queue.get(len(stage.batch))) == ids(stage.batch)


def paused(stage: Stage) -> None:
    """The batch is leased, and the queue paused since."""
    leased(stage)
    stage.queue.pause()


def returned(stage: Stage) -> None:
    """The batch is pending again, after leases whose end the history tells."""
    leased(stage)
    assert stage.queue.fail(stage.batch, "an earlier attempt", retryable=True) == []


def lived_before(stage: Stage) -> None:
    """The batch's first ref has a dead letter of an earlier life."""
    opened(stage)
    stage.queue.put(stage.batch[:1])
    stage.queue.fail(stage.queue.get(1), "an earlier life", retryable=False)


def half_known(stage: Stage) -> None:
    """Of the batch's refs the first is leased already, the second is pending."""
    opened(stage)
    stage.queue.put(stage.batch[:1])
    stage.queue.get(1)
    stage.queue.put(stage.batch[1:2])


def waiting(stage: Stage) -> None:
    leased(stage)
    stage.queue.fail(stage.batch, "flaky", retryable=True, delay_s=1e-9)


def leased_by_another(stage: Stage) -> None:
    """Another handle holds the batch; its process is the same, so it lives as long."""
    other = stage.open(owner="other")
    stage.others.append(other)
    other.put(stage.batch)
    other.get(len(stage.batch))
    opened(stage)


def to_hand_over(stage: Stage) -> None:
    """The handle holds the batch, and there is another to hand it over to."""
    leased(stage)
    stage.others.append(other := stage.open(owner="other"))
    other.handle.presence.announce()


def handed_over(stage: Stage) -> None:
    """Another handle leased the batch, and has handed it over."""
    leased_by_another(stage)
    stage.queue.handle.presence.announce()
    assert stage.others[0].hand_over(stage.batch, stage.queue.owner) == []


def expired(stage: Stage) -> None:
    leased_by_another(stage)
    for name in os.listdir(stage.path / "leased"):
        if "@other." in name:
            os.utime(stage.path / "leased" / name, (LONG_AGO_S, LONG_AGO_S))


def silent(stage: Stage) -> None:
    """The other handle's heartbeat has stopped, too."""
    expired(stage)
    for name in os.listdir(stage.path / "owners"):
        if name.startswith("other."):
            os.utime(stage.path / "owners" / name, (LONG_AGO_S, LONG_AGO_S))


def joined_unput(stage: Stage) -> None:
    opened(stage)
    stage.member = stage.queue.producer("rollout-0")


def joined(stage: Stage) -> None:
    joined_unput(stage)
    stage.queue.put(stage.batch)


def left(stage: Stage) -> None:
    """A producer of this name has been there."""
    joined(stage)
    assert stage.member is not None
    stage.member.close()


def withdrawn(stage: Stage) -> None:
    """A producer of this name was preempted."""
    joined(stage)
    assert stage.member is not None
    stage.member.withdraw()


def leased_by_member(stage: Stage) -> None:
    leased(stage)
    stage.member = stage.queue.consumer("trainer-0")


def leased_by_former_member(stage: Stage) -> None:
    """A process that is about to be replaced has the batch."""
    leased_by_another(stage)
    stage.others.append(stage.others[-1].consumer("trainer-0", attempt=0))


def ranked(stage: Stage) -> None:
    """Two ranks, the first one's is the operation's handle."""
    pending(stage)
    stage.others.append(other := stage.open(owner="other"))
    names = ["run-0", "run-1"]
    for rank, queue in enumerate((stage.queue, other)):
        stage.others.append(queue.consumer(names[rank]))
        stage.ranks.append(Rendezvous(queue.handle, queue.stream(), rank, names, "run"))


def viewed(stage: Stage) -> None:
    pending(stage)
    stage.view = TrainerView(stage.queue)


def leased_by_view(stage: Stage) -> None:
    viewed(stage)
    assert stage.view is not None
    assert ids(stage.view.get(len(stage.batch))) == ids(stage.batch)


def controlled(stage: Stage) -> None:
    """A controller on the queue, and on a ledger beside it."""
    opened(stage)
    store: FileMetadataStore[SampleRef] = FileMetadataStore(f"{stage.path}-ledger")
    stage.others.append(store)
    stage.controller = DataFlowController("run", sample_queue=stage.queue, metadata_store=store)


def committed(stage: Stage) -> None:
    """The controller died before it put what it had committed."""
    controlled(stage)
    stage.controller.store.commit_samples(stage.batch)


def leased_by_controller(stage: Stage) -> None:
    controlled(stage)
    stage.controller.commit_samples("w", stage.batch)
    assert ids(stage.controller.lease_train_refs("t", len(stage.batch))) == ids(stage.batch)


def owner_dead(stage: Stage) -> None:
    """The batch is leased to a process that is gone."""
    child = os.fork()
    if child == 0:
        try:
            leased(stage)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    opened(stage)


def unordered(stage: Stage) -> None:
    pending(stage)
    (stage.path / "order.lock").unlink()


def torn_order(stage: Stage) -> None:
    pending(stage)
    with (stage.path / "order.lock").open("r+b") as order:
        order.write(b"\0" * 100)


def consumed_order(stage: Stage) -> None:
    """Most of the order has been handed out, so that the next get compacts it."""
    opened(stage)
    path = stage.path / "order.lock"
    filler = b"".join(b"gone%05d-and-some-more\n" % number for number in range(ORDER_FILLER_LINES))
    header = b"%016d %016d %016x %012d\n" % (64 + len(filler), 0, 7, LONG_AGO_S)
    path.write_bytes(header + filler)
    stage.queue.put(stage.batch)


def corrupt_too(stage: Stage) -> None:
    """The ref in front of the batch is cut short."""
    opened(stage)
    stage.queue.put([make_ref(CORRUPT)])
    (stage.path / "pending" / f"{CORRUPT}.json").write_bytes(b'{"sample_id": "corr')
    stage.queue.put(stage.batch)


def misnamed(stage: Stage) -> None:
    pending(stage)
    for index, ref in enumerate(stage.batch):
        name = _file_of(stage.path / "pending", ref.sample_id)
        os.rename(stage.path / "pending" / name, stage.path / "pending" / f"misnamed-{index}.json")


def _file_of(directory: Path, sample_id: str) -> str:
    needle = f'"sample_id":"{sample_id}"'.encode()
    return next(name for name in os.listdir(directory) if needle in (directory / name).read_bytes())
