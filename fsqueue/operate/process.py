"""Tell what a process does with its queue objects: for its own log, or for Prometheus beside its other metrics.

`fsqueue metrics` looks at queues from outside, and knows states and ages. How often this process waited for a lock,
lost a lease or took one back from others, only the process itself can tell.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from fsqueue.engine.counters import Counted, Counters
from fsqueue.errors import QueueClosedError

if TYPE_CHECKING:
    from prometheus_client import Metric

    from fsqueue.queue import FileSampleRefQueue


class _Family(NamedTuple):
    """Describe a metric: its name without ``_total``, what it means, its label, and what is counted for each value."""

    name: str
    help: str
    label: str | None
    counted: dict[str, Counted]


_FAMILIES = (
    _Family(
        "fsqueue_process_put_refs",
        "Refs that this process put, or that were in the queue already.",
        "outcome",
        {"added": "put", "skipped": "skipped"},
    ),
    _Family("fsqueue_process_leased_refs", "Refs that a get of this process returned.", None, {"": "leased"}),
    _Family(
        "fsqueue_process_settled_refs",
        "Leases that this process ended: failed ones come again, or are dead letters.",
        "how",
        {"acked": "acked", "failed": "failed", "released": "released"},
    ),
    _Family("fsqueue_process_dead_letters", "Refs that this process moved to failed/.", None, {"": "dead"}),
    _Family("fsqueue_process_lost_leases", "Leases that were gone when they were to be settled.", None, {"": "lost"}),
    _Family(
        "fsqueue_process_reclaimed_leases",
        "Leases of processes that are gone, or out of time, that this process took back.",
        None,
        {"": "reclaimed"},
    ),
    _Family("fsqueue_process_lock_waits", "How often the queue's lock was not free at once.", None, {"": "lock_waits"}),
    _Family("fsqueue_process_lock_wait_seconds", "For how long it was waited for, in all.", None, {"": "lock_wait_s"}),
    _Family(
        "fsqueue_process_lock_failures",
        "How often it could not be had in time, or had to be replaced.",
        "how",
        {"not_had": "lock_not_had", "replaced": "lock_replaced"},
    ),
)


def process_counters(queue: FileSampleRefQueue[Any]) -> dict[Counted, float]:
    """Return what a queue object has done in this process: in a child after a fork, what the child has.

    put, skipped: refs that were added, and that were there already. leased: what gets have returned. acked, failed,
    released: leases ended so. dead: refs moved to failed/, for whatever reason. lost: leases that were gone when they
    were to be settled. reclaimed: leases of others that this object took back. lock_waits, lock_wait_s: how often the
    lock was not free at once, and for how long it was waited for. lock_not_had, lock_replaced: how often a get went on
    without it, and how often a put replaced the lock of a holder that is stuck.

    Raises:
        QueueClosedError: it is closed.
    """
    return queue.handle.counters.read()


class ProcessMetrics:
    """Collect the counters of this process's queue objects, for a registry of prometheus-client.

    Several objects on one queue are added up. One that is closed or gone keeps its last numbers, since counters never
    go back; so register one collector for as long as the process lives::

        REGISTRY.register(ProcessMetrics(queue))

    It keeps no queue object alive.
    """

    def __init__(self, *queues: FileSampleRefQueue[Any]) -> None:
        self._seen: list[_Seen] = []
        for queue in queues:
            self.add(queue)

    def add(self, queue: FileSampleRefQueue[Any]) -> None:
        """Collect the counters of one more queue object, too.

        Raises:
            QueueClosedError: it is closed.
        """
        self._seen.append(_Seen(queue))

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as a collector of prometheus-client does."""
        from prometheus_client.core import CounterMetricFamily

        read = self._read()
        for family in _FAMILIES:
            labels = ["queue", *([family.label] if family.label else [])]
            metric = CounterMetricFamily(family.name, family.help, labels=labels)
            for path, numbers in read.items():
                for value, counted in family.counted.items():
                    metric.add_metric([path, *([value] if family.label else [])], numbers[counted])
            yield metric

    def _read(self) -> dict[str, dict[Counted, float]]:
        """Return the numbers by path."""
        found: dict[str, dict[Counted, float]] = {}
        for seen in self._seen:
            sums = found.setdefault(seen.path, {})
            for what, value in seen.counters().items():
                sums[what] = sums.get(what, 0) + value
        return found


class _Seen:
    """Remember a queue object's counters, as those of the process that asks."""

    def __init__(self, queue: FileSampleRefQueue[Any]) -> None:
        self.path = queue.path
        self._queue = weakref.ref(queue)
        self._counters: Counters = queue.handle.counters

    def counters(self) -> dict[Counted, float]:
        queue = self._queue()
        if queue is not None:
            with suppress(QueueClosedError):
                self._counters = queue.handle.counters
        return self._counters.read()
