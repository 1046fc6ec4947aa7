"""Load batches ahead of need: one thread leases refs, others load what they name, within a number of bytes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from fsqueue.errors import OtherProcessError

R = TypeVar("R")
B = TypeVar("B")


class Budget:
    """Bytes that may be taken at a time.

    Whoever wants more than all of it, or does not know how much, waits until nothing is taken, and has it alone.

    Args:
        most: None: any number.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken = 0
        self._ended = False
        self._changed = threading.Condition()

    def take(self, count: int | None) -> int:
        """Wait until so many bytes may be taken, or the budget has ended; returns what to give back."""
        most = self._most
        if most is None:
            return 0
        wanted = most if count is None else min(count, most)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._taken + wanted <= most)
            self._taken += wanted
        return wanted

    def give_back(self, count: int) -> None:
        with self._changed:
            self._taken -= count
            self._changed.notify()

    def end(self) -> None:
        """Let whoever waits go on."""
        with self._changed:
            self._ended = True
            self._changed.notify()


@dataclass(frozen=True)
class _Coming(Generic[R, B]):
    """A batch that is being loaded of refs; without refs, an error of leasing, which comes last.

    Attributes:
        taken: bytes of the budget that it has until it is handed out.
    """

    refs: list[R]
    taken: int
    batch: Future[B]


class Prefetcher(Generic[R, B]):
    """Leases and loads at most `depth` batches before they are asked for, in order, and none after an error.

    Args:
        lease: returns the next batch's refs, [] at the end or once the event is set.
        load: makes a batch of refs.
        discard: takes back a batch that nobody will use: its refs, or what load returned, or what it raised.
        size: returns how many bytes a batch of these refs will have; None: not known.
        most_bytes: what batches that are being loaded, or were loaded and not asked for, may have together; a larger
            one is loaded while there is no other. None: any number.
    """

    def __init__(
        self,
        lease: Callable[[threading.Event], list[R]],
        load: Callable[[list[R]], B],
        discard: Callable[[list[R] | B | BaseException], None],
        size: Callable[[list[R]], int | None],
        *,
        workers: int,
        depth: int,
        most_bytes: int | None,
    ) -> None:
        self._lease = lease
        self._load = load
        self._discard = discard
        self._size = size
        self._stop = threading.Event()
        self._room = threading.Semaphore(depth)
        self._budget = Budget(most_bytes)
        self._coming: SimpleQueue[_Coming[R, B] | None] = SimpleQueue()
        self._left: deque[_Coming[R, B]] = deque()  # what is not handed out, whatever interrupts that
        self._pool = ThreadPoolExecutor(workers, "fsqueue-load")
        self._pid = os.getpid()
        self._feeder = threading.Thread(target=self._feed, name="fsqueue-lease", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        try:
            while self._room.acquire() and not self._stop.is_set() and (refs := self._lease(self._stop)):
                self._submit(refs)
        except BaseException as error:
            failed: Future[B] = Future()
            failed.set_exception(error)
            self._announce(_Coming([], 0, failed))
        finally:
            self._coming.put(None)

    def _submit(self, refs: list[R]) -> None:
        try:
            taken = self._budget.take(self._size(refs))
            if not self._stop.is_set():
                self._announce(_Coming(refs, taken, self._pool.submit(self._load_or_stop, refs)))
                return
        except BaseException:  # no thread could be started
            self._discard(refs)
            raise
        self._discard(refs)

    def _announce(self, coming: _Coming[R, B]) -> None:
        self._left.append(coming)
        self._coming.put(coming)

    def _load_or_stop(self, refs: list[R]) -> B:
        try:
            return self._load(refs)
        except BaseException:
            self._stop.set()  # else the refs that were given back would be leased again, for nobody
            raise

    def __iter__(self) -> Iterator[B]:
        while (coming := self._next()) is not None:
            yield self._batch_of(coming)

    def _next(self) -> _Coming[R, B] | None:
        if os.getpid() != self._pid:
            raise OtherProcessError("a loader's iteration with prefetch", self._pid)  # it would wait for no thread
        return self._coming.get()

    def _batch_of(self, coming: _Coming[R, B]) -> B:
        try:
            batch = coming.batch.result()
        except BaseException as error:
            if coming.batch.done() and coming.batch.exception() is error:  # else Ctrl-C
                self._left.popleft()
            raise
        self._budget.give_back(coming.taken)
        self._room.release()
        self._left.popleft()
        return batch

    def close(self) -> None:
        """Stop leasing, and discard what was loaded and not handed out: all of it, then raise the first error."""
        if os.getpid() != self._pid:
            return  # a fork has none of these threads, and no right to what they lease
        self._stop.set()
        self._budget.end()
        self._room.release()
        self._feeder.join()
        first: Exception | None = None
        try:
            while self._left:
                try:
                    self._discard_one(self._left.popleft())
                except Exception as error:
                    first = first or error
        finally:
            self._pool.shutdown()
        if first is not None:
            raise first

    def _discard_one(self, coming: _Coming[R, B]) -> None:
        if coming.batch.cancel():
            self._discard(coming.refs)
        else:
            self._discard(coming.batch.exception() or coming.batch.result())
