"""The file queue and the memory queue, driven side by side through random calls: each is the other's oracle."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fsqueue import FileSampleRefQueue, MemorySampleRefQueue
from fsqueue.format.names import ref_file, stem_of
from tests.support import FakeClock, ids
from tests.support.implementations import LEASE_S, make_refs

ID_POOL = ["a", "b", "c/d", ".e", "f%", "g@1", "ü", "x" * 200]
EVERYTHING = 100
sample_ids = st.lists(st.sampled_from(ID_POOL), max_size=4)


class SideBySide(RuleBasedStateMachine):
    """Every call goes to both queues; answers and counts must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.stale: set[str] = set()
        self.directory = tempfile.mkdtemp(prefix="fsqueue-model-")
        self.clock = FakeClock()

    @initialize(max_attempts=st.sampled_from([None, 1, 2]), keep_done=st.booleans())
    def open(self, max_attempts: int | None, keep_done: bool) -> None:
        options: dict[str, Any] = {
            "lease_timeout_s": LEASE_S,
            "max_attempts": max_attempts,
            "max_deliveries": max_attempts,
            "keep_done": keep_done,
            "clock": self.clock,
        }
        self.file: FileSampleRefQueue[Any] = FileSampleRefQueue(f"{self.directory}/queue", durable=False, **options)
        self.memory: MemorySampleRefQueue[Any] = MemorySampleRefQueue(**options)

    def both(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """The answer that both give."""
        ours = getattr(self.file, verb)(*arguments, **options)
        theirs = getattr(self.memory, verb)(*arguments, **options)
        assert ours == theirs, f"{verb}{arguments}: {ours} from the file queue, {theirs} from the memory queue"
        return ours

    def _pending(self) -> set[str]:
        return set(os.listdir(f"{self.directory}/queue/pending"))

    @rule(given=sample_ids)
    def put(self, given: list[str]) -> None:
        """An id that was settled while pending keeps its old place, if it is put again: the order is a hint."""
        self.both("put", make_refs(*(i for i in given if ref_file(stem_of(i)) not in self.stale)))

    @rule(count=st.integers(0, 4))
    def get(self, count: int) -> None:
        self.both("get", count)

    @rule(count=st.integers(1, 4), index=st.integers(0, 1))
    def get_partition(self, count: int, index: int) -> None:
        self.both("get", count, partition=(index, 2))

    @rule(given=sample_ids)
    def ack(self, given: list[str]) -> None:
        pending = self._pending()
        self.both("ack", make_refs(*dict.fromkeys(given)))
        self.stale |= pending - self._pending()

    @rule(given=sample_ids, retryable=st.booleans())
    def fail(self, given: list[str], retryable: bool) -> None:
        pending = self._pending()
        self.both("fail", make_refs(*dict.fromkeys(given)), "why", retryable)
        self.stale |= pending - self._pending()

    @rule(given=sample_ids)
    def release(self, given: list[str]) -> None:
        self.both("release", make_refs(*dict.fromkeys(given)))

    @rule(given=sample_ids)
    def renew(self, given: list[str]) -> None:
        self.both("renew", make_refs(*dict.fromkeys(given)))

    @rule(share=st.sampled_from([0.1, 0.4, 0.6]))
    def advance(self, share: float) -> None:
        self.clock.advance(share * LEASE_S)
        self._settle_order()

    @rule()
    def expire(self) -> None:
        self.clock.advance(LEASE_S + 1)
        self._settle_order()

    def _settle_order(self) -> None:
        """Refs that expire together come back in no promised order: where there are several, take them all."""
        before = self.file.in_flight()
        assert self.both("reclaim") <= before
        if before - self.file.in_flight() > 1:
            found = [sorted(ids(queue.get(EVERYTHING))) for queue in (self.file, self.memory)]
            assert found[0] == found[1]
            self.both("ack", make_refs(*found[0]))

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "file"):
            self.both("counts")
            self.both("depth")
            self.both("in_flight")

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
        shutil.rmtree(self.directory)


SideBySide.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_side_by_side = SideBySide.TestCase
