"""A rollout process: runs the target over its share of the chunks and puts refs to what it captured.

    python -m fsqueue.demo.rollout DIR --index I --start N [--parent PID]

Ids are fixed by the plan and each belongs to one rollout, so a rollout that was killed and started again looks
up which of its ids are in the queue, and goes on with the others. Features that were written but not put are used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from safetensors.torch import load_file

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.demo.directory import (
    DemoDirectory,
    Parent,
    Plan,
    Sample,
    ids_by_state,
    samples_of_rollout,
    worker_arguments,
)
from fsqueue.demo.features import FeatureStore
from fsqueue.demo.journal import Journal
from fsqueue.demo.prepare import CHUNKS
from fsqueue.demo.target import Target

_POLL_S = 0.1


class Backpressure:
    """Holds a rollout back while too much is pending: from the high watermark until the low one is reached."""

    def __init__(self, high: int, low: int, depth: Callable[[], int], changed: Callable[[bool], None]) -> None:
        self._high = high
        self._low = low
        self._depth = depth
        self._changed = changed
        self._paused = False

    def must_wait(self) -> bool:
        depth = self._depth()
        paused = depth > self._low if self._paused else depth >= self._high
        if paused != self._paused:
            self._paused = paused
            self._changed(paused)
        return paused


class Rollout:
    """One rollout's work."""

    def __init__(self, demo: DemoDirectory, plan: Plan, queue: FileSampleRefQueue[SampleRef], journal: Journal) -> None:
        self._plan = plan
        self._queue = queue
        self._journal = journal
        self._store = FeatureStore(demo.features)
        self._chunks = load_file(demo.at("plan", CHUNKS))["training"]
        self._target: Target | None = None
        options = plan.options
        self._backpressure = Backpressure(options.high_watermark, options.low_watermark, queue.depth, self._note_pause)

    def run(self, samples: list[Sample], parent: Parent) -> None:
        """Put every sample that is not in the queue yet."""
        present = set().union(*ids_by_state(self._queue.path).values())
        self._journal.write("found", [s.sample_id for s in samples if s.sample_id in present])
        for sample in samples:
            if sample.sample_id in present:
                continue
            while self._backpressure.must_wait():
                parent.sleep(_POLL_S)
            parent.check()
            self._produce(sample)

    def _produce(self, sample: Sample) -> None:
        """Features first, then the ref; CRASH: features without a ref are found by the restarted process."""
        key = f"chunk-{sample.chunk:05d}.safetensors"
        if self._store.specs(key) is None:
            tokens = self._chunks[sample.chunk]
            self._store.write(key, {"tokens": tokens, "hidden_state": self._load_target().hidden_states(tokens)})
        self._queue.put([self._ref(sample, key)])
        self._journal.write("put", [sample.sample_id])

    def _ref(self, sample: Sample, key: str) -> SampleRef:
        specs = self._store.specs(key) or {}
        return SampleRef(
            sample_id=sample.sample_id,
            run_id=self._queue.run_id or "demo",
            source_task_id=f"chunk-{sample.chunk:05d}",
            feature_store_uri=self._store.uri,
            feature_keys=dict.fromkeys(specs, key),
            feature_specs=specs,
            strategy="eagle",
            target_model_version=self._plan.target_version,
            tokenizer_version=self._plan.target_version,
            num_tokens=self._plan.options.tokens,
            estimated_bytes=self._store.size_bytes(key),
            metadata={"pass": sample.pass_index, "rollout": self._journal.worker},
        )

    def _load_target(self) -> Target:
        if self._target is None:
            self._target = Target(self._plan.target)
        return self._target

    def _note_pause(self, paused: bool) -> None:
        self._journal.write("paused" if paused else "resumed")


def main() -> None:
    arguments = worker_arguments("rollout")
    demo, parent = DemoDirectory(arguments.directory), Parent(arguments.parent)
    plan = parent.wait_for_plan(demo)
    name = f"rollout-{arguments.index}"
    with (
        closing(Journal(demo.log, name, arguments.start)) as journal,
        FileSampleRefQueue(demo.queue, owner=name) as queue,
    ):
        Rollout(demo, plan, queue, journal).run(list(samples_of_rollout(plan.options, arguments.index)), parent)
        journal.write("finished")


if __name__ == "__main__":
    main()
