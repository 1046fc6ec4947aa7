"""One interface for all that is measured, and a queue object behind it.

Each worker process opens its own subject over a common directory. `plan` is not timed; `put`, `get` and `ack`
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from subjects.sample import sample

BULK = 5_000


def put_all(queue: Any, sample_ids: Sequence[str], batch: int) -> None:
    """Put a ref for each id, so many a call."""
    for start in range(0, len(sample_ids), batch):
        queue.put([sample(sample_id) for sample_id in sample_ids[start : start + batch]])


def take_all(queue: Any, batch: int) -> list[str]:
    """Get and acknowledge, so many a call, until nothing comes; return the ids."""
    found: list[str] = []
    while refs := queue.get(batch):
        found.extend(ref.sample_id for ref in refs)
        queue.ack(refs)
    return found


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
        put_all(self._bulk, sample_ids, BULK)

    def drain(self) -> list[str]:
        return take_all(self._bulk, BULK)

    def leftover(self) -> int:
        return int(self._bulk.depth() + self._bulk.in_flight())

    def recover(self) -> None:
        """A get does it."""

    def close(self) -> None:
        self.queue.close()
        if self._bulk is not self.queue:
            self._bulk.close()
