"""The queues that are held to the contract, behind one way to open them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from against_sqlite.queue import PlainSqliteQueue, TunedSqliteQueue
from fsqueue import FileSampleRefQueue, MemorySampleRefQueue, SampleRef
from tests.support import FakeClock

EVERY = ("memory", "file", "sqlite", "sqlite-tuned")
SHARED = ("file", "sqlite", "sqlite-tuned")
FULL = ("memory", "file")
LEASE_S = 60.0


class Implementation:
    """One implementation over one place; its handles share a fake clock and are closed when the test ends."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.clock = FakeClock()
        self._opened: list[Any] = []

    def open(self, **options: Any) -> Any:
        """Another handle; the same queue for all but memory."""
        options = {"lease_timeout_s": LEASE_S, "clock": self.clock, **options}
        queue = self._factory()(**options)
        self._opened.append(queue)
        return queue

    def _factory(self) -> Callable[..., Any]:
        if self.kind == "memory":
            return MemorySampleRefQueue
        if self.kind == "file":
            return lambda **options: FileSampleRefQueue(self.directory / "queue", durable=False, **options)
        cls = PlainSqliteQueue if self.kind == "sqlite" else TunedSqliteQueue
        return lambda **options: cls(str(self.directory / "queue.sqlite3"), durable=False, **options)

    def close(self) -> None:
        for queue in self._opened:
            queue.close()


def make_ref(sample_id: str, **fields: Any) -> SampleRef:
    """A ref with the required fields filled in."""
    given: dict[str, Any] = {
        "run_id": "run",
        "source_task_id": None,
        "feature_store_uri": "file:///features",
        "feature_keys": {"hidden": f"{sample_id}/hidden"},
        "feature_specs": {},
        "strategy": "eagle3",
        **fields,
    }
    return SampleRef(sample_id, **given)


def make_refs(*sample_ids: str) -> list[SampleRef]:
    return [make_ref(sample_id) for sample_id in sample_ids]


def numbered(count: int) -> list[SampleRef]:
    """Refs s000, s001, ..."""
    return [make_ref(f"s{number:03d}") for number in range(count)]
