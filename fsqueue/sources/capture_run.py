"""The rollout side of a run: prompts from a source into a store, a ledger where there is one, and a queue.

    prompts -> source.capture -> store -> ledger -> queue

Each step is done once the one before it is durable, and each is told by the prompt's id. So a run that is killed at any
instant is started again in the same way: what the ledger or the queue knows is left alone, what only the store has is
put, and the rest is captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.features import CorruptFeatureError, SharedDirFeatureStore, StoredFeatures
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import SampleRef
from fsqueue.sources.contract import TOKEN_IDS, Captured, FeatureSource, Prompt
from fsqueue.sources.errors import PromptRefusedError


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        known: prompts whose samples were in the queue or the ledger already.
        found: those whose features were in the store already, and were put.
        captured: those that the source was asked for.
        refused: those that it refused.
        waiting: whether the run waits for room in the queue.
        tokens, stored_bytes: of what was captured.
    """

    known: int = 0
    found: int = 0
    captured: int = 0
    refused: int = 0
    tokens: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    waiting: bool = False

    @property
    def done(self) -> int:
        """Prompts that need nothing more."""
        return self.known + self.found + self.captured + self.refused


@dataclass(frozen=True)
class CaptureReport(Progress):
    """The outcome of a run."""


OnProgress = Callable[[Progress], None]


class CaptureRun:
    """Brings prompts' samples into a queue.

    Args:
        ledger: every sample is committed here before it is put; then the trainers acknowledge through a controller over
            the same ledger.
        run_id: goes into the refs.
        high, low: pending refs at which the source is asked for nothing more, and below which it is again; see
            `FileSampleRefQueue.put_when_below`.
        on_progress: is told whenever something has changed.
        on_refused: is told of a prompt that the source refuses, and the run goes on; without it, it ends.
    """

    def __init__(
        self,
        source: FeatureSource,
        store: SharedDirFeatureStore,
        queue: FileSampleRefQueue[Any],
        *,
        ledger: FileMetadataStore[Any] | None = None,
        run_id: str,
        strategy: str = "eagle3",
        high: int = 1024,
        low: int | None = None,
        ref_type: type[Any] = SampleRef,
        on_progress: OnProgress = lambda progress: None,
        on_refused: Callable[[PromptRefusedError], None] | None = None,
    ) -> None:
        self._source = source
        self._store = store
        self._queue = queue
        self._ref_type = ref_type
        self._fields = {"run_id": run_id, "strategy": strategy}
        self._high, self._low = high, low
        self._on_progress = on_progress
        self._on_refused = on_refused
        self._controller = (
            DataFlowController[Any](run_id, sample_queue=queue, metadata_store=ledger) if ledger is not None else None
        )
        self._started = time.monotonic()
        self.progress = Progress()

    def run(self, prompts: Iterable[Prompt]) -> CaptureReport:
        """Capture what is not there yet; every prompt's sample is in the queue, or was, once this returns.

        The prompts are gone through twice, first for their ids; an iterator is made a list.
        """
        prompts = list(prompts) if isinstance(prompts, Iterator) else prompts
        refused = self._refuse if self._on_refused is not None else None
        captured = self._source.capture(self._wanted(prompts), on_refused=refused)
        with closing(captured):
            for each in captured:
                self._take(each)
        return CaptureReport(**vars(self.progress))

    def _wanted(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        """Yield the prompts to ask the source for, when there is room for them; put those that are stored."""
        known = self._known(prompts)
        for prompt in prompts:
            if prompt.prompt_id in known:
                self._count(known=1)
                continue
            self._wait_for_room()
            if (stored := self._stored(prompt)) is not None:
                version = self._source.weight_version()
                self._put(prompt, stored, self._source.layers, version or "unknown")
                self._count(found=1)
            else:
                yield prompt

    def _known(self, prompts: Iterable[Prompt]) -> Collection[str]:
        if self._controller is None:
            return self._queue.states(prompt.prompt_id for prompt in prompts).keys()
        self._controller.reconcile_on_restart()
        return set(self._controller.store.all_committed_ids())

    def _stored(self, prompt: Prompt) -> StoredFeatures | None:
        """Find what an earlier life of this run stored; not where only a reply could tell which weights gave it."""
        if self._source.weight_version() is None:
            return None
        with suppress(CorruptFeatureError):
            return self._store.find(prompt.prompt_id)
        return None

    def _wait_for_room(self) -> None:
        if self._queue.depth() >= self._high:
            self._count(waiting=True)
        # Nothing is put here: what is put has to be stored, and committed, before.
        self._queue.put_when_below((), high=self._high, low=self._low)
        if self.progress.waiting:
            self._count(waiting=False)

    def _take(self, captured: Captured) -> None:
        stored = captured.store_in(self._store)
        self._put(captured.prompt, stored, captured.layers, captured.weight_version)
        self._count(captured=1, tokens=len(captured.token_ids), stored_bytes=stored.estimated_bytes)

    def _put(self, prompt: Prompt, stored: StoredFeatures, layers: tuple[str, ...], version: str) -> None:
        tokens = stored.feature_specs.get(TOKEN_IDS)
        ref = stored.ref(
            self._ref_type,
            source_task_id=prompt.prompt_id,
            target_model_version=version,
            num_tokens=tokens.shape[0] if tokens is not None else 0,
            metadata={**prompt.metadata, "layers": list(layers)},
            **self._fields,
        )
        if self._controller is not None:
            self._controller.commit_samples(self._queue.owner, [ref])
        else:
            self._queue.put([ref])

    def _refuse(self, error: PromptRefusedError) -> None:
        self._count(refused=1)
        if self._on_refused is not None:
            self._on_refused(error)

    def _count(self, waiting: bool | None = None, **more: int) -> None:
        now = vars(self.progress) | {name: getattr(self.progress, name) + count for name, count in more.items()}
        now["seconds"] = time.monotonic() - self._started
        now["waiting"] = self.progress.waiting if waiting is None else waiting
        self.progress = Progress(**now)
        self._on_progress(self.progress)
