"""Use a queue from asyncio: the contract of `FileSampleRefQueue`, with its calls in threads.

    async with AsyncSampleRefQueue(FileSampleRefQueue("/shared/queue")) as queue:
        async for lease in queue.consume(batch=16):
            async with lease as ref:
                await work(ref)

A call that is cancelled before its thread has begun does nothing; one that is under way is completed first, so that
whoever calls again, as after a time-out, meets no call of his own. But a `get` ends soon, and what it has leased goes
back to pending/ without a counted attempt. So nothing is lost, doubled, or left leased to nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from fsqueue.consume import OnError, held_of, log_failure, reason_of, require_on_error, unsettled
from fsqueue.disk.counting import Counts
from fsqueue.engine import arguments
from fsqueue.engine.renewing import Renewer
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import QueueClosedError
from fsqueue.records import Put

if TYPE_CHECKING:
    from fsqueue.engine.claim import Partition
    from fsqueue.queue import FileSampleRefQueue

R = TypeVar("R")
T = TypeVar("T")

_WAITING_THREADS = 64
_WORKING_THREADS = 8
_LOOK_S = 1.0


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
        self._waiters = ThreadPoolExecutor(waiting, "fsqueue-get")
        self._workers = ThreadPoolExecutor(_WORKING_THREADS, "fsqueue-call")
        self._gets: dict[_Get[R], Future[list[R]]] = {}
        self._loops: WeakSet[_Loop[R]] = WeakSet()
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

    def _submit(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
        if self._closed.is_set():
            raise QueueClosedError(self.queue.path)
        return threads.submit(work)

    async def put(self, refs: Iterable[R]) -> Put:
        """Put refs; see `FileSampleRefQueue.put`."""
        batch = list(arguments.batch("put", refs))
        return await self.call(lambda: self.queue.put(batch))

    async def put_when_below(self, refs: Iterable[R], **limits: Any) -> Put:
        """Put refs once there is room; see `FileSampleRefQueue.put_when_below`. Cancelled, it may put them still."""
        batch = list(arguments.batch("put_when_below", refs))
        return await asyncio.shield(
            asyncio.wrap_future(self._submit(self._waiters, lambda: self.queue.put_when_below(batch, **limits)))
        )

    async def get(
        self, max_refs: int, timeout_s: float | None = None, *, partition: Partition | None = None
    ) -> list[R]:
        """Lease refs; see `FileSampleRefQueue.get`. A get that is cancelled leases nothing."""
        get = _Get(self.queue)
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

    async def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Acknowledge refs; see `FileSampleRefQueue.ack`."""
        batch = list(arguments.batch("ack", refs))
        return await self.call(lambda: self.queue.ack(batch, step=step))

    async def fail(self, refs: Iterable[R], reason: str, retryable: bool, *, delay_s: float | None = None) -> list[str]:
        """Fail refs; see `FileSampleRefQueue.fail`."""
        batch = list(arguments.batch("fail", refs))
        return await self.call(lambda: self.queue.fail(batch, reason, retryable, delay_s=delay_s))

    async def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back; see `FileSampleRefQueue.release`."""
        batch = list(arguments.batch("release", refs))
        return await self.call(lambda: self.queue.release(batch))

    async def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout of refs anew; see `FileSampleRefQueue.renew`."""
        batch = list(arguments.batch("renew", refs))
        return await self.call(lambda: self.queue.renew(batch))

    async def depth(self) -> int:
        """Count the pending refs."""
        return await self.call(self.queue.depth)

    async def in_flight(self) -> int:
        """Count the leased refs."""
        return await self.call(self.queue.in_flight)

    async def unsettled(self, sample_ids: Iterable[str]) -> list[str]:
        """Return those of these ids that are pending or leased; see `FileSampleRefQueue.unsettled`."""
        ids = arguments.sample_ids("unsettled", sample_ids)
        return await self.call(lambda: self.queue.unsettled(ids))

    async def counts(self) -> Counts:
        """Count the refs in each state."""
        return await self.call(self.queue.counts)

    async def drained(self) -> bool:
        """Tell whether every producer has closed, nothing is pending and nothing is leased."""
        return await self.call(self.queue.drained)

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
        loop: _Loop[R] = _Loop(self)
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
        since = clock()
        while stop_event is None or not stop_event.is_set():
            left_s = _LOOK_S if idle_s is None else since + idle_s - clock()
            refs = await self.get(size, min(_LOOK_S, max(0.0, left_s)))
            if refs:
                yield refs
                since = clock()
            elif left_s <= 0.0 or await self.drained():
                return

    async def aclose(self) -> None:
        """End all gets, wait for what is under way or was cancelled, and close the queue.

        Leases stay, as there, but for those of loops that nobody has begun to work on.
        """
        self._closed.set()
        for loop in list(self._loops):
            loop.close()
        gets = dict(self._gets)
        for get in gets:
            get.stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self._close, list(gets.values()))

    def _close(self, gets: list[Future[list[R]]]) -> None:
        wait(gets)
        self._workers.shutdown()
        for loop in list(self._loops):
            loop.renewer.stop()
        self.queue.close()  # which ends what waits at a watermark
        self._waiters.shutdown()

    async def __aenter__(self) -> AsyncSampleRefQueue[R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Get(Generic[R]):
    """Make one get in a thread, which a cancelled task can still call off.

    RACE: the get may have returned when it is called off. Under the lock either the thread learns of it, and gives the
    refs back, or the task gets them, to do so.
    """

    def __init__(self, queue: FileSampleRefQueue[R]) -> None:
        self.stop = threading.Event()
        self._queue = queue
        self._lock = threading.Lock()
        self._returned: list[R] = []

    def run(self, max_refs: int, timeout_s: float | None, partition: Partition | None) -> list[R]:
        refs = self._queue.get(max_refs, timeout_s, partition=partition, stop_event=self.stop)
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


class _Loop(Generic[R]):
    """Know what one `consume` leases: what waits, what it has handed out, and what is worked on.

    All calls are made in the event loop's thread.

    Attributes:
        waiting: leased, and not handed out yet.
        renewer: renews all of it.
    """

    def __init__(self, queue: AsyncSampleRefQueue[R]) -> None:
        self._queue = queue
        self._events = asyncio.get_running_loop()
        self.waiting: list[R] = []
        self._unbegun: dict[int, R] = {}
        self._begun: dict[int, R] = {}
        self._ended = self._closed = False
        self.renewer = Renewer(queue.queue, lambda: held_of(queue.queue, self._all()))

    def _all(self) -> list[R]:
        return [*self.waiting, *list(self._unbegun.values()), *list(self._begun.values())]

    def next_lease(self, retryable: bool, on_error: OnError) -> AsyncLease[R]:
        """Hand out a lease on the next of what waits."""
        ref = self.waiting[0]
        lease = AsyncLease(self._queue, self, ref, retryable, on_error)
        self._unbegun[id(ref)] = ref
        del self.waiting[0]
        return lease

    def begin(self, ref: R) -> None:
        """Note that a ref is worked on.

        Raises:
            QueueClosedError: it went back as the queue was closed.
        """
        if self._closed:
            raise QueueClosedError(self._queue.queue.path)
        self._begun[id(ref)] = ref
        self._unbegun.pop(id(ref), None)

    def finish(self, ref: R) -> None:
        """Note that the work on a ref has ended, and it was settled."""
        self._begun.pop(id(ref), None)
        self._tidy()

    def drop_soon(self, ref: R) -> None:
        """Have a ref that nobody can begin to work on any more go back; this may be called by a garbage collection."""
        with suppress(RuntimeError):  # the event loop is closed
            self._events.call_soon_threadsafe(self._drop, ref)

    def _drop(self, ref: R) -> None:
        if self._unbegun.pop(id(ref), None) is not None:
            self._give_back([ref])
            self._tidy()

    def end(self) -> None:
        """Give back what waits; what is handed out is in others' hands, who begin to work on it, or drop it."""
        self._ended = True
        refs, self.waiting = self.waiting, []
        self._give_back(refs)
        self._tidy()

    def close(self) -> None:
        """Give back whatever nobody works on."""
        self._closed = True
        self._give_back(list(self._unbegun.values()))
        self._unbegun.clear()
        self.end()

    def _give_back(self, refs: list[R]) -> None:
        queue = self._queue
        queue.later(lambda: queue.queue.release(held_of(queue.queue, refs)))

    def _tidy(self) -> None:
        if self._ended and not self._unbegun and not self._begun:
            self._queue.later(self.renewer.stop)


class AsyncLease(Generic[R]):
    """Hold one leased ref for the length of an async with block, and settle it as `fsqueue.consume.Lease` does.

    A cancellation gives the ref back without a counted attempt.

    Attributes:
        ref: the ref.
    """

    def __init__(
        self, queue: AsyncSampleRefQueue[R], loop: _Loop[R], ref: R, retryable: bool, on_error: OnError
    ) -> None:
        self.ref = ref
        self._entered = False
        self._queue = queue
        self._loop = loop
        self._retryable = retryable
        self._on_error = on_error

    async def ack(self, *, step: int | None = None) -> bool:
        """Acknowledge the ref now, at an optimizer step where given; return False where its lease was lost."""
        return _kept(await self._queue.ack([self.ref], step=step))

    async def fail(self, reason: str, *, retryable: bool | None = None) -> bool:
        """Fail the ref now; retryable as the loop says unless given. Return False where its lease was lost."""
        again = self._retryable if retryable is None else retryable
        return _kept(await self._queue.fail([self.ref], reason, again))

    async def release(self) -> bool:
        """Give the ref back now, without counting an attempt; return False where its lease was lost."""
        return _kept(await self._queue.release([self.ref]))

    @property
    def settled(self) -> bool:
        """Whether the block has settled the ref itself, in whatever way."""
        return not unsettled(self._queue.queue, [self.ref])

    def __del__(self) -> None:
        if not self._entered:
            self._loop.drop_soon(self.ref)

    async def __aenter__(self) -> R:
        self._loop.begin(self.ref)
        self._entered = True
        return self.ref

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            if not self.settled:
                if error is None or isinstance(error, Exception):
                    _kept(await self._queue.call(lambda: self._settle(error)))
                else:
                    self._queue.later(lambda: self._queue.queue.release([self.ref]))
        finally:
            self._loop.finish(self.ref)
        if isinstance(error, Exception):
            log_failure(self.ref, error)
            return self._on_error == "fail"
        return False

    def _settle(self, error: Exception | None) -> list[str]:
        """Acknowledge or fail the ref, in a thread; where that raises, nobody will try again, and it goes back."""
        queue = self._queue.queue
        try:
            return queue.ack([self.ref]) if error is None else queue.fail([self.ref], reason_of(error), self._retryable)
        except BaseException:
            with suppress(OSError):  # it is a stray then
                queue.release(held_of(queue, [self.ref]))
            raise


def _kept(lost: list[str]) -> bool:
    return not lost
