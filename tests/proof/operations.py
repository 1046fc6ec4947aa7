"""The table of operations that the sweeps run; whatever is added to the queue joins by one line.

An operation works on a *batch* of refs, in a queue where other refs, the bystanders, are in every state::

    prepare   brings the batch into the state that the operation starts from; it is never disturbed
    run       the operation; the sweeps kill the process, or fail a call, at every file operation of it
    lands     where a ref of the batch may be after a run that was cut short
    ends      where it is after a run that was not
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from implementations import ids, make_ref

from fsqueue import FileSampleRefQueue, SampleRef, dp_partition

LIVE, DONE, FAILED, GONE = "live", "done", "failed", "gone"
LEASE_S = 3600.0
CORRUPT = "corrupt"
LONG_AGO_S = 1_000_000_000
ORDER_FILLER_LINES = 4000


@dataclass
class Stage:
    """A queue with a batch, and the handle that an operation runs on.

    Attributes:
        others: handles that must stay open while the operation runs.
        returned: what the operation returned.
    """

    path: Path
    batch: list[SampleRef]
    options: dict[str, Any]
    queue: FileSampleRefQueue[SampleRef] = field(init=False)
    others: list[FileSampleRefQueue[SampleRef]] = field(default_factory=list)
    returned: Any = None

    def open(self, **options: Any) -> FileSampleRefQueue[SampleRef]:
        return FileSampleRefQueue(self.path, **{"lease_timeout_s": LEASE_S, **self.options, **options})

    def close(self) -> None:
        for queue in self.others:
            queue.close()
        if hasattr(self, "queue"):
            self.queue.close()


@dataclass(frozen=True)
class Operation:
    """One line of the table.

    Attributes:
        options: how the operation's handle is opened.
        bare: there is no queue before the operation, and so no bystander.
        keeps: leases on the batch that its handle has outlast the operation.
        earlier: the state of a file that the batch's first ref has from an earlier life.
    """

    name: str
    prepare: Callable[[Stage], None]
    run: Callable[[Stage], Any]
    lands: frozenset[str]
    ends: str
    options: dict[str, Any] = field(default_factory=dict)
    bare: bool = False
    earlier: str | None = None
    keeps: bool = False

    def __str__(self) -> str:
        return self.name


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


def _nothing(stage: Stage) -> None:
    """The operation itself opens the queue."""


def _opened(stage: Stage) -> None:
    stage.queue = stage.open()


def _pending(stage: Stage) -> None:
    _opened(stage)
    stage.queue.put(stage.batch)


def _leased(stage: Stage) -> None:
    _pending(stage)
    assert ids(stage.queue.get(len(stage.batch))) == ids(stage.batch)


def _lived_before(stage: Stage) -> None:
    """The batch's first ref has a dead letter of an earlier life."""
    _opened(stage)
    stage.queue.put(stage.batch[:1])
    stage.queue.fail(stage.queue.get(1), "an earlier life", retryable=False)


def _half_known(stage: Stage) -> None:
    """Of the batch's refs the first is leased already, the second is pending."""
    _opened(stage)
    stage.queue.put(stage.batch[:1])
    stage.queue.get(1)
    stage.queue.put(stage.batch[1:2])


def _leased_by_another(stage: Stage) -> None:
    """Another handle holds the batch; its process is the same, so it lives as long."""
    other = stage.open(owner="other")
    stage.others.append(other)
    other.put(stage.batch)
    other.get(len(stage.batch))
    _opened(stage)


def _expired(stage: Stage) -> None:
    _leased_by_another(stage)
    for name in os.listdir(stage.path / "leased"):
        if "@other." in name:
            os.utime(stage.path / "leased" / name, (LONG_AGO_S, LONG_AGO_S))


def _owner_dead(stage: Stage) -> None:
    """The batch is leased to a process that is gone."""
    child = os.fork()
    if child == 0:
        try:
            _leased(stage)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    _opened(stage)


def _unordered(stage: Stage) -> None:
    _pending(stage)
    (stage.path / "order.lock").unlink()


def _torn_order(stage: Stage) -> None:
    _pending(stage)
    with (stage.path / "order.lock").open("r+b") as order:
        order.write(b"\0" * 100)


def _consumed_order(stage: Stage) -> None:
    """Most of the order has been handed out, so that the next get compacts it."""
    _opened(stage)
    path = stage.path / "order.lock"
    filler = b"".join(b"gone%05d-and-some-more\n" % number for number in range(ORDER_FILLER_LINES))
    header = b"%016d %016d %016x %012d\n" % (64 + len(filler), 0, 7, LONG_AGO_S)
    path.write_bytes(header + filler)
    stage.queue.put(stage.batch)


