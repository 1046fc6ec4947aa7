"""Work through a queue: lease refs, hand them out one by one, and settle each as its work ended.

`FileSampleRefQueue.consume` makes a `WorkLoop`, `FileSampleRefQueue.leased` a batch.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from fsqueue.engine.renewing import Renewer
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import InvalidArgumentError
from fsqueue.format import names
from fsqueue.records import id_of_ref

if TYPE_CHECKING:
    import logging

    from fsqueue.disk.fileops import FileOps
    from fsqueue.engine.handle import Handle
    from fsqueue.engine.held import Claim

R = TypeVar("R")

OnError = Literal["fail", "raise"]
EndedBy = Literal["stop", "sigterm", "drained", "idle"]

_LOOK_S = 1.0
_TRACE_FRAMES = 12


class Workable(Protocol[R]):
    """List the calls of `FileSampleRefQueue` that working through it makes."""

    ops: FileOps
    lease_timeout_s: float | None

    @property
    def handle(self) -> Handle: ...

    def get(self, max_refs: int, timeout_s: float | None = None, *, stop_event: StopEvent | None = None) -> list[R]: ...

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]: ...

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]: ...

    def release(self, refs: Iterable[R]) -> list[str]: ...

    def renew(self, refs: Iterable[R]) -> list[str]: ...

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
        self._loop = loop
        self._entered = False

    def ack(self, *, step: int | None = None) -> bool:
        """Acknowledge the ref now, at an optimizer step where given; return False where its lease was lost."""
        return self._loop._settle(self.ref, "acked", lambda batch: self._loop._queue.ack(batch, step=step))

    def fail(self, reason: str, *, retryable: bool | None = None) -> bool:
        """Fail the ref now; retryable as the loop says unless given. Return False where its lease was lost."""
        again = self._loop._retryable if retryable is None else retryable
        return self._loop._settle(self.ref, "failed", lambda batch: self._loop._queue.fail(batch, reason, again))

    def release(self) -> bool:
        """Give the ref back now, without counting an attempt; return False where its lease was lost."""
        return self._loop._settle(self.ref, "released", self._loop._queue.release)

    @property
    def settled(self) -> bool:
        return all(ref is not self.ref for ref in self._loop._held)

    def __enter__(self) -> R:
        self._entered = True
        return self.ref

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.settled:
            return isinstance(error, Exception) and self._loop._goes_on(self.ref, error)
        if error is None:
            self.ack()
        elif isinstance(error, Exception):
            self.fail(reason_of(error))
            return self._loop._goes_on(self.ref, error)
        else:
            self.release()
        return False


class WorkLoop(Generic[R]):
    """Iterate over leases, until something ends the loop; see `FileSampleRefQueue.consume`.

    Attributes:
        acked, failed, released: how many refs ended in which way. What was given back unbegun is among the released.
        lost: the ids of those whose lease was lost meanwhile; somebody else has them.
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
        if on_error not in ("fail", "raise"):
            raise InvalidArgumentError("consume(on_error=)", "'fail' or 'raise'", on_error)
        self.acked = self.failed = self.released = 0
        self.lost: list[str] = []
        self.ended_by: EndedBy | None = None
        self._queue = queue
        self._batch = batch
        self._stop = stop
        self._idle_s = idle_s
        self._retryable = retryable
        self._on_error = on_error
        self._held: list[R] = []
        self._terminated = False

    def is_set(self) -> bool:
        """Tell whether the loop was told to end: it is the stop event of its own gets."""
        return self._terminated or (self._stop is not None and self._stop.is_set())

    def _terminate(self) -> None:
        self._terminated = True  # a plain value: a second signal may come while an event's lock is held

    def __iter__(self) -> Iterator[Lease[R]]:
        renewer = Renewer(self._queue, lambda: list(self._held))
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
            _abandon(self._queue, self._held)
            raise

    def _hand_out(self) -> Iterator[Lease[R]]:
        for ref in list(self._held):
            if self.is_set():
                return
            lease = Lease(self, ref)
            yield lease
            if not lease._entered and not lease.settled:
                advice = ": write `for lease in queue.consume(): with lease as ref:`"
                raise InvalidArgumentError("consume()", "a with block for each lease", lease, advice)

    def _fetch(self) -> bool:
        """Lease a batch into `_held`, where an exception between two lines finds it; False where the loop ends."""
        ops, began = self._queue.ops, self._queue.ops.monotonic()
        while True:
            if self.is_set():
                self.ended_by = "sigterm" if self._terminated else "stop"
                return False
            if self._held:
                return True
            left_s = _LOOK_S if self._idle_s is None else began + self._idle_s - ops.monotonic()
            self._held += self._queue.get(self._batch, min(_LOOK_S, max(0.0, left_s)), stop_event=self)
            if self._held or self.is_set():
                continue
            if left_s <= 0.0 or self._queue.drained():
                self.ended_by = "idle" if left_s <= 0.0 else "drained"
                return False

    def _settle(self, ref: R, how: str, settle: Callable[[list[R]], list[str]]) -> bool:
        lost = settle([ref])
        self._drop(ref)
        if lost:
            self.lost += lost
            _warn_of_lost(lost)
        else:
            setattr(self, how, getattr(self, how) + 1)
        return not lost

    def _drop(self, ref: R) -> None:
        self._held[:] = [held for held in self._held if held is not ref]

    def _goes_on(self, ref: R, error: Exception) -> bool:
        """Log that a ref's work has failed; return whether the loop takes the next one."""
        _log().warning("work on %s failed", id_of_ref(ref), exc_info=error)
        return self._on_error == "fail"

    def _give_back(self) -> None:
        """Release what was not begun."""
        if self._held:
            lost = self._queue.release(self._held)
            self.lost += lost
            self.released += len(self._held) - len(lost)
            self._held.clear()


