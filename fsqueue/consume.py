"""Work through a queue: lease refs, hand them out one by one, and settle each as its work ended.

`FileSampleRefQueue.consume` makes a `WorkLoop`, `FileSampleRefQueue.leased` a batch.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from fsqueue.engine.holding import begin, wait_since
from fsqueue.engine.renewing import LeasingQueue, Renewer
from fsqueue.engine.waiting import StopEvent, patience_s
from fsqueue.errors import InvalidArgumentError
from fsqueue.log import logger
from fsqueue.records import id_of_ref

if TYPE_CHECKING:
    from fsqueue.disk.fileops import FileOps
    from fsqueue.engine.held import Claim

R = TypeVar("R")

OnError = Literal["fail", "raise"]
EndedBy = Literal["stop", "sigterm", "drained", "idle"]

_TRACE_FRAMES = 12


class Workable(LeasingQueue[R], Protocol[R]):
    """List the calls of `FileSampleRefQueue` that working through it makes."""

    ops: FileOps

    def get(self, max_refs: int, timeout_s: float | None = None, *, stop_event: StopEvent | None = None) -> list[R]: ...

    def drained(self) -> bool: ...


class Lease(Generic[R]):
    """Hold one leased ref for the length of a with block, and settle it as the block ends.

    A block that comes to its end acknowledges the ref. One that raises fails it, with the traceback as the reason.
    Where it raises `KeyboardInterrupt`, `SystemExit` or the like, nothing was wrong with the ref: it goes back without
    a counted attempt. What the block has settled itself stays as it is.

    Attributes:
        ref: the ref.
    """

    def __init__(self, loop: WorkLoop[R], ref: R) -> None:
        self.ref = ref
        self.entered = False
        self._loop = loop

    def ack(self, *, step: int | None = None) -> bool:
        """Acknowledge the ref now, at an optimizer step where given; return False where its lease was lost."""
        return self._loop.settle(self.ref, "acked", lambda batch: self._loop.queue.ack(batch, step=step))

    def fail(self, reason: str, *, retryable: bool | None = None) -> bool:
        """Fail the ref now; retryable as the loop says unless given. Return False where its lease was lost."""
        again = self._loop.retryable if retryable is None else retryable
        return self._loop.settle(self.ref, "failed", lambda batch: self._loop.queue.fail(batch, reason, again))

    def release(self) -> bool:
        """Give the ref back now, without counting an attempt; return False where its lease was lost."""
        return self._loop.settle(self.ref, "released", self._loop.queue.release)

    @property
    def settled(self) -> bool:
        """Whether the block has settled the ref itself, in whatever way."""
        return not unsettled(self._loop.queue, [self.ref])

    def __enter__(self) -> R:
        self.entered = True
        return self.ref

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not self.settled:
            if error is None:
                self.ack()
            elif isinstance(error, Exception):
                self.fail(reason_of(error))
            else:
                self.release()
        return isinstance(error, Exception) and self._loop.goes_on(self.ref, error)


class WorkLoop(Generic[R]):
    """Iterate over leases, until something ends the loop; see `FileSampleRefQueue.consume`.

    Attributes:
        acked, failed, released: how many refs ended in which way. What was given back unbegun is among the released.
        lost: the ids of those whose lease was lost meanwhile; somebody else has them. Where that was known in time,
            they were not handed out.
        ended_by: "stop", "sigterm", "drained" or "idle", once one of these has ended the loop.
    """

    def __init__(
        self,
        queue: Workable[R],
        batch: int,
        stop: StopEvent | None,
        idle_s: float | None,
        retryable: bool,
        on_error: OnError,
    ) -> None:
        require_on_error(on_error)
        self.acked = self.failed = self.released = 0
        self.lost: list[str] = []
        self.ended_by: EndedBy | None = None
        self.queue = queue
        self.retryable = retryable
        self._batch = batch
        self._stop = stop
        self._idle_s = idle_s
        self._on_error = on_error
        self._refs: list[R] = []
        self._terminated = False

    def is_set(self) -> bool:
        """Tell whether the loop was told to end: it is the stop event of its own gets."""
        return self._terminated or (self._stop is not None and self._stop.is_set())

    def _terminate(self) -> None:
        self._terminated = True  # a plain value: a second signal may come while an event's lock is held

    def __iter__(self) -> Iterator[Lease[R]]:
        renewer = Renewer(self.queue, lambda: held_of(self.queue, self._refs))
        try:
            with _heeding_sigterm(self._terminate):
                try:
                    renewer.start()
                    while self._fetch():
                        yield from self._hand_out()
                finally:
                    renewer.stop()
                    self._give_back()
        except BaseException:
            _abandon(self.queue, self._refs)
            raise

    def _hand_out(self) -> Iterator[Lease[R]]:
        waiting = deque(self.queue.handle.held.claim_on(ref) for ref in self._refs)
        for ref in list(self._refs):
            if self.is_set():
                return
            self._go_on(waiting)
            if self._has_lost(ref):
                continue
            lease = Lease(self, ref)
            yield lease
            if not lease.entered and not lease.settled:
                advice = ": write `for lease in queue.consume(): with lease as ref:`"
                raise InvalidArgumentError("consume()", "a with block for each lease", lease, advice)
        self._refs.clear()

    def _go_on(self, waiting: deque[Claim | None]) -> None:
        """Let the time to hold the next ref begin, and anew that of those behind it: the work has come this far."""
        now, claim = self.queue.ops.monotonic(), waiting.popleft()
        wait_since(filter(None, waiting), now)
        begin([claim] if claim is not None else [], now)

    def _has_lost(self, ref: R) -> bool:
        """Tell whether a ref's lease is known to be lost before its work began: somebody else has it by now."""
        claim = self.queue.handle.held.claim_on(ref)
        if claim is None or claim.state != "lost":
            return False
        self.lost.append(id_of_ref(ref))
        warn_of_lost(self.lost[-1:])
        return True

    def _fetch(self) -> bool:
        """Lease a batch into `_refs`, where an exception between two lines finds it; False where the loop ends."""
        ops, began, paused = self.queue.ops, self.queue.ops.monotonic(), False
        waits_since = began
        while True:
            if self.is_set():
                self.ended_by = "sigterm" if self._terminated else "stop"
                return False
            if self._refs:
                return True
            look_s = patience_s(self.queue.handle, ops.monotonic() - waits_since)
            left_s = look_s if self._idle_s is None or paused else began + self._idle_s - ops.monotonic()
            self._refs += self.queue.get(self._batch, min(look_s, max(0.0, left_s)), stop_event=self)
            if self._refs or self.is_set():
                continue
            if paused := self.queue.handle.pause.found is not None:
                began = ops.monotonic()
                continue
            if left_s <= 0.0 or self.queue.drained():
                self.ended_by = "idle" if left_s <= 0.0 else "drained"
                return False

    def settle(self, ref: R, how: str, settle: Callable[[list[R]], list[str]]) -> bool:
        """Settle a ref and count how; return False where its lease was lost."""
        lost = settle([ref])
        if lost:
            self.lost += lost
        else:
            setattr(self, how, getattr(self, how) + 1)
        return not lost

    def goes_on(self, ref: R, error: Exception) -> bool:
        """Log that a ref's work has failed; return whether the loop takes the next one."""
        log_failure(ref, error)
        return self._on_error == "fail"

    def _give_back(self) -> None:
        """Release what was not begun."""
        rest = held_of(self.queue, self._refs)
        if rest:
            lost = self.queue.release(rest)
            self.lost += lost
            self.released += len(rest) - len(lost)
        self._refs.clear()


