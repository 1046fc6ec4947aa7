"""The part that a rollout and a trainer have in common: what each opens, in which order, and how it ends.

A worker joins the stream before it loads anything large, so that a restarted one is back long before the others
would take it for dead.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.demo.demo_dir import DemoDirectory, Parent
from fsqueue.demo.journal import Journal
from fsqueue.demo.options import DemoOptions
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import SampleRef


@dataclass(frozen=True)
class Worker:
    """A rollout or a trainer of this process, and all that it works with.

    Attributes:
        name: its name in the stream, in owners and in journals.
        index: its number among the rollouts, or its rank.
    """

    demo: DemoDirectory
    options: DemoOptions
    name: str
    index: int
    parent: Parent
    journal: Journal
    queue: FileSampleRefQueue[SampleRef]
    controller: DataFlowController[SampleRef]


@contextmanager
def opened(demo: DemoDirectory, kind: str, index: int, start: int, parent: Parent) -> Iterator[Worker]:
    """Open a worker's handles; `start` counts the starts of the same worker."""
    options, name = demo.read_options(), f"{kind}-{index}"
    with (
        closing(Journal(demo.log, name, start)) as journal,
        FileSampleRefQueue(demo.queue, owner=name, heartbeat_s=options.lease_timeout_s / 5) as queue,
        FileMetadataStore[SampleRef](demo.ledger) as store,
    ):
        controller = DataFlowController[SampleRef](options.run_id, sample_queue=queue, metadata_store=store)
        yield Worker(demo, options, name, index, parent, journal, queue, controller)


@contextmanager
def taking_part(kind: Literal["rollout", "trainer"]) -> Iterator[Worker]:
    """Join the stream as this process's command line says: a rollout produces, a trainer consumes.

    Leaving the block normally closes this end of the stream, an exception marks it failed, and SIGTERM withdraws it. A
    restarted worker takes its place at once, by the number of its starts.
    """
    parser = argparse.ArgumentParser(prog=f"python -m fsqueue.demo.{kind}")
    parser.add_argument("directory")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--start", type=int, default=1)
    parser.add_argument("--parent", type=int, help="exit when this process is no longer the parent")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor too, which then ends the workers
    with opened(DemoDirectory(given.directory), kind, given.index, given.start, Parent(given.parent)) as worker:
        join = worker.queue.producer if kind == "rollout" else worker.queue.consumer
        expected = worker.options.rollouts if kind == "rollout" else worker.options.trainers
        with join(worker.name, expected=expected, attempt=given.start, on_sigterm="withdraw"):
            yield worker
