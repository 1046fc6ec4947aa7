"""Loading batches ahead of need: one thread leases refs, others load what they name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

R = TypeVar("R")
B = TypeVar("B")


class _Coming(NamedTuple, Generic[R, B]):
    """A batch that is being loaded; without refs, an error of leasing, which comes last."""

    refs: list[R]
    batch: Future[B]


class Ahead(Generic[R, B]):
    """At most `depth` batches are leased and not yet handed out, in the order of leasing.

    Args:
        lease: the next batch's refs, [] at the end or once the event is set.
        load: makes a batch of refs; settles them itself where it raises.
        discard: takes back a batch's refs when nobody will use it.
    """

    def __init__(
        self,
        lease: Callable[[threading.Event], list[R]],
        load: Callable[[list[R]], B],
        discard: Callable[[list[R], B | None], None],
        *,
        workers: int,
        depth: int,
    ) -> None:
        self._lease = lease
        self._load = load
        self._discard = discard
        self._stop = threading.Event()
        self._room = threading.Semaphore(depth)
        self._coming: SimpleQueue[_Coming[R, B] | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, "fsqueue-load")
        self._feeder = threading.Thread(target=self._feed, name="fsqueue-lease", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        try:
            while self._room.acquire() and not self._stop.is_set() and (refs := self._lease(self._stop)):
                self._coming.put(_Coming(refs, self._pool.submit(self._load, refs)))
        except BaseException as error:
            failed: Future[B] = Future()
            failed.set_exception(error)
            self._coming.put(_Coming([], failed))
        finally:
            self._coming.put(None)

    def __iter__(self) -> Iterator[B]:
        while coming := self._coming.get():
            batch = coming.batch.result()
            self._room.release()
            yield batch

    def close(self) -> None:
        """Stop leasing, and discard what was loaded and not handed out."""
        self._stop.set()
        self._room.release()
        self._feeder.join()
        try:
            while not self._coming.empty():
                coming = self._coming.get()
                if coming is not None:
                    self._discard_one(coming)
        finally:
            self._pool.shutdown()

    def _discard_one(self, coming: _Coming[R, B]) -> None:
        if coming.batch.cancel():
            self._discard(coming.refs, None)
        elif coming.batch.exception() is None:  # where there is one, its refs were settled, with the reason
            self._discard(coming.refs, coming.batch.result())
