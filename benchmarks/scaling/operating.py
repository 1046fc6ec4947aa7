"""Operators' work, timed in a process of its own, which may import another checkout's fsqueue.

    python benchmarks/scaling/operating.py REFS DIRECTORY DURABLE OPERATION...

Prints a line of JSON for each operation: seconds, seconds of CPU, refs. What the operation needs is set up before, and
what it did is looked at afterwards.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from fsqueue import FileSampleRefQueue, SampleRef, operate
from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from subjects.sample import LEASE_TIMEOUT_S, sample

Queue = FileSampleRefQueue[SampleRef]
BATCH = 1_000
_CONTEXT = multiprocessing.get_context("spawn")


class Site:
    """A queue with so many refs, in a state that an operation begins with."""

    def __init__(self, directory: str, refs: int, durable: bool) -> None:
        self.path = os.path.join(directory, "queue")
        self.refs = refs
        self.durable = durable
        self.queue: Queue = FileSampleRefQueue(self.path, lease_timeout_s=LEASE_TIMEOUT_S, durable=durable)

    def put(self) -> None:
        for start in range(0, self.refs, BATCH):
            self.queue.put([sample(f"ref-{n:09d}") for n in range(start, min(start + BATCH, self.refs))])

    def leases(self) -> Iterator[list[SampleRef]]:
        while refs := self.queue.get(BATCH):
            yield refs

    def ack(self) -> None:
        for step, refs in enumerate(self.leases(), 1):
            self.queue.ack(refs, step=step)

    def fail(self) -> None:
        for refs in self.leases():
            self.queue.fail(refs, "no good", retryable=False)

    def pack(self) -> None:
        assert operate.pack(self.path, 0.0).refs == self.refs

    def rewind(self) -> None:
        assert len(self.queue.rewind(after_step=0, force=True)) == self.refs

    def requeue(self) -> None:
        assert sum(outcome.moved for outcome in operate.requeue_failed(self.path)) == self.refs


OPERATIONS: dict[str, tuple[tuple[Callable[[Site], None], ...], tuple[Callable[[Site], None], ...], str]] = {
    "put": ((), (Site.put,), "pending"),
    "get and ack": ((Site.put,), (Site.ack,), "done"),
    "rewind of plain files": ((Site.put, Site.ack), (Site.rewind,), "pending"),
    "rewind of packed refs": ((Site.put, Site.ack, Site.pack), (Site.rewind,), "pending"),
    "pack": ((Site.put, Site.ack), (Site.pack,), "done"),
    "requeue": ((Site.put, Site.fail), (Site.requeue,), "pending"),
    "fail and requeue": ((Site.put,), (Site.fail, Site.requeue), "pending"),
}
"""What is done before, what is timed, and where the refs are then."""
RECONCILE = "reconcile_on_restart"
MEANWHILE = "get meanwhile"


def timed(work: Callable[[], object]) -> dict[str, float]:
    started, used = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - used}


def operation(name: str, site: Site) -> dict[str, float]:
    before, steps, state = OPERATIONS[name]
    for step in before:
        step(site)
    found = timed(lambda: [step(site) for step in steps])
    assert site.queue.counts()._asdict()[state] == site.refs
    return found


def reconciling(site: Site) -> dict[str, float]:
    """A ledger over the queue: a tenth of its refs is not in the queue, another one is acknowledged in it alone."""
    ledger: FileMetadataStore[Any] = FileMetadataStore(f"{site.path}-ledger", durable=False)
    for start in range(0, site.refs, BATCH):
        part = [sample(f"ref-{n:09d}") for n in range(start, min(start + BATCH, site.refs))]
        ledger.commit_samples(part)
        site.queue.put([ref for number, ref in enumerate(part) if number % 10])
    acked = [sample_id for number, sample_id in enumerate(ledger.all_committed_ids()) if number % 10 == 5]
    ledger.record_train_ack(acked, global_step=3, optimizer_durable=True)
    controller: DataFlowController[Any] = DataFlowController("bench", sample_queue=site.queue, metadata_store=ledger)
    found = timed(controller.reconcile_on_restart)
    assert site.queue.depth() == site.refs - len(acked)
    ledger.close()
    return found


def meanwhile(site: Site) -> dict[str, float]:
    """The 99th percentile of a consumer's gets while what it has acknowledged, packed, is brought back."""
    site.put()
    site.ack()
    site.pack()
    ours, theirs = _CONTEXT.Pipe()
    consumer = _CONTEXT.Process(target=_consume, args=(site.path, theirs), daemon=True)
    consumer.start()
    assert ours.recv() == "ready"
    found = timed(lambda: site.queue.rewind(after_step=0, force=True))
    ours.send("stop")
    times_s = sorted(ours.recv())
    consumer.join()
    return {**found, "p99_s": times_s[int(0.99 * (len(times_s) - 1))], "gets": len(times_s)}


def _consume(path: str, pipe: Connection) -> None:
    times_s: list[float] = []
    with FileSampleRefQueue(path, durable=False) as queue:
        pipe.send("ready")
        while not pipe.poll() or not times_s:
            started = time.perf_counter()
            refs = queue.get(8)
            times_s.append(time.perf_counter() - started)
            queue.ack(refs)
            if not refs:
                time.sleep(0.001)
        pipe.send(times_s)


def main() -> None:
    refs, directory, durable, *operations = sys.argv[1:]
    special = {RECONCILE: reconciling, MEANWHILE: meanwhile}
    for name in operations:
        with tempfile.TemporaryDirectory(dir=directory) as within:
            site = Site(within, int(refs), durable == "durable")
            with site.queue:
                found = special[name](site) if name in special else operation(name, site)
            print(json.dumps({**found, "refs": site.refs}), flush=True)


if __name__ == "__main__":
    main()
