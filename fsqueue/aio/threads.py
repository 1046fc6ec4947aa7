"""Make a queue's calls in threads, so that no task waits in the event loop's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from fsqueue.engine.waiting import AnyOf, StopEvent
from fsqueue.errors import QueueClosedError

if TYPE_CHECKING:
    from fsqueue.engine.picking import Partition
    from fsqueue.queue import FileSampleRefQueue

R = TypeVar("R")
T = TypeVar("T")

_WORKING_THREADS = 8


class Threads(Generic[R]):
    """Hold the threads of one queue: some for what waits, others for all else, so that no ack waits for a get.

    Args:
        waiting: how many of the former.
    """

    def __init__(self, queue: FileSampleRefQueue[R], waiting: int) -> None:
        self.queue = queue
        self._waiters = ThreadPoolExecutor(waiting, "fsqueue-get")
        self._workers = ThreadPoolExecutor(_WORKING_THREADS, "fsqueue-call")
        self._gets: dict[_Get[R], Future[list[R]]] = {}
        self._closed = threading.Event()

    async def call(self, work: Callable[[], T]) -> T:
        """Return what work returns; where this task is cancelled meanwhile, the thread completes it first.

        RACE: else a put that is cancelled and made again could come after the ref was trained, and queue it once more.
        """
        work_done = self._submit(self._workers, work)
        told = asyncio.wrap_future(work_done)
        try:
            return await asyncio.shield(told)
        except asyncio.CancelledError:
            if not work_done.cancel():
                while not work_done.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([told])
            raise

    async def wait_for(self, work: Callable[[], T]) -> T:
        """Return what work returns that may wait for long; where this task is cancelled, it goes on."""
        return await asyncio.shield(asyncio.wrap_future(self._submit(self._waiters, work)))

    def _submit(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
        if self._closed.is_set():
            raise QueueClosedError(self.queue.path)
        return threads.submit(work)

    async def get(
        self,
        max_refs: int,
        timeout_s: float | None,
        partition: Partition | None = None,
        stop_event: StopEvent | None = None,
    ) -> list[R]:
        """Lease refs; a get that is cancelled leases nothing."""
        get = _Get(self.queue, stop_event)
        future = self._submit(self._waiters, lambda: get.run(max_refs, timeout_s, partition))
        self._gets[get] = future
        future.add_done_callback(lambda _: self._gets.pop(get, None))
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            refs = get.cancel()
            if refs:
                self.later(lambda: self.queue.release(refs))
            raise

    def later(self, work: Callable[[], object]) -> None:
        """Have a thread do what a cancelled task cannot wait for; after `aclose` leases stay, as after any close."""
        with suppress(RuntimeError):  # its word for a pool that is shut down
            self._workers.submit(work)

    def end_gets(self) -> list[Future[list[R]]]:
        """Take no calls any more, and end all gets; return those that are under way."""
        self._closed.set()
        gets = dict(self._gets)
        for get in gets:
            get.stop.set()
        return list(gets.values())

    def shut_down(self, gets: list[Future[list[R]]]) -> None:
        """Wait for what is under way; what waits at a watermark ends once the queue is closed."""
        wait(gets)
        self._workers.shutdown()

    def shut_down_waiting(self) -> None:
        self._waiters.shutdown()


class _Get(Generic[R]):
    """Make one get in a thread, which a cancelled task can still call off.

    RACE: the get may have returned when it is called off. Under the lock either the thread learns of it, and gives the
    refs back, or the task gets them, to do so.
    """

    def __init__(self, queue: FileSampleRefQueue[R], stop_event: StopEvent | None) -> None:
        self.stop = threading.Event()
        self._stops = AnyOf(self.stop, stop_event)
        self._queue = queue
        self._lock = threading.Lock()
        self._returned: list[R] = []

    def run(self, max_refs: int, timeout_s: float | None, partition: Partition | None) -> list[R]:
        refs = self._queue.get(max_refs, timeout_s, partition=partition, stop_event=self._stops)
        with self._lock:
            if not self.stop.is_set():
                self._returned = refs
                return refs
        self._queue.release(refs)
        return []

    def cancel(self) -> list[R]:
        """Call it off; return what it has leased, where it has returned already."""
        with self._lock:
            self.stop.set()
            return self._returned
