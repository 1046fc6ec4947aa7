"""A rollout process: runs the target over its share of the chunks and commits refs to what it captured.

    python -m fsqueue.demo.rollout DIR --index I --start N [--parent PID]

Ids are fixed by the plan and each belongs to one rollout, so a rollout that was killed and started again asks the
ledger which of its ids are committed, and goes on with the others. Features that were stored and not committed are
used. What was committed and not put is put by reconciling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fsqueue.demo.directory import Plan, Sample, samples_of_rollout
from fsqueue.demo.part import Part, taking_part
from fsqueue.errors import StreamStalledError

if TYPE_CHECKING:
    from fsqueue.demo.capture import Capture

_PATIENCE_S = 1.0


class Rollout:
    """One rollout's work.

    Args:
        capture: makes what runs the target; called only where there is something to capture.
    """

    def __init__(self, part: Part, capture: Callable[[], Capture]) -> None:
        self._part = part
        self._make_capture = capture
        self._capture: Capture | None = None

    def run(self, samples: list[Sample]) -> None:
        """Commit every sample that is not committed yet."""
        part = self._part
        part.controller.reconcile_on_restart()
        committed = [sample for sample in samples if part.controller.store.is_committed(sample.sample_id)]
        part.journal.write("found", [sample.sample_id for sample in committed])
        for sample in samples:
            if sample not in committed:
                self._wait_for_room()
                self._produce(sample)

    def _wait_for_room(self) -> None:
        """Wait while too much is pending, for all rollouts together.

        Raises:
            MemberFailedError: a trainer failed or died, so that nobody will make room.
        """
        part, options = self._part, self._part.options
        paused = part.queue.depth() >= options.high_watermark
        if paused:
            part.journal.write("paused")
        while True:
            part.parent.check()
            try:
                # Nothing is put here: the controller does that once the ledger has the sample.
                part.queue.put_when_below(
                    (), high=options.high_watermark, low=options.low_watermark + 1, timeout_s=_PATIENCE_S
                )
                break
            except StreamStalledError:
                continue
        if paused:
            part.journal.write("resumed")

    def _produce(self, sample: Sample) -> None:
        """Features, then the ledger, then the queue; CRASH: a restarted process finds how far it had come."""
        if self._capture is None:
            self._capture = self._make_capture()
        self._part.controller.commit_samples(self._part.name, [self._capture.ref(sample, self._part.name)])
        self._part.journal.write("put", [sample.sample_id])


def _capture_of(part: Part, plan: Plan) -> Capture:
    from fsqueue.demo.capture import Capture

    return Capture(part.demo, plan)


def main() -> None:
    with taking_part("rollout") as part:
        plan = part.parent.wait_for_plan(part.demo)
        Rollout(part, lambda: _capture_of(part, plan)).run(list(samples_of_rollout(part.options, part.index)))
        part.journal.write("finished")


if __name__ == "__main__":
    main()
