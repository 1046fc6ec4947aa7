"""What is measured, behind one interface: the queues and the floor.

Each worker process opens its own subject over a common directory. `plan` is not timed; `put`, `get` and `ack`
are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from floor import Floor, Names
from sqlite_queue import PlainSqliteQueue, TunedSqliteQueue

from fsqueue import FeatureSpec, FileSampleRefQueue, MemorySampleRefQueue, SampleRef
from fsqueue.format.codec import Codec

SUBJECTS = {
    "file": "FileSampleRefQueue",
    "floor": "file operations alone",
    "sqlite": "SQLite, plain",
    "sqlite-tuned": "SQLite, tuned",
    "memory": "MemorySampleRefQueue",
}
ALONE = ("memory",)
WAITING = ("file", "sqlite", "sqlite-tuned")
LEASE_TIMEOUT_S = 600.0
_BULK = 5_000


def sample(sample_id: str, **metadata: Any) -> SampleRef:
    """A ref of the usual size: two features, about 700 bytes of JSON."""
    return SampleRef(
        sample_id=sample_id,
        run_id="bench",
        source_task_id=f"task-{sample_id}",
        feature_store_uri="file:///scratch/features",
        feature_keys={"hidden_states": f"{sample_id}/hidden_states", "input_ids": f"{sample_id}/input_ids"},
        feature_specs={
            "hidden_states": FeatureSpec("hidden_states", (1, 2048, 4096), "bfloat16", target_repr="hidden_state"),
            "input_ids": FeatureSpec("input_ids", (1, 2048), "int64"),
        },
        strategy="eagle3",
        target_model_version="target-1",
        tokenizer_version="tokenizer-1",
        num_tokens=2048,
        estimated_bytes=16_793_600,
        metadata={"rollout": 7, "temperature": 0.8, "tags": ["train", "english"], **metadata},
    )


class Subject(Protocol):
    """One process's handle on what is measured."""

    def plan(self, sample_ids: list[str], count: int) -> tuple[Any, Any]:
        """What `put` takes for these ids, and what `get` takes for that many refs."""

    def put(self, batch: Any) -> None: ...

    def get(self, wanted: Any) -> Sequence[Any]: ...

    def ack(self, batch: Any) -> None: ...

    def fill(self, sample_ids: list[str]) -> None:
        """Put without durability, not timed."""

    def drain(self) -> list[str]:
        """Get and ack without durability what is left; the ids."""

    def leftover(self) -> int:
        """Refs that are pending or leased."""

    def recover(self) -> None:
        """What is to be called, again and again, to get back what a killed consumer had."""

    def close(self) -> None: ...


class QueueSubject:
    """A queue object; bulk is a second handle without durability, or the same one."""

    def __init__(self, queue: Any, bulk: Any) -> None:
        self.queue = queue
        self._bulk = bulk
        self.put = queue.put
        self.get = queue.get
        self.ack = queue.ack

    def plan(self, sample_ids: list[str], count: int) -> tuple[Any, Any]:
        return [sample(sample_id) for sample_id in sample_ids], count

    def fill(self, sample_ids: list[str]) -> None:
        for start in range(0, len(sample_ids), _BULK):
            self._bulk.put([sample(sample_id) for sample_id in sample_ids[start : start + _BULK]])

    def drain(self) -> list[str]:
        found: list[str] = []
        while refs := self._bulk.get(_BULK):
            found.extend(ref.sample_id for ref in refs)
            self._bulk.ack(refs)
        return found

    def leftover(self) -> int:
        return int(self._bulk.depth() + self._bulk.in_flight())

    def recover(self) -> None:
        """A get does it."""

    def close(self) -> None:
        self.queue.close()
        if self._bulk is not self.queue:
            self._bulk.close()


class FloorSubject:
    """The raw operations, on names and bytes that `plan` makes."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self.put = floor.put
        self.get = floor.get
        self.ack = floor.ack
        self.close = floor.close

    def plan(self, sample_ids: list[str], count: int) -> tuple[list[Names], list[Names]]:
        return self._floor.names(sample_ids), self._floor.oldest(count)

    def fill(self, sample_ids: list[str]) -> None:
        with self._floor.relaxed():
            self._floor.put(self._floor.names(sample_ids))

    def drain(self) -> list[str]:
        found: list[str] = []
        while batch := self._floor.oldest(_BULK):
            self._floor.ack(self._floor.get(batch))
            found.extend(names.sample_id for names in batch)
        return found

    def leftover(self) -> int:
        return self._floor.left()

    def recover(self) -> None:
        """Nothing does: there is no lease."""


def open_subject(kind: str, path: str, owner: str, durable: bool, lease_timeout_s: float = LEASE_TIMEOUT_S) -> Subject:
    """Open one of `SUBJECTS` over a directory, which is made where it is missing."""
    os.makedirs(path, exist_ok=True)
    if kind == "floor":
        return FloorSubject(Floor(path, owner, Codec(SampleRef).encode(sample(owner)), durable))
    if kind == "memory":
        memory: MemorySampleRefQueue[SampleRef] = MemorySampleRefQueue(lease_timeout_s=lease_timeout_s)
        return QueueSubject(memory, memory)
    if kind == "file":
        handles = [
            FileSampleRefQueue(os.path.join(path, "queue"), lease_timeout_s=lease_timeout_s, owner=owner, durable=d)
            for d in _durabilities(durable)
        ]
        return QueueSubject(handles[0], handles[-1])
    cls = PlainSqliteQueue if kind == "sqlite" else TunedSqliteQueue
    queues = [
        cls(os.path.join(path, "queue.sqlite3"), lease_timeout_s=lease_timeout_s, durable=d)
        for d in _durabilities(durable)
    ]
    return QueueSubject(queues[0], queues[-1])


def _durabilities(durable: bool) -> tuple[bool, ...]:
    return (True, False) if durable else (False,)
