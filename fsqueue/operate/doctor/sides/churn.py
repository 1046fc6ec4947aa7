"""Do one side's share of the torture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsqueue.disk import fileops
from fsqueue.operate.doctor.sides.samples import Queue, sample
from fsqueue.records import SampleRef

_GET_WAIT_S = 0.2
_FAIL_EVERY = 7
_RELEASE_EVERY = 11


class Churn:
    """Put, lease, fail, release and acknowledge, and write down when each ref was held, by this host's clock.

    Args:
        stay_s: how long refs are held at least, so that two clocks can tell one hold from the next.

    Attributes:
        found: ids put and acked here, the holds as (id, begin, end), and leases lost to others.
    """

    def __init__(self, queue: Queue, to_put: list[str], batch: int, stay_s: float) -> None:
        self._queue = queue
        self._ops = fileops.current()
        self._to_put = to_put
        self._batch = batch
        self._stay_s = stay_s
        self._seen = 0
        self.found: dict[str, Any] = {"put": [], "acked": [], "held": [], "lost_leases": []}

    def run(self, limit_s: float) -> dict[str, Any]:
        """Go on until nothing is left, or the time is over."""
        deadline = self._ops.monotonic() + limit_s
        while self._ops.monotonic() < deadline:
            ids, self._to_put = self._to_put[: self._batch], self._to_put[self._batch :]
            self._queue.put([sample(sample_id) for sample_id in ids])
            self.found["put"] += ids
            refs = self._queue.get(self._batch, _GET_WAIT_S)
            if not refs and not self._to_put and self._queue.counts()[:2] == (0, 0):
                break
            self._settle(refs)
        return self.found

    def _settle(self, refs: list[SampleRef]) -> None:
        begun = self._ops.monotonic()
        self._ops.sleep(self._stay_s)
        kinds: dict[str, list[SampleRef]] = {"fail": [], "release": [], "ack": []}
        for ref in refs:
            self._seen += 1
            kind = "fail" if not self._seen % _FAIL_EVERY else "release" if not self._seen % _RELEASE_EVERY else "ack"
            kinds[kind].append(ref)
        ended = self._ops.monotonic()
        self.found["held"] += [(ref.sample_id, begun, ended) for ref in refs]
        lost = self._queue.fail(kinds["fail"], "verification", retryable=True)
        lost += self._queue.release(kinds["release"])
        self._acknowledge(kinds["ack"])
        self.found["lost_leases"] += lost

    def _acknowledge(self, refs: Sequence[SampleRef]) -> None:
        lost = self._queue.ack(list(refs))
        self.found["lost_leases"] += lost
        self.found["acked"] += [ref.sample_id for ref in refs if ref.sample_id not in lost]