def _corrupt_too(stage: Stage) -> None:
    """The ref in front of the batch is cut short."""
    _opened(stage)
    stage.queue.put([make_ref(CORRUPT)])
    (stage.path / "pending" / f"{CORRUPT}.json").write_bytes(b'{"sample_id": "corr')
    stage.queue.put(stage.batch)


def _misnamed(stage: Stage) -> None:
    _pending(stage)
    for index, ref in enumerate(stage.batch):
        name = _file_of(stage.path / "pending", ref.sample_id)
        os.rename(stage.path / "pending" / name, stage.path / "pending" / f"misnamed-{index}.json")


def _file_of(directory: Path, sample_id: str) -> str:
    needle = f'"sample_id":"{sample_id}"'.encode()
    return next(name for name in os.listdir(directory) if needle in (directory / name).read_bytes())


def _put(stage: Stage) -> None:
    stage.queue.put(stage.batch)


def _get(stage: Stage) -> list[SampleRef]:
    return stage.queue.get(len(stage.batch))


def _get_partition(stage: Stage) -> list[SampleRef]:
    return stage.queue.get(len(stage.batch), partition=(0, 2))


def _ack(stage: Stage) -> list[str]:
    return stage.queue.ack(stage.batch)


def _ack_step(stage: Stage) -> list[str]:
    return stage.queue.ack(stage.batch, step=7)


def _fail(stage: Stage) -> list[str]:
    return stage.queue.fail(stage.batch, "flaky", retryable=True)


def _fail_for_good(stage: Stage) -> list[str]:
    return stage.queue.fail(stage.batch, "broken", retryable=False)


_STAYS = frozenset({LIVE})
_OR_DONE = frozenset({LIVE, DONE})
_OR_FAILED = frozenset({LIVE, FAILED})
_OR_GONE = frozenset({LIVE, GONE})
_ONE_ATTEMPT = {"max_attempts": 1}
_UNLINK = {"keep_done": False}

OPERATIONS: tuple[Operation, ...] = (
    Operation("create", _nothing, _opened, frozenset({GONE}), GONE, bare=True),
    Operation("open", _nothing, _opened, frozenset({GONE}), GONE),
    Operation("put", _lived_before, _put, _OR_GONE, LIVE, earlier=FAILED),
    Operation("put-known", _half_known, _put, _OR_GONE, LIVE, keeps=True),
    Operation("get", _pending, _get, _STAYS, LIVE),
    Operation("get-partition", _pending, _get_partition, _STAYS, LIVE),
    Operation("get-unordered", _unordered, _get, _STAYS, LIVE),
    Operation("get-torn-order", _torn_order, _get, _STAYS, LIVE),
    Operation("get-compacting", _consumed_order, _get, _STAYS, LIVE),
    Operation("get-partition-compacting", _consumed_order, _get_partition, _STAYS, LIVE),
    Operation("get-corrupt", _corrupt_too, _get, _STAYS, LIVE),
    Operation("get-misnamed", _misnamed, _get, _STAYS, LIVE),
    Operation("ack", _leased, _ack, _OR_DONE, DONE),
    Operation("ack-step", _leased, _ack_step, _OR_DONE, DONE),
    Operation("ack-unlink", _leased, _ack, _OR_GONE, GONE, _UNLINK),
    Operation("ack-by-id", _leased_by_another, _ack, _OR_DONE, DONE),
    Operation("ack-pending", _pending, _ack, _OR_DONE, DONE),
    Operation("fail", _leased, _fail, _STAYS, LIVE),
    Operation("fail-by-id", _leased_by_another, _fail, _STAYS, LIVE),
    Operation("fail-for-good", _leased, _fail_for_good, _OR_FAILED, FAILED),
    Operation("fail-for-good-pending", _pending, _fail_for_good, _OR_FAILED, FAILED),
    Operation("fail-last-attempt", _leased, _fail, _OR_FAILED, FAILED, _ONE_ATTEMPT),
    Operation("release", _leased, lambda stage: stage.queue.release(stage.batch), _STAYS, LIVE),
    Operation("release-by-id", _leased_by_another, lambda stage: stage.queue.release(stage.batch), _STAYS, LIVE),
    Operation("renew", _leased, lambda stage: stage.queue.renew(stage.batch), _STAYS, LIVE, keeps=True),
    Operation("reclaim-expired", _expired, lambda stage: stage.queue.reclaim(), _STAYS, LIVE),
    Operation("reclaim-dead", _owner_dead, lambda stage: stage.queue.reclaim(), _STAYS, LIVE),
    Operation("reclaim-last-attempt", _expired, lambda s: s.queue.reclaim(), _OR_FAILED, FAILED, _ONE_ATTEMPT),
    Operation("get-expired", _expired, _get, _STAYS, LIVE),
    Operation("close", _leased, lambda stage: stage.queue.close(), _STAYS, LIVE, keeps=True),
)
