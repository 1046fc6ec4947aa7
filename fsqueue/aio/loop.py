"""Know what a loop in asyncio leases, and settle each ref as its block ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from fsqueue.aio.threads import Threads
from fsqueue.consume import OnError, held_of, log_failure, reason_of, unsettled
from fsqueue.engine.renewing import Renewer
from fsqueue.errors import QueueClosedError

R = TypeVar("R")


class Loop(Generic[R]):
    """Know what one `consume` leases: what waits, what it has handed out, and what is worked on.

    All calls are made in the event loop's thread.

    Attributes:
        waiting: leased, and not handed out yet.
        renewer: renews all of it.
    """

    def __init__(self, threads: Threads[R]) -> None:
        self._threads = threads
        self._events = asyncio.get_running_loop()
        self.waiting: list[R] = []
        self._unbegun: dict[int, R] = {}
        self._begun: dict[int, R] = {}
        self._ended = self._closed = False
        self.renewer = Renewer(threads.queue, lambda: held_of(threads.queue, self._all()))

    def _all(self) -> list[R]:
        return [*self.waiting, *list(self._unbegun.values()), *list(self._begun.values())]

    def next_lease(self, retryable: bool, on_error: OnError) -> AsyncLease[R]:
        """Hand out a lease on the next of what waits."""
        ref = self.waiting[0]
        lease = AsyncLease(self._threads, self, ref, retryable, on_error)
        self._unbegun[id(ref)] = ref
        del self.waiting[0]
        return lease

    def begin(self, ref: R) -> None:
        """Note that a ref is worked on.

        Raises:
            QueueClosedError: it went back as the queue was closed.
        """
        if self._closed:
            raise QueueClosedError(self._threads.queue.path)
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
        queue = self._threads.queue
        self._threads.later(lambda: queue.release(held_of(queue, refs)))

    def _tidy(self) -> None:
        if self._ended and not self._unbegun and not self._begun:
            self._threads.later(self.renewer.stop)


class AsyncLease(Generic[R]):
    """Hold one leased ref for the length of an async with block, and settle it as `fsqueue.consume.Lease` does.

    A cancellation gives the ref back without a counted attempt.

    Attributes:
        ref: the ref.
    """

    def __init__(self, threads: Threads[R], loop: Loop[R], ref: R, retryable: bool, on_error: OnError) -> None:
        self.ref = ref
        self._entered = False
        self._threads = threads
        self._queue = threads.queue
        self._loop = loop
        self._retryable = retryable
        self._on_error = on_error

    async def ack(self, *, step: int | None = None) -> bool:
        """Acknowledge the ref now, at an optimizer step where given; return False where its lease was lost."""
        return not await self._threads.call(lambda: self._queue.ack([self.ref], step=step))

    async def fail(self, reason: str, *, retryable: bool | None = None) -> bool:
        """Fail the ref now; retryable as the loop says unless given. Return False where its lease was lost."""
        again = self._retryable if retryable is None else retryable
        return not await self._threads.call(lambda: self._queue.fail([self.ref], reason, again))

    async def release(self) -> bool:
        """Give the ref back now, without counting an attempt; return False where its lease was lost."""
        return not await self._threads.call(lambda: self._queue.release([self.ref]))

    @property
    def settled(self) -> bool:
        """Whether the block has settled the ref itself, in whatever way."""
        return not unsettled(self._queue, [self.ref])

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
                    await self._threads.call(lambda: self._settle(error))
                else:
                    self._threads.later(lambda: self._queue.release([self.ref]))
        finally:
            self._loop.finish(self.ref)
        if isinstance(error, Exception):
            log_failure(self.ref, error)
            return self._on_error == "fail"
        return False

    def _settle(self, error: Exception | None) -> list[str]:
        """Acknowledge or fail the ref, in a thread; where that raises, nobody will try again, and it goes back."""
        queue = self._queue
        try:
            return queue.ack([self.ref]) if error is None else queue.fail([self.ref], reason_of(error), self._retryable)
        except BaseException:
            with suppress(OSError):  # it is a stray then
                queue.release(held_of(queue, [self.ref]))
            raise
