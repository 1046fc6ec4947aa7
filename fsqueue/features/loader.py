"""`FeatureDataLoader`: batches of features for a training loop, from a queue or from a list of refs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from fsqueue.engine import arguments
from fsqueue.engine.waiting import StopEvent
from fsqueue.features.contract import FeatureStore
from fsqueue.features.materialise import Materialiser, Transform, UnloadedError
from fsqueue.features.prefetch import Prefetcher
from fsqueue.features.source import QueueSource, Source
from fsqueue.records import id_of_ref

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Batch(Generic[R]):
    """A batch of a loader's.

    Attributes:
        refs: of the samples in it, in order.
        features: what collate made of them; by default feature name to tensor, samples along the first dimension.
    """

    refs: list[R]
    features: Any

    @property
    def ids(self) -> list[str]:
        return [id_of_ref(ref) for ref in self.refs]


class FeatureDataLoader(Generic[R]):
    """Leases refs, loads their features, and acknowledges them.

    An iteration ends when the queue has nothing to give, at the end of a `TrainerView`'s stream, or of the list.
    What cannot be loaded is failed with its reason: for good, unless the features are missing or the filesystem has
    an error. Those are failed as retryable a sample's first two times in this loader object, over all its iterations,
    and for good the third. A batch that lost samples so is shorter; one that lost all is left out. An error that is no
    sample's, since descriptors, memory or the disk are used up, ends the iteration whatever on_error says: it is
    raised, and what is leased is released without counting an attempt, where the queue can do that.

    Args:
        store: where the features are.
        queue: anything with get, ack and fail: a queue, a `TrainerView`, a controller's `TrainLease`.
        refs: instead of a queue, a list (or an iterable, for one iteration).
        batch_size: refs in a batch.
        partition: (rank, world size), passed on to the queue's get; a `TrainerView` has its own.
        timeout_s: how long a queue may have nothing before the iteration ends; None: not at all, with prefetch 0.1 s.
        drop_last: a batch for which there are not enough refs is given back as failed (retryable), and ends the
            iteration.
        prefetch: threads that load ahead; 0 loads when a batch is asked for.
        ahead: batches that are leased ahead of need with prefetch; two a thread unless given.
        transform: ``transform(ref, features)`` makes a sample of what the store holds.
        collate: ``collate(samples)`` makes a batch; `stack` unless given, which neither pads nor cuts.
        ack: "auto" acknowledges a batch when the next one is asked for, and at the end; "deferred" leaves that to
            `ack` and `ack_ids`.
        on_error: "skip" goes on after a sample that cannot be loaded, "raise" gives back the rest of its batch and
            raises its error.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        queue: Any = None,
        refs: Iterable[R] | None = None,
        batch_size: int,
        partition: tuple[int, int] | None = None,
        timeout_s: float | None = None,
        drop_last: bool = False,
        prefetch: int = 0,
        ahead: int | None = None,
        transform: Transform[R] | None = None,
        collate: Callable[[Sequence[Any]], Any] | None = None,
        ack: Literal["auto", "deferred"] = "auto",
        on_error: Literal["skip", "raise"] = "skip",
    ) -> None:
        if (queue is None) == (refs is None):
            raise ValueError("a FeatureDataLoader takes either queue= or refs=")
        if queue is not None:
            arguments.with_call("FeatureDataLoader(queue=)", "a queue, with get() and ack()", queue, "get", "ack")
        for name, count in (("batch_size", batch_size), ("prefetch", prefetch), ("ahead", ahead)):
            if count is not None or name != "ahead":
                arguments.integer(f"FeatureDataLoader({name}=)", count)
        if batch_size < 1 or prefetch < 0 or (ahead is not None and ahead < 1):
            raise ValueError(f"needs batch_size and ahead of 1 or more, found {batch_size} and {ahead}")
        if ack not in ("auto", "deferred") or on_error not in ("skip", "raise"):
            raise ValueError(f"needs ack 'auto' or 'deferred', on_error 'skip' or 'raise', found {ack!r}, {on_error!r}")
        self._source = Source(refs) if refs is not None else QueueSource[R](queue, timeout_s, partition)
        self._materialiser = Materialiser(store, self._source, transform, on_error)
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._prefetch = prefetch
        self._depth = ahead or 2 * prefetch
        self._collate = collate or _stack
        self._auto = ack == "auto"
        self._out: dict[str, R] = {}
        self._iteration: Callable[[], Generator[Batch[R], None, None] | None] = lambda: None

    def __iter__(self) -> Iterator[Batch[R]]:
        """Begin an iteration; one that goes on ends first, and gives back what it loaded ahead."""
        self.close()
        self._source.rewind()
        iteration = self._iterate()
        self._iteration = weakref.ref(iteration)
        return iteration

    def _iterate(self) -> Generator[Batch[R], None, None]:
        """Yield the batches.

        CRASH, or the loop is left by `break`: the last batch was not acknowledged, and comes again.
        """
        try:
            with closing(self._ahead() if self._prefetch else self._one_by_one()) as batches:
                for batch in batches:
                    if batch is not None:
                        self._out.update(zip(batch.ids, batch.refs, strict=True))
                        yield batch
                        if self._auto:
                            self.ack()
        except UnloadedError as unloaded:  # only now that nothing more is leased, or it would be, for nobody
            raise self._materialiser.give_up(unloaded) from None
        finally:
            if self._auto and self._out:
                # Forgotten first: where this fails, the next iteration must not acknowledge what nobody trained.
                left, self._out = self._out, {}
                self._source.give_back(list(left.values()))

    def _one_by_one(self) -> Generator[Batch[R] | None, None, None]:
        while refs := self._lease(None):
            yield self._load(refs)

    def _ahead(self) -> Generator[Batch[R] | None, None, None]:
        def discard(what: list[R] | Batch[R] | BaseException | None) -> None:
            if isinstance(what, UnloadedError):
                self._materialiser.give_up(what)
            elif isinstance(what, (Batch, list)):
                self._source.give_back(what.refs if isinstance(what, Batch) else what)

        with closing(Prefetcher(self._lease, self._load, discard, workers=self._prefetch, depth=self._depth)) as ahead:
            yield from ahead

    @property
    def failed(self) -> dict[str, str]:
        """The reason for which each sample was failed, by id."""
        return self._materialiser.failed

    def _lease(self, stop: StopEvent | None) -> list[R]:
        refs = self._source.next(self._batch_size, stop)
        if self._drop_last and 0 < len(refs) < self._batch_size:
            self._reject(refs)
            return []
        return refs

    def _reject(self, refs: list[R]) -> None:
        """Fail a last batch, or give it back where that cannot be done: nobody else will."""
        try:
            self._source.fail(refs, f"a last batch of {len(refs)} instead of {self._batch_size} refs", True)
        except BaseException:
            self._source.give_back(refs)
            raise

    def _load(self, refs: list[R]) -> Batch[R] | None:
        """Make a batch of those refs whose features can be had; None where there are none."""
        loaded = self._materialiser.load(refs)
        if not loaded:
            return None
        kept = [ref for ref, _ in loaded]
        try:
            return Batch(kept, self._collate([sample for _, sample in loaded]))
        except Exception as error:
            raise self._materialiser.unloaded(error, None, kept) from error

    def ack(self, *, step: int | None = None) -> list[str]:
        """Acknowledge every batch handed out so far, at an optimizer step where given; returns the ids lost."""
        return self.ack_ids(list(self._out), step=step)

    def ack_ids(self, sample_ids: Iterable[str], *, step: int | None = None) -> list[str]:
        """Acknowledge samples handed out, by id; others are ignored. Returns the ids whose lease was lost.

        As with `ack` and `fail_ids`, a call that raised has settled nothing for this loader: repeat it.
        """
        return self._settle(sample_ids, lambda refs: self._source.ack(refs, step))

    def fail_ids(self, sample_ids: Iterable[str], reason: str, retryable: bool) -> None:
        """Fail samples handed out, by id; others are ignored."""
        self._settle(sample_ids, lambda refs: self._source.fail(refs, reason, retryable))

    def _settle(self, sample_ids: Iterable[str], settle: Callable[[list[R]], T]) -> T:
        out = {sample_id: self._out[sample_id] for sample_id in sample_ids if sample_id in self._out}
        result = settle(list(out.values()))
        for sample_id in out:
            self._out.pop(sample_id, None)
        return result

    def close(self) -> None:
        """End the iteration, and give back what was loaded ahead: as retryable failures to a queue whose
        `loader_close_retryable` is true, otherwise without counting an attempt, where the queue can release.

        With deferred acks, batches handed out stay leased: they can still be acknowledged.
        """
        iteration = self._iteration()
        if iteration is not None:
            iteration.close()

    def __enter__(self) -> FeatureDataLoader[R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _stack(samples: Sequence[Any]) -> Any:
    from fsqueue.features.collate import stack  # here, so that a loader with a collate of its own needs no torch

    return stack(samples)