@contextmanager
def leased(queue: Workable[R], lease: Callable[[], list[R]]) -> Iterator[list[R]]:
    """Settle a batch as its block ends; see `FileSampleRefQueue.leased`.

    Args:
        lease: returns the batch, of refs that queue has just leased.
    """
    refs: list[R] = []
    renewer = Renewer(queue, lambda: held_of(queue, refs))
    try:
        try:
            refs += lease()
            renewer.start()
            yield refs
        except Exception as error:
            renewer.stop()
            queue.fail(unsettled(queue, refs), reason_of(error), True)
            raise
        except BaseException:
            renewer.stop()
            queue.release(unsettled(queue, refs))
            raise
        renewer.stop()
        queue.ack(unsettled(queue, refs))
    except BaseException:
        renewer.stop()
        _abandon(queue, refs)
        raise


def unsettled(queue: Workable[R], refs: Iterable[R]) -> list[R]:
    """Return those of these refs whose lease was not settled, by whatever call; it may be lost."""
    return [
        ref for ref in refs if (claim := queue.handle.held.claim_on(ref)) is None or claim.state in ("held", "lost")
    ]


def held_of(queue: Workable[R], refs: Iterable[R]) -> list[R]:
    """Return those of these refs that are leased still, as far as the handle knows."""
    return [
        ref for ref in list(refs) if (claim := queue.handle.held.claim_on(ref)) is not None and claim.state == "held"
    ]


def _abandon(queue: Workable[R], refs: Iterable[R]) -> None:
    """Let what is still leased go back with the handle's next call: settling it was cut short."""
    queue.handle.strays.add(claim for claim in queue.handle.held.claims_on(refs) if claim.state == "held")


def require_on_error(on_error: Any) -> None:
    """Refuse what says nothing of how a loop takes exceptions of the work."""
    if on_error not in ("fail", "raise"):
        raise InvalidArgumentError("consume(on_error=)", "'fail' or 'raise'", on_error)


def reason_of(error: Exception) -> str:
    """Return an exception as a reason for `fail`: what it says in the first line, below it the frames it came from."""
    said = traceback.format_exception_only(error)[-1].strip()
    return said + "\n" + "".join(traceback.format_tb(error.__traceback__, limit=-_TRACE_FRAMES)).rstrip()


def log_failure(ref: object, error: Exception) -> None:
    logger(__name__).warning("work on %s failed", id_of_ref(ref), exc_info=error)


def warn_of_lost(lost: list[str]) -> None:
    if lost:
        logger(__name__).warning(
            "lost the leases of %s while the work went on: others may have done it too", ", ".join(lost)
        )


@contextmanager
def _heeding_sigterm(tell: Callable[[], None]) -> Iterator[None]:
    """Call tell on SIGTERM, and then the handler that was there before; a process that ignores it goes on doing so.

    Outside the main thread, which handles signals, nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return

    def heed(number: int, frame: FrameType | None) -> None:
        tell()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, heed)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is heed:
            signal.signal(signal.SIGTERM, before)
