"""Load batches ahead of need: one thread leases refs, others load what they name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

R = TypeVar("R")
B = TypeVar("B")


class Prefetcher(Generic[R, B]):
    """Leases and loads at most `depth` batches before they are asked for, in order, and none after an error.

    Args:
        lease: returns the next batch's refs, [] at the end or once the event is set.
        load: makes a batch of refs.
        discard: takes back a batch that nobody will use: its refs, or what load returned, or what it raised.
    """

    def __init__(
        self,
        lease: Callable[[threading.Event], list[R]],
        load: Callable[[list[R]], B],
        discard: Callable[[list[R] | B | BaseException], None],
        *,
        workers: int,
        depth: int,
    ) -> None:
        self._lease = lease
        self._load = load
        self._discard = discard
        self._stop = threading.Event()
        self._room = threading.Semaphore(depth)
        # Refs and the batch that is being loaded of them; without refs, an error of leasing, which comes last.
        self._coming: SimpleQueue[tuple[list[R], Future[B]] | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, "fsqueue-load")
        self._feeder = threading.Thread(target=self._feed, name="fsqueue-lease", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        try:
            while self._room.acquire() and not self._stop.is_set() and (refs := self._lease(self._stop)):
                self._submit(refs)
        except BaseException as error:
            failed: Future[B] = Future()
            failed.set_exception(error)
            self._coming.put(([], failed))
        finally:
            self._coming.put(None)

    def _submit(self, refs: list[R]) -> None:
        try:
            self._coming.put((refs, self._pool.submit(self._load_or_stop, refs)))
        except BaseException:  # no thread could be started
            self._discard(refs)
            raise

    def _load_or_stop(self, refs: list[R]) -> B:
        try:
            return self._load(refs)
        except BaseException:
            self._stop.set()  # else the refs that were given back would be leased again, for nobody
            raise

    def __iter__(self) -> Iterator[B]:
        while coming := self._coming.get():
            batch = coming[1].result()
            self._room.release()
            yield batch

    def close(self) -> None:
        """Stop leasing, and discard what was loaded and not handed out: all of it, then raise the first error."""
        self._stop.set()
        self._room.release()
        self._feeder.join()
        first: Exception | None = None
        try:
            while not self._coming.empty():
                try:
                    if coming := self._coming.get():
                        self._discard_one(*coming)
                except Exception as error:
                    first = first or error
        finally:
            self._pool.shutdown()
        if first is not None:
            raise first

    def _discard_one(self, refs: list[R], batch: Future[B]) -> None:
        if batch.cancel():
            self._discard(refs)
        else:
            self._discard(batch.exception() or batch.result())