@contextmanager
def leased(queue: Workable[R], lease: Callable[[], list[R]]) -> Iterator[list[R]]:
    """Settle a batch as its block ends; see `FileSampleRefQueue.leased`.

    Args:
        lease: returns the batch, of refs that queue has just leased.
    """
    refs: list[R] = []

    def unsettled() -> list[R]:
        claims = ((ref, _claim_of(queue.handle, ref)) for ref in refs)
        return [ref for ref, claim in claims if claim is None or claim.state in ("held", "lost")]

    renewer = Renewer(queue, unsettled)
    try:
        try:
            refs += lease()
            renewer.start()
            yield refs
            renewer.stop()
            _warn_of_lost(queue.ack(unsettled()))
        except Exception as error:
            renewer.stop()
            _warn_of_lost(queue.fail(unsettled(), reason_of(error), True))
            raise
        except BaseException:
            renewer.stop()
            queue.release(unsettled())
            raise
    except BaseException:
        _abandon(queue, refs)
        raise


def _abandon(queue: Workable[R], refs: list[R]) -> None:
    """Let what is still leased go back with the handle's next call: settling it was cut short."""
    claims = (_claim_of(queue.handle, ref) for ref in refs)
    queue.handle.strays.add(claim for claim in claims if claim is not None and claim.state == "held")


def _claim_of(handle: Handle, ref: Any) -> Claim | None:
    """Return this handle's claim on a ref, held or not."""
    return handle.held.find(names.stem_of(id_of_ref(ref)), ref)


def reason_of(error: Exception) -> str:
    """Return an exception as a reason for `fail`: what it says in the first line, below it the frames it came from."""
    said = traceback.format_exception_only(error)[-1].strip()
    return said + "\n" + "".join(traceback.format_tb(error.__traceback__, limit=-_TRACE_FRAMES)).rstrip()


def _warn_of_lost(lost: list[str]) -> None:
    if lost:
        _log().warning("lost the leases of %s while the work went on: others may have done it too", ", ".join(lost))


def _log() -> logging.Logger:
    """Return this module's logger; few processes have anything to log, and importing it takes a while."""
    import logging

    return logging.getLogger(__name__)


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
