"""What a queue object offers around the stream of refs: membership, watermarks, the end, rewinding and packing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from fsqueue.disk.fileops import explained
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import LEDGER
from fsqueue.errors import QueueConfigError, StreamEndedError, StreamStalledError

if TYPE_CHECKING:
    from fsqueue.engine.packing.pack import Packed
    from fsqueue.stream.members import Membership, Role
    from fsqueue.stream.stream import Stream

R = TypeVar("R")

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.25


class Streaming(Generic[R]):
    """The stream's side of `FileSampleRefQueue`."""

    path: str

    @abstractmethod
    def _current_handle(self) -> Handle: ...

    @abstractmethod
    def put(self, refs: Iterable[R], *, partition_key: str | None = None) -> None: ...

    @abstractmethod
    def depth(self) -> int: ...

    def stream(self) -> Stream:
        """The stream's members and its end, as this handle sees them."""
        from fsqueue.stream.stream import Stream  # imported where it is needed, as below: few processes need all of it

        with explained("opening the stream of", self.path):
            return Stream.of(self._current_handle())

    def producer(self, name: str, *, expected: int = 0) -> Membership:
        """Register a producer: a context manager that closes its end, or marks it failed with the exception.

        Args:
            name: a restarted producer takes the place of its dead namesake.
            expected: how many producers the stream has in all; it does not end before that many have joined.

        Raises:
            QueueConfigError: a producer of this name is alive.
        """
        return self._join("producer", name, expected)

    def consumer(self, name: str, *, expected: int = 0) -> Membership:
        """Register a consumer, as `producer` does; when all have left, producers at a watermark stop."""
        return self._join("consumer", name, expected)

    def _join(self, role: Role, name: str, expected: int) -> Membership:
        with explained(f"joining as {role}", self.path):
            return self.stream().join(role, name, expected)

    def drained(self) -> bool:
        """Whether every producer has closed, nothing is pending and nothing is leased."""
        with explained("looking at the stream of", self.path):
            return self.stream().drained()

    def publish_quantum(self, *, dp_size: int, batch_size: int, accumulation_steps: int = 1) -> None:
        """Say how many refs the consumers take at a time; a high watermark below it is refused from then on."""
        from fsqueue.stream.stream import Quantum

        with explained("publishing the quantum of", self.path):
            self.stream().publish_quantum(Quantum(dp_size, batch_size, accumulation_steps))

    def put_when_below(
        self,
        refs: Iterable[R],
        *,
        high: int,
        low: int | None = None,
        high_bytes: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Put refs; where pending refs have reached the high watermark, wait first until they are below the low one.

        Every producer sees the same directory, so the watermarks hold for all of them together, give or take what
        several put at the same moment. That a consumer has failed is noticed by the next call, below the watermark as
        well; that one was killed, a heartbeat (5 s) after it counts as dead (30 s).

        Args:
            high: pending refs at which producers pause.
            low: pending refs below which they resume; half of high unless given.
            high_bytes: pause also while the pending refs' features come to more; reckoned as the number pending
                times the mean estimated_bytes of the refs that this handle put. Never fewer than the published
                quantum, which the consumers could not go on without.
            timeout_s: how long to wait at most; None: for as long as the consumers live.

        Raises:
            QueueConfigError: high is below the published quantum, or low is above high.
            MemberFailedError: a consumer failed or died; nothing was put.
            StreamEndedError: all consumers have left, with the watermark reached; nothing was put.
            StreamStalledError: no room was made for timeout_s seconds; nothing was put.
        """
        batch = list(refs)
        low = high // 2 if low is None else low
        with explained("putting refs into", self.path):
            self._check_watermarks(high, low)
            self.stream().watch("consumer")
            mean_bytes = self._note_bytes(batch)
            self._wait_for_room(high, low, (high_bytes / mean_bytes) if high_bytes and mean_bytes else None, timeout_s)
        self.put(batch)

    def _check_watermarks(self, high: int, low: int) -> None:
        if not 0 <= low <= high or high < 1:
            raise QueueConfigError(self.path, f"needs watermarks 0 <= low <= high, found low={low}, high={high}")
        quantum = self.stream().quantum()
        if quantum is not None and high < quantum.refs:
            raise QueueConfigError(
                self.path,
                f"has consumers that take {quantum.refs} refs at a time (dp_size {quantum.dp_size} x batch "
                f"{quantum.batch_size} x accumulation {quantum.accumulation_steps}): high={high} would starve them "
                f"for good; use {quantum.refs} or more",
            )

    def _note_bytes(self, refs: list[R]) -> float:
        """The mean estimated_bytes of the refs put so far and these, in bytes; 0.0 where they have none."""
        noted = self._current_handle().put_bytes
        noted.count += len(refs)
        noted.total += sum(int(getattr(ref, "estimated_bytes", 0)) for ref in refs)
        return noted.total / noted.count if noted.count else 0.0

    def _wait_for_room(self, high: int, low: int, high_by_bytes: float | None, timeout_s: float | None) -> None:
        handle, stream = self._current_handle(), self.stream()
        if high_by_bytes is not None:
            quantum = stream.quantum()
            high = max(quantum.refs if quantum else 1, min(high, int(high_by_bytes)))
            low = min(low, max(1, high // 2))
        if self.depth() < high:
            return
        pause_s, started = _FIRST_PAUSE_S, handle.ops.monotonic()
        while self.depth() >= max(1, low):
            stream.raise_failures("consumer")
            if stream.all_closed("consumer"):
                raise StreamEndedError(f"queue {self.path}: all consumers have left, what is pending will not be taken")
            if timeout_s is not None and handle.ops.monotonic() - started >= timeout_s:
                raise StreamStalledError(
                    f"queue {self.path}: {self.depth()} refs pending, not below the low watermark {low} for "
                    f"{timeout_s:g} s; {stream.describe('consumer')}"
                )
            handle.ops.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def rewind(self, *, after_step: int, force: bool = False) -> list[str]:
        """Put back into pending/ every ref acked after an optimizer step, to resume from that step's checkpoint.

        Attempts are not counted. Calling it again changes nothing; killed half way, it is completed by calling it
        again. Refs that were acked without a step stay where they are.

        Returns:
            The ids put back, in the order of their steps; for one too long to be a file's name, its name's stem.

        Raises:
            LeasesHeldError: another owner holds leases and force is not set.
            QueueConfigError: a controller has acknowledged refs through a ledger, which has to go back first.
        """
        handle = self._current_handle()
        if not isinstance(after_step, int) or after_step < 0:
            raise QueueConfigError(self.path, f"needs as after_step an integer of 0 or more, found {after_step!r}")
        with explained("rewinding", self.path):
            if handle.ops.exists(handle.layout.root.fd, LEDGER):
                raise QueueConfigError(
                    self.path,
                    "has a ledger, which would take this back: use the controller's rewind, or `fsqueue rewind`",
                )
            from fsqueue.engine.rewind import rewind

            return rewind(handle, after_step, force)

    def pack(self, *, older_than_s: float) -> Packed:
        """Move done files whose last stamp is older into segments of up to 10,000 refs, which take one inode each.

        What is packed is done all the same: it counts, and rewinding brings it back. Never runs by itself.

        Raises:
            QueueIOError: the filesystem refused; all refs are still done, and packing again completes it.
        """
        from fsqueue.engine.packing.pack import pack

        with explained("packing", self.path):
            return pack(self._current_handle(), older_than_s)
