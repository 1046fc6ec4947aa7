"""Shared by the tests of loaders: a store with samples, and the queues that a trainer may load from."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fsqueue import (
    DataFlowController,
    FileMetadataStore,
    FileSampleRefQueue,
    MemorySampleRefQueue,
    SampleRef,
    TrainerView,
)
from fsqueue.features import FeatureDataLoader, SharedDirFeatureStore
from tests.support import assert_clean
from tests.support.features import publish

PREFETCH = (0, 1, 2)
KINDS = ("file", "memory", "view", "lease")


class Site:
    """A store with samples, a queue that holds their refs, and the queue as a trainer of some kind sees it."""

    def __init__(self, path: Path, kind: str, samples: int) -> None:
        self.path = path / "queue"
        self.store = SharedDirFeatureStore(path / "features")
        self.refs = publish(self.store, samples)
        self._closing = ExitStack()
        self.queue: Any = MemorySampleRefQueue() if kind == "memory" else FileSampleRefQueue(self.path)
        self._closing.enter_context(self.queue)
        self.trainer: Any = self.queue
        if kind == "lease":
            ledger = self._closing.enter_context(FileMetadataStore[SampleRef](path / "ledger"))
            controller: DataFlowController[SampleRef] = DataFlowController(
                "r1", sample_queue=self.queue, metadata_store=ledger
            )
            controller.commit_samples("rollout", self.refs)
            self.trainer = controller.train_lease("trainer")
        else:
            self.queue.put(self.refs)
        if kind == "view":
            assert isinstance(self.queue, FileSampleRefQueue)
            with self.queue.producer("rollout"):
                pass
            self.trainer = self._closing.enter_context(TrainerView(self.queue))

    def loader(self, **options: Any) -> FeatureDataLoader[SampleRef]:
        return FeatureDataLoader(self.store, **({"queue": self.trainer, "batch_size": 4} | options))

    def close(self) -> None:
        self._closing.close()
        if isinstance(self.queue, FileSampleRefQueue):
            assert_clean(self.path)


def all_ids(batches: Any) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch.ids]


def ids_of(refs: list[SampleRef]) -> list[str]:
    return [ref.sample_id for ref in refs]
