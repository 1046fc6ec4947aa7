"""A rollout process: runs the target over its share of the chunks and commits refs to what it captured.

    python -m fsqueue.demo.rollout DIR --index I --start N [--parent PID]

Ids are fixed by the plan and each belongs to one rollout, so a rollout that was killed and started again asks the
ledger which of its ids are committed, and goes on with the others. Features that were stored and not committed are
used. What was committed and not put is put by reconciling.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from fsqueue.demo.demo_dir import Plan, Sample, samples_of_rollout
from fsqueue.demo.worker import Worker, taking_part
from fsqueue.errors import StreamStalledError

if TYPE_CHECKING:
    from fsqueue.demo.capture import Capture

_PATIENCE_S = 1.0


class Rollout:
    """Works for one rollout."""

    def __init__(self, worker: Worker, plan: Plan) -> None:
        self._worker = worker
        self._plan = plan

    @cached_property
    def _capture(self) -> Capture:
        from fsqueue.demo.capture import Capture  # torch, and only where there is something to capture

        return Capture(self._worker.demo, self._plan)

    def run(self, samples: list[Sample]) -> None:
        """Commit every sample that is not committed yet."""
        worker = self._worker
        worker.controller.reconcile_on_restart()
        committed = [sample for sample in samples if worker.controller.store.is_committed(sample.sample_id)]
        worker.journal.write("found", [sample.sample_id for sample in committed])
        for sample in samples:
            if sample not in committed:
                self._wait_for_room()
                self._produce(sample)

    def _wait_for_room(self) -> None:
        """Wait while too much is pending, for all rollouts together.

        Raises:
            MemberFailedError: a trainer failed or died, so that nobody will make room.
        """
        worker, options = self._worker, self._worker.options
        paused = worker.queue.depth() >= options.high_watermark
        if paused:
            worker.journal.write("paused")
        high, low, room = options.high_watermark, options.low_watermark + 1, False
        while not room:
            worker.parent.check()
            with suppress(StreamStalledError):
                # Nothing is put here: the controller does that once the ledger has the sample.
                worker.queue.put_when_below((), high=high, low=low, timeout_s=_PATIENCE_S)
                room = True
        if paused:
            worker.journal.write("resumed")

    def _produce(self, sample: Sample) -> None:
        """Fill the store, then the ledger, then the queue; CRASH: a restarted process finds how far it had come."""
        self._worker.controller.commit_samples(self._worker.name, [self._capture.ref(sample, self._worker.name)])
        self._worker.journal.write("put", [sample.sample_id])


def main() -> None:
    with taking_part("rollout") as worker:
        plan = worker.parent.wait_for_plan(worker.demo)
        Rollout(worker, plan).run(list(samples_of_rollout(worker.options, worker.index)))
        worker.journal.write("finished")


if __name__ == "__main__":
    main()
