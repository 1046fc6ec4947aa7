"""`FeatureDataLoader`: batches of features for a training loop, from a queue or from a list of refs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from fsqueue.engine.waiting import StopEvent
from fsqueue.features.contract import FeatureStore
from fsqueue.features.gathering import Collate, Gathering, InOneCall
from fsqueue.features.loader_options import check_counts, check_rest, check_source
from fsqueue.features.materialise import Materialiser, Transform, UnloadedError
from fsqueue.features.prefetch import Prefetcher
from fsqueue.features.sizes import bytes_of
from fsqueue.features.source import QueueSource, Source
from fsqueue.records import id_of_ref

if TYPE_CHECKING:
    import torch

    from fsqueue.features.placement import Placement

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


class _Made(Generic[R]):
    """A batch on its way to the trainer, if there is one: once it is taken, nothing here keeps its tensors alive."""

    def __init__(self, batch: Batch[R] | None) -> None:
        self.batch = batch

    def take(self) -> Batch[R]:
        assert self.batch is not None
        batch, self.batch = self.batch, None
        return batch


class FeatureDataLoader(Generic[R]):
    """Leases refs, loads their features, and acknowledges them.

    An iteration ends when the queue has nothing to give, at the end of a `TrainerView`'s stream, or of the list.
    What cannot be loaded is failed with its reason: for good, unless the features are missing or the filesystem has
    an error. Those are failed as retryable a sample's first two times in this loader object, over all its iterations,
    and for good the third. A batch that lost samples so is shorter; one that lost all is left out. An error that is no
    sample's, since descriptors, memory, the disk or a device are used up, ends the iteration whatever on_error says: it
    is raised, and what is leased is released without counting an attempt, where the queue can do that.

    It has threads, and no processes: it is nothing for `torch.utils.data.DataLoader`, whose workers a
    `FeatureDataset` feeds. After a fork, an iteration is its parent's alone: a child that goes on with one that loads
    ahead has an OtherProcessError.

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
        prefetch_bytes: what the batches that are being loaded, or wait to be asked for, may have together, as their
            refs tell before anything is read. A larger batch is loaded while there is no other. What the trainer has
            in hand does not count, nor do samples that a thread has read and not yet copied into its batch: 16 MiB and
            one sample a thread, or with a collate of one's own a batch. None: only ahead limits it.
        device: where the tensors go, as torch names it ("cuda", "cuda:1", "cpu"); "cuda" is the device that is current
            where the loop runs. The copy to a CUDA device runs beside the trainer's kernels, and is done when the
            batch comes; the batch is for the stream that is current where the loop runs. None: they stay on the host.
        pin_memory: put them into page-locked memory: for a copy to a device, which that makes quicker, or to stay
            there. None: for a CUDA device.
        transform: ``transform(ref, features)`` makes a sample of what the store holds.
        collate: ``collate(samples)`` makes a batch; `stack` unless given, which neither pads nor cuts. Of what it
            makes, tensors are placed that it returns alone or in dicts, lists and tuples.
        ack: "auto" acknowledges a batch when the next one is asked for, and at the end; "deferred" leaves that to
            `ack` and `ack_ids`.
        on_error: "skip" goes on after a sample that cannot be loaded, "raise" gives back the rest of its batch and
            raises its error.

    Raises:
        InvalidArgumentError: an argument is of a kind that cannot be meant, or names a device that is not there.
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
        prefetch_bytes: int | None = None,
        device: str | torch.device | None = None,
        pin_memory: bool | None = None,
        transform: Transform[R] | None = None,
        collate: Collate | None = None,
        ack: Literal["auto", "deferred"] = "auto",
        on_error: Literal["skip", "raise"] = "skip",
    ) -> None:
        check_source(store, queue, refs, partition, timeout_s)
        check_counts({"batch_size": batch_size, "prefetch": prefetch, "ahead": ahead, "prefetch_bytes": prefetch_bytes})
        check_rest(drop_last, pin_memory, transform, collate, {"ack": ack, "on_error": on_error})
        self._source = Source(refs) if refs is not None else QueueSource[R](queue, timeout_s, partition)
        self._materialiser = Materialiser(store, self._source, transform, on_error)
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._prefetch = prefetch
        self._depth = ahead or 2 * prefetch
        self._prefetch_bytes = prefetch_bytes
        self._placement = _placement(device, pin_memory)
        pinned = self._placement is not None and self._placement.pin_memory
        self._gathering = _gathering(collate, pinned, prefetch > 0)
        self._auto = ack == "auto"
        self._out: dict[str, R] = {}
        self._iteration: Callable[[], Generator[Batch[R], None, None] | None] = lambda: None

    def __iter__(self) -> Iterator[Batch[R]]:
        """Begin an iteration; one that goes on ends first, and gives back what it loaded ahead."""
        self.close()
        self._source.rewind()
        if self._placement is not None:
            self._placement.prepare()
        iteration = self._iterate()
        self._iteration = weakref.ref(iteration)
        return iteration

    def _iterate(self) -> Generator[Batch[R], None, None]:
        """Yield the batches.

        CRASH, or the loop is left by `break`: the last batch was not acknowledged, and comes again.
        """
        try:
            with closing(self._ahead() if self._prefetch else self._one_by_one()) as batches:
                for made in batches:
                    if made.batch is not None:
                        self._hand_out(made.batch)
                        yield made.take()
                        if self._auto:
                            self.ack()
        except UnloadedError as unloaded:  # only now that nothing more is leased, or it would be, for nobody
            raise self._materialiser.give_up(unloaded) from None
        finally:
            if self._auto and self._out:
                # Forgotten first: where this fails, the next iteration must not acknowledge what nobody trained.
                left, self._out = self._out, {}
                self._source.give_back(list(left.values()))

    def _hand_out(self, batch: Batch[R]) -> None:
        self._out.update(zip(batch.ids, batch.refs, strict=True))
        if self._placement is not None:
            self._placement.hand_over(batch.features)

    def _one_by_one(self) -> Generator[_Made[R], None, None]:
        while refs := self._lease(None):
            yield self._load(refs)

    def _ahead(self) -> Generator[_Made[R], None, None]:
        def discard(what: list[R] | _Made[R] | BaseException) -> None:
            if isinstance(what, UnloadedError):
                self._materialiser.give_up(what)
            elif isinstance(what, list):
                self._source.give_back(what)
            elif isinstance(what, _Made) and what.batch is not None:
                self._source.give_back(what.batch.refs)

        ahead = Prefetcher(
            self._lease,
            self._load,
            discard,
            _bytes_of_batch,
            workers=self._prefetch,
            depth=self._depth,
            most_bytes=self._prefetch_bytes,
        )
        with closing(ahead):
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

    def _load(self, refs: list[R]) -> _Made[R]:
        """Make a batch of those refs whose features can be had."""
        gathering = self._gathering(len(refs))
        kept = self._materialiser.load(refs, gathering.add)
        try:
            return _Made(Batch(kept, self._placed(gathering)) if kept else None)
        except Exception as error:
            raise self._materialiser.unloaded(error, None, kept) from error
        except BaseException:  # Ctrl-C, where no thread loads ahead
            self._source.give_back(kept)
            raise

    def _placed(self, gathering: Gathering) -> Any:
        return gathering.batch() if self._placement is None else self._placement.place(gathering.batch())

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


def _bytes_of_batch(refs: list[Any]) -> int | None:
    """Return the bytes of a batch; None where one of its refs does not tell."""
    sizes = [bytes_of(ref) for ref in refs]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _placement(device: Any, pin_memory: bool | None) -> Placement | None:
    if device is None and not pin_memory:
        return None
    from fsqueue.features.placement import Placement  # here, so that a loader without either needs no torch

    return Placement(device, pin_memory)


def _gathering(collate: Collate | None, pin_memory: bool, ahead: bool) -> Callable[[int], Gathering]:
    if collate is not None:
        return lambda count: InOneCall(collate)
    from fsqueue.features.buffers import Buffers  # here, so that a loader with a collate of its own needs no torch
    from fsqueue.features.collate import Stack, stack

    if not ahead and not pin_memory:
        return lambda count: InOneCall(stack)
    buffers = Buffers()
    return lambda count: Stack(count, pin_memory, buffers)
