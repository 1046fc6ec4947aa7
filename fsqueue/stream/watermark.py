"""Make a producer wait while too much is pending, as long as somebody is there to take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from fsqueue.engine.handle import Handle
from fsqueue.engine.waiting import SHARE, sleep_until
from fsqueue.errors import QueueClosedError, QueueConfigError, StreamEndedError, StreamStalledError
from fsqueue.stream.pacing import longest_pause_s, members_pause_s
from fsqueue.stream.stream import Stream

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.25


class Watermark:
    """Hold one queue object's puts back while pending refs have reached a high watermark.

    Args:
        depth: returns how many refs are pending.
    """

    def __init__(self, handle: Handle, path: str, stream: Stream, depth: Callable[[], int]) -> None:
        self._handle = handle
        self._ops = handle.ops
        self._path = path
        self._stream = stream
        self._depth = depth
        self._refs = 0  # put with a watermark so far, and their features' size
        self._bytes = 0

    def wait(
        self, refs: Iterable[object], high: int, low: int | None, high_bytes: int | None, timeout_s: float | None
    ) -> None:
        """Wait until these refs may be put; `FileSampleRefQueue.put_when_below` says what the arguments mean."""
        low = high // 2 if low is None else low
        self._check(high, low)
        self._stream.watch("consumer")
        self._stream.raise_if_replaced("producer")
        mean_bytes = self._mean_bytes(refs)
        if high_bytes and mean_bytes:
            quantum = self._stream.quantum()
            high = max(quantum.refs if quantum else 1, min(high, int(high_bytes / mean_bytes)))
            low = min(low, max(1, high // 2))
        if self._depth() >= high:
            self._wait_for_room(low, timeout_s)

    def _check(self, high: int, low: int) -> None:
        if not 0 <= low <= high or high < 1:
            raise QueueConfigError(self._path, f"needs watermarks 0 <= low <= high, found low={low}, high={high}")
        quantum = self._stream.quantum()
        if quantum is not None and high < quantum.refs:
            raise QueueConfigError(
                self._path,
                f"has consumers that take {quantum.refs} refs at a time (dp_size {quantum.dp_size} x batch "
                f"{quantum.batch_size} x accumulation {quantum.accumulation_steps}): high={high} would starve them "
                f"for good; use {quantum.refs} or more",
            )

    def _mean_bytes(self, refs: Iterable[object]) -> float:
        """Return the mean estimated_bytes of the refs put so far and these, in bytes; 0.0 where they have none."""
        for ref in refs:
            self._refs += 1
            self._bytes += int(getattr(ref, "estimated_bytes", 0))
        return self._bytes / self._refs if self._refs else 0.0

    def _wait_for_room(self, low: int, timeout_s: float | None) -> None:
        """Wait until fewer than low are pending; on a shared mount by looks that come ever less often."""
        pause_s, started = _FIRST_PAUSE_S, self._ops.monotonic()
        longest_s = longest_pause_s(self._handle, _LONGEST_PAUSE_S)
        looked_at = -inf
        while self._depth() >= max(1, low):
            now = self._ops.monotonic()
            if now - looked_at >= members_pause_s(self._handle, now - started):
                looked_at = now
                self._raise_if_nobody_takes()
            if timeout_s is not None and now - started >= timeout_s:
                raise StreamStalledError(
                    f"queue {self._path}: {self._depth()} refs pending, not below the low watermark {low} for "
                    f"{timeout_s:g} s; {self._stream.describe('consumer')}"
                )
            until = now + pause_s if timeout_s is None else min(now + pause_s, started + timeout_s)
            sleep_until(self._handle, until, lambda: self._handle.closed)
            if self._handle.closed:
                raise QueueClosedError(self._path)
            pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, min(SHARE * (now - started), longest_s)))

    def _raise_if_nobody_takes(self) -> None:
        self._stream.raise_if_replaced("producer")
        self._stream.raise_failures("consumer", found=self._stream.watched())
        if self._stream.some_had_closed("consumer") and self._stream.all_closed("consumer"):
            raise StreamEndedError(f"queue {self._path}: all consumers have left, what is pending will not be taken")
