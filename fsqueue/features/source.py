"""A loader's refs: taken from a list or from a queue of whatever kind, and settled there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from fsqueue.engine.handle import Handle
from fsqueue.engine.waiting import SHARE, StopEvent, sleep_until
from fsqueue.stream.pacing import longest_pause_s

R = TypeVar("R")

_SILENCE_S = 0.1
_POLL_S = 0.05
_PAUSE_S = 0.002


class Source(Generic[R]):
    """A list of refs that nobody leases: settling them means nothing."""

    def __init__(self, refs: Iterable[R] = ()) -> None:
        self._refs = refs
        self._rest: Iterator[R] = iter(())

    def rewind(self) -> None:
        """Begin a new iteration."""
        self._rest = iter(self._refs)

    def next(self, count: int, stop: StopEvent | None) -> list[R]:
        """Return up to count refs; [] at the end, or once stop is set."""
        return list(islice(self._rest, count))

    def ack(self, refs: list[R], step: int | None) -> list[str]:
        """Acknowledge refs; returns the ids whose lease was lost."""
        return []

    def fail(self, refs: list[R], reason: str, retryable: bool) -> None:
        """Fail refs for a reason."""

    def give_back(self, refs: list[R]) -> None:
        """Return refs that nothing was wrong with."""

    def spare(self) -> None:
        """For the rest of the iteration, count no attempt for what is given back, where the queue can do that."""


class QueueSource(Source[R]):
    """Refs of anything with get, ack and fail: a queue, a `TrainerView`, a controller's `TrainLease`.

    Args:
        timeout_s: how long a get may find nothing before that is the end; None: 0.0 where the loader waits for it,
            0.1 where it is asked ahead of need. A queue with `get_interruptible` knows its end by itself.

    Attributes:
        timeout_s: as given; it may be changed from one call to the next.
    """

    def __init__(self, queue: Any, timeout_s: float | None, partition: tuple[int, int] | None) -> None:
        super().__init__()
        self.timeout_s = timeout_s
        self._queue = queue
        self._handle: Handle | None = getattr(queue, "handle", None)
        self._monotonic = time.monotonic if self._handle is None else self._handle.ops.monotonic
        self._partition = {} if partition is None else {"partition": partition}
        self._spared = False

    def rewind(self) -> None:
        self._spared = False

    def spare(self) -> None:
        self._spared = True

    def next(self, count: int, stop: StopEvent | None) -> list[R]:
        interruptible = getattr(self._queue, "get_interruptible", None)
        if stop is not None and interruptible is not None:
            return list(interruptible(count, stop_event=stop))
        patience_s = self.timeout_s if self.timeout_s is not None else _SILENCE_S * (stop is not None)
        began = self._monotonic()
        while True:
            waited_s = self._monotonic() - began
            left_s = max(0.0, patience_s - waited_s)
            refs = self._get(count, left_s, stop)
            if refs or not left_s or (stop is not None and stop.is_set()):
                return refs
            self._pause(waited_s, left_s, stop)

    def _get(self, count: int, left_s: float, stop: StopEvent | None) -> list[R]:
        """Lease refs; a queue in a directory waits at its own pace, and hears the stop."""
        if self._handle is not None:
            return list(self._queue.get(count, timeout_s=left_s, stop_event=stop, **self._partition))
        return list(self._queue.get(count, timeout_s=min(left_s, _POLL_S), **self._partition))

    def _pause(self, waited_s: float, left_s: float, stop: StopEvent | None) -> None:
        """Pause before the next get, since a partitioned one does not wait while others' refs are pending."""
        if self._handle is None:
            time.sleep(_PAUSE_S)
            return
        pause_s = min(max(_PAUSE_S, SHARE * waited_s), longest_pause_s(self._handle, _POLL_S), left_s)
        sleep_until(self._handle, self._monotonic() + pause_s, lambda: stop is not None and stop.is_set())

    def ack(self, refs: list[R], step: int | None) -> list[str]:
        return list(self._queue.ack(refs, **({} if step is None else {"step": step})) or ())

    def fail(self, refs: list[R], reason: str, retryable: bool) -> None:
        self._queue.fail(refs, reason, retryable=retryable)

    def give_back(self, refs: list[R]) -> None:
        """Release refs; fail them as retryable where the queue asks for that, unless spared, or cannot release."""
        charged = getattr(self._queue, "loader_close_retryable", False) and not self._spared
        release = None if charged else getattr(self._queue, "release", None)
        if release is None:
            self.fail(refs, "the loader was closed before they were used", retryable=True)
        else:
            release(refs)
