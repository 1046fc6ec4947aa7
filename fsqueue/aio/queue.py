"""Offer `AsyncSampleRefQueue`, the queue as the tasks of one event loop use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from fsqueue.aio.loop import AsyncLease, Loop
from fsqueue.aio.threads import Threads
from fsqueue.consume import OnError, require_on_error
from fsqueue.disk.counting import Counts
from fsqueue.engine import arguments
from fsqueue.engine.waiting import StopEvent, patience_s
from fsqueue.records import Put

if TYPE_CHECKING:
    from fsqueue.engine.pausing import Paused
    from fsqueue.engine.picking import Partition
    from fsqueue.queue import FileSampleRefQueue

R = TypeVar("R")

_WAITING_THREADS = 64


class AsyncSampleRefQueue(Generic[R]):
    """Wrap a queue for one event loop; several tasks may use it at once.

    Args:
        queue: the queue, which this closes with itself.
        waiting: how many gets may wait at the same time, each in a thread; more of them wait for one another. All else
            has threads of its own, so that no acknowledgement waits for a get.
    """

    def __init__(self, queue: FileSampleRefQueue[R], *, waiting: int = _WAITING_THREADS) -> None:
        arguments.with_call("AsyncSampleRefQueue(queue)", "a FileSampleRefQueue", queue, "get", "renew")
        arguments.at_least("AsyncSampleRefQueue(waiting=)", waiting, 1)
        self.queue = queue
        self._threads = Threads(queue, waiting)
        self._loops: WeakSet[Loop[R]] = WeakSet()

    async def put(self, refs: Iterable[R]) -> Put:
        """Put refs; see `FileSampleRefQueue.put`."""
        batch = list(arguments.batch("put", refs))
        return await self._threads.call(lambda: self.queue.put(batch))

    async def put_when_below(self, refs: Iterable[R], **limits: Any) -> Put:
        """Put refs once there is room; see `FileSampleRefQueue.put_when_below`. Cancelled, it may put them still."""
        batch = list(arguments.batch("put_when_below", refs))
        return await self._threads.wait_for(lambda: self.queue.put_when_below(batch, **limits))

    async def get(
        self, max_refs: int, timeout_s: float | None = None, *, partition: Partition | None = None
    ) -> list[R]:
        """Lease refs; see `FileSampleRefQueue.get`. A get that is cancelled leases nothing."""
        return await self._threads.get(max_refs, timeout_s, partition)

    async def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Acknowledge refs; see `FileSampleRefQueue.ack`."""
        batch = list(arguments.batch("ack", refs))
        return await self._threads.call(lambda: self.queue.ack(batch, step=step))

    async def fail(self, refs: Iterable[R], reason: str, retryable: bool, *, delay_s: float | None = None) -> list[str]:
        """Fail refs; see `FileSampleRefQueue.fail`."""
        batch = list(arguments.batch("fail", refs))
        return await self._threads.call(lambda: self.queue.fail(batch, reason, retryable, delay_s=delay_s))

    async def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back; see `FileSampleRefQueue.release`."""
        batch = list(arguments.batch("release", refs))
        return await self._threads.call(lambda: self.queue.release(batch))

    async def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout of refs anew; see `FileSampleRefQueue.renew`."""
        batch = list(arguments.batch("renew", refs))
        return await self._threads.call(lambda: self.queue.renew(batch))

    async def depth(self) -> int:
        """Count the pending refs."""
        return await self._threads.call(self.queue.depth)

    async def in_flight(self) -> int:
        """Count the leased refs."""
        return await self._threads.call(self.queue.in_flight)

    async def unsettled(self, sample_ids: Iterable[str]) -> list[str]:
        """Return those of these ids that are pending or leased; see `FileSampleRefQueue.unsettled`."""
        ids = arguments.sample_ids("unsettled", sample_ids)
        return await self._threads.call(lambda: self.queue.unsettled(ids))

    async def counts(self) -> Counts:
        """Count the refs in each state."""
        return await self._threads.call(self.queue.counts)

    async def drained(self) -> bool:
        """Tell whether every producer has closed, nothing is pending and nothing is leased."""
        return await self._threads.call(self.queue.drained)

    async def pause(self, reason: str | None = None) -> Paused:
        """Let nobody lease refs; see `FileSampleRefQueue.pause`."""
        return await self._threads.call(lambda: self.queue.pause(reason))

    async def resume(self) -> Paused | None:
        """Let the queue go on; see `FileSampleRefQueue.resume`."""
        return await self._threads.call(self.queue.resume)

    async def paused(self) -> Paused | None:
        """Tell whether the queue is paused; see `FileSampleRefQueue.paused`."""
        return await self._threads.call(self.queue.paused)

    async def consume(
        self,
        batch: int = 1,
        *,
        stop_event: StopEvent | None = None,
        idle_s: float | None = None,
        retryable: bool = True,
        on_error: OnError = "fail",
    ) -> AsyncIterator[AsyncLease[R]]:
        """Yield leases, each an asynchronous context manager; see `FileSampleRefQueue.consume`.

        It ends where that one does, but for SIGTERM: have the event loop's own handler set the stop event. A
        cancellation in a block gives its ref back uncounted, and what was not begun. Leases may be handed to tasks of
        their own: each is renewed until its block ends, also after the loop, and goes back where all drop it without.
        """
        arguments.at_least("consume(batch)", batch, 1)
        arguments.patience("consume(idle_s=)", idle_s)
        require_on_error(on_error)
        loop: Loop[R] = Loop(self._threads)
        self._loops.add(loop)
        loop.renewer.start()
        try:
            async with aclosing(self._batches(batch, stop_event, idle_s)) as batches:
                async for loop.waiting[:] in batches:
                    while loop.waiting:
                        if stop_event is not None and stop_event.is_set():
                            return
                        yield loop.next_lease(retryable, on_error)
        finally:
            loop.end()

    async def _batches(
        self, size: int, stop_event: StopEvent | None, idle_s: float | None
    ) -> AsyncGenerator[list[R], None]:
        """Yield batches until there is a reason to end."""
        clock = asyncio.get_running_loop().time
        since, paused = clock(), False
        waits_since = since
        while stop_event is None or not stop_event.is_set():
            look_s = patience_s(self.queue.handle, clock() - waits_since)
            left_s = look_s if idle_s is None or paused else since + idle_s - clock()
            refs = await self._threads.get(size, min(look_s, max(0.0, left_s)), stop_event=stop_event)
            paused = not refs and self.queue.handle.pause.found is not None
            if refs:
                yield refs
                waits_since = clock()
            if refs or paused:
                since = clock()
            elif left_s <= 0.0 or await self.drained():
                return

    async def aclose(self) -> None:
        """End all gets, wait for what is under way or was cancelled, and close the queue.

        Leases stay, as there, but for those of loops that nobody has begun to work on.
        """
        for loop in list(self._loops):
            loop.close()
        await asyncio.get_running_loop().run_in_executor(None, self._close, self._threads.end_gets())

    def _close(self, gets: list[Future[list[R]]]) -> None:
        self._threads.shut_down(gets)
        for loop in list(self._loops):
            loop.renewer.stop()
        self.queue.close()  # which ends what waits at a watermark
        self._threads.shut_down_waiting()

    async def __aenter__(self) -> AsyncSampleRefQueue[R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
