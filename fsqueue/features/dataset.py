"""`FeatureDataset`: samples of a queue for `torch.utils.data.DataLoader` and its worker processes.

Worker processes end with the epoch, while samples that they loaded wait to be trained and acknowledged; and leases
of a process that is gone are taken back at once. So a worker hands every lease over to the process that iterates,
just before the sample leaves for it. A copy of a dataset has a handle of its own, and leases as that one:

    pending/ -> leased/@worker -> leased/@trainer -> done/
               get              hand over          ack, by the trainer

CRASH: a worker that is killed takes down nothing but what it had not handed over, which comes back at once. What
was handed over and is lost on the way stays leased to the trainer until `give_back`, or until that ends, too.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import Any, Generic, TypeVar

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from fsqueue.errors import QueueConfigError
from fsqueue.features.contract import FeatureStore
from fsqueue.features.materialise import Materialiser, OnError, Transform, UnloadedError
from fsqueue.features.source import QueueSource, Source
from fsqueue.format import names
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import id_of_ref
from fsqueue.stream.pacing import members_pause_s

R = TypeVar("R")

Sample = tuple[str, Any]

_LOOK_S = 0.25


@dataclass(frozen=True)
class _ById:
    """A ref with all that settling needs."""

    sample_id: str


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the world size: of torch.distributed, or else of torchrun's environment."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class FeatureDataset(IterableDataset[Sample], Generic[R]):
    """Yields (sample id, features). The process that iterates acknowledges by id; each worker has its own handle.

    Make it in the process that iterates, under torchrun in each rank, or copy or unpickle it there. All ranks and
    workers may lease from one queue: no two get the same sample, but how many each gets is a matter of speed, so ranks
    that synchronise at every step need `torch.distributed.algorithms.join`, or a `FeatureDataLoader` over a
    `TrainerView` instead.

    Args:
        store: where the features are; has to pickle, as `SharedDirFeatureStore` does.
        queue: a handle of this process. It should keep a heartbeat where the queue's leases time out.
        refs: instead of a queue, a list, which ranks and workers share out.
        partition: (rank, world size) to lease only this rank's samples, such as `rank_and_world()`.
        timeout_s: how long the queue may have nothing before an epoch ends; None: until every producer of its stream
            has closed.
        lease: how many refs a worker leases at a time.
        transform, on_error: as for `FeatureDataLoader`, except that each iteration, and each worker process in it,
            counts a sample's failures anew.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        queue: FileSampleRefQueue[R] | None = None,
        refs: Sequence[R] | None = None,
        partition: tuple[int, int] | None = None,
        timeout_s: float | None = 0.0,
        lease: int = 8,
        transform: Transform[R] | None = None,
        on_error: OnError = "skip",
    ) -> None:
        if (queue is None) == (refs is None) or lease < 1:
            raise ValueError(f"a FeatureDataset takes either queue= or refs=, and lease of 1 or more, found {lease}")
        self._store = store
        self._queue = queue
        self._refs = refs
        self._partition = partition
        self._timeout_s = timeout_s
        self._lease = lease
        self._transform = transform
        self._on_error: OnError = on_error
        self._rank_and_world = rank_and_world()
        self._owner = ""
        self._announce()

    def _announce(self) -> None:
        """Have the workers lease for this process's handle."""
        if self._queue is not None:
            self._queue.handle.presence.announce()
            self._owner = self._queue.owner

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: a process that is being spawned may be a worker, which leases for this one."""
        self._announce()
        return vars(self) | {"_owner": self._owner if get_spawning_popen() is not None else ""}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self._owner:
            self._announce()

    def __iter__(self) -> Iterator[Sample]:
        if self._queue is None:
            return self._of_list()
        if get_worker_info() is not None:
            return self._of_worker(self._queue)
        self._announce()
        return self._of_queue(self._queue)

    def _of_list(self) -> Iterator[Sample]:
        """Go over this rank's and worker's part of the list."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rank, world_size = self._rank_and_world
        source = Source((self._refs or ())[rank * workers + worker :: world_size * workers])
        source.rewind()
        materialiser = Materialiser(self._store, source, self._transform, self._on_error)
        while refs := source.next(self._lease, None):
            yield from ((id_of_ref(ref), sample) for ref, sample in _load(materialiser, refs))

    def _of_worker(self, queue: FileSampleRefQueue[R]) -> Iterator[Sample]:
        parent = multiprocessing.parent_process()
        if parent is None or names.pid_of(self._owner) != parent.pid:
            raise QueueConfigError(
                queue.path, "feeds a FeatureDataset that another process made: make it where it is used"
            )
        with copy.copy(queue) as own:
            yield from self._of_queue(own)

    def _of_queue(self, queue: FileSampleRefQueue[R]) -> Iterator[Sample]:
        source = QueueSource[R](queue, _LOOK_S if self._timeout_s is None else self._timeout_s, self._partition)
        materialiser = Materialiser(self._store, source, self._transform, self._on_error)
        while refs := self._next(source, queue):
            loaded = _load(materialiser, refs)
            try:
                while loaded:
                    ref, sample = loaded.pop(0)
                    if not queue.hand_over([ref], self._owner):
                        yield id_of_ref(ref), sample
            finally:
                source.give_back([ref for ref, _ in loaded])

    def _next(self, source: QueueSource[R], queue: FileSampleRefQueue[R]) -> list[R]:
        """Lease the next refs to load; [] at the end of the epoch."""
        monotonic = queue.handle.ops.monotonic
        began = monotonic()
        refs = source.next(self._lease, None)
        while not refs and self._timeout_s is None:
            source.timeout_s = max(_LOOK_S, members_pause_s(queue.handle, monotonic() - began))
            stream = queue.stream()
            stream.raise_failures("producer")
            closed = stream.all_closed("producer")
            refs = source.next(self._lease, None)
            if closed:
                break
        return refs

    def ack(self, sample_ids: Iterable[str], *, step: int | None = None) -> list[str]:
        """Acknowledge samples, at an optimizer step where given.

        Returns:
            The ids whose lease this process has lost, or never had, normally none; they are left as they are.
        """
        mine, lost = self._mine(sample_ids)
        return lost + self._leasing().ack(mine, step=step)

    def fail(self, sample_ids: Iterable[str], reason: str, retryable: bool) -> list[str]:
        """Fail samples; returns the ids whose lease this process has lost, or never had."""
        mine, lost = self._mine(sample_ids)
        return lost + self._leasing().fail(mine, reason, retryable)

    def give_back(self) -> int:
        """Return to the queue every sample that was not acknowledged, after an epoch that was left early.

        First let go of the DataLoader's iterator, so that its workers end. Returns how many samples there were.
        """
        return self._leasing().release_all()

    def _mine(self, sample_ids: Iterable[str]) -> tuple[list[Any], list[str]]:
        """Tell the samples that this process leases, or that were leased for it, from the ids of the others."""
        refs: list[Any] = [_ById(sample_id) for sample_id in sample_ids]
        lost = self._leasing().adopt(refs)
        return [ref for ref in refs if ref.sample_id not in lost], lost

    def _leasing(self) -> FileSampleRefQueue[R]:
        if self._queue is None:
            raise ValueError("this FeatureDataset goes over a list of refs: there is nothing to acknowledge")
        return self._queue


def _load(materialiser: Materialiser[R], refs: list[R]) -> list[tuple[R, Any]]:
    samples: list[Any] = []
    try:
        return list(zip(materialiser.load(refs, samples.append), samples, strict=True))
    except UnloadedError as unloaded:
        raise materialiser.give_up(unloaded) from None
