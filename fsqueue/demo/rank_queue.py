"""The queue as a rank's loader sees it: leases through the controller, and no sample that it has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from fsqueue.demo.worker import Worker
from fsqueue.records import SampleRef

_WAIT_S = 0.2
_FILL_S = 3.0
_PAUSE_S = 0.05
_LOOK_S = 1.0


class RankQueue:
    """Has what a `FeatureDataLoader` needs of a queue: get, ack, fail and release.

    Args:
        trained: tells if a sample is in the training state already; such a one is acknowledged and not handed out.
            It comes again where its trainer was killed between a step and the acknowledgement.
        step: the training state's step.
    """

    def __init__(self, worker: Worker, trained: Callable[[str], bool], step: Callable[[], int]) -> None:
        self._worker = worker
        self._lease = worker.controller.train_lease(worker.name)
        self._trained = trained
        self._step = step
        self._looked_at = time.monotonic()

    def get(self, max_refs: int, timeout_s: float | None = None) -> list[SampleRef]:
        """Lease a full batch, or what there is once no more may come soon; none where nothing came for some seconds.

        Raises:
            MemberFailedError: a rollout, or another trainer, failed or died.
        """
        refs: list[SampleRef] = []
        deadline = time.monotonic() + _FILL_S
        while len(refs) < max_refs:
            found = self._some(max_refs - len(refs))
            refs += found
            self._look_around()
            if not found and (time.monotonic() > deadline or self._nothing_to_come()):
                break
            if not found:
                time.sleep(_PAUSE_S)  # a partitioned get does not wait while other ranks' refs are pending
        return refs

    def _some(self, wanted: int) -> list[SampleRef]:
        """Lease refs of this rank's partition, or else any: nobody waits for a rank that was killed."""
        partition = (self._worker.index, self._worker.options.trainers)
        leased = self._lease.get(wanted, _WAIT_S, partition=partition) or self._lease.get(wanted)
        if leased:
            self._worker.journal.write("delivered", [ref.sample_id for ref in leased])
        if again := [ref for ref in leased if self._trained(ref.sample_id)]:
            self.ack(again)
        return [ref for ref in leased if ref not in again]

    def _look_around(self) -> None:
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            self._worker.parent.check()
            stream = self._worker.queue.stream()
            stream.raise_failures("producer")
            stream.raise_failures("consumer")

    def _nothing_to_come(self) -> bool:
        return self._worker.queue.depth() == 0 and self._worker.queue.stream().all_closed("producer")

    def ended(self) -> bool:
        """Tell if nothing will ever be delivered again, to any rank."""
        return self._worker.queue.drained()

    def ack(self, refs: Iterable[SampleRef], *, step: int | None = None) -> list[str]:
        """Acknowledge refs at the training state's step."""
        ids, step = [ref.sample_id for ref in refs], self._step() if step is None else step
        lost = self._lease.ack_ids(ids, global_step=step)
        self._worker.journal.write("acked", [i for i in ids if i not in lost], step=step)
        if lost:
            self._worker.journal.write("lease_lost", lost, step=step)
        return lost

    def fail(self, refs: Iterable[SampleRef], reason: str, retryable: bool) -> None:
        refs = list(refs)
        self._lease.fail(refs, reason, retryable)
        self._worker.journal.write("failed", [ref.sample_id for ref in refs], note=reason)

    def release(self, refs: Iterable[SampleRef]) -> Any:
        return self._lease.release(refs)
