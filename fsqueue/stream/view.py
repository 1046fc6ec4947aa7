"""Give a training loop exactly n refs at a time, or the end of a drained stream."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from fsqueue.engine import arguments
from fsqueue.engine.engine import reaching
from fsqueue.engine.handle import Handle
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import OtherProcessError, QueueClosedError, StreamStalledError
from fsqueue.records import id_of_ref
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.membership import Membership, OnSigterm
from fsqueue.stream.stream import Stream

R = TypeVar("R")

_FIRST_PAUSE_S = 0.005
_SLOWING = 1.25
_LONGEST_PAUSE_S = 0.5
_MEMBERS_S = 1.0
_RENEWER_S = 1.0


class LeasingQueue(Protocol[R]):
    """List the calls of `FileSampleRefQueue` that a view makes."""

    path: str

    @property
    def lease_timeout_s(self) -> float | None: ...

    @property
    def handle(self) -> Handle: ...

    def stream(self) -> Stream: ...

    def get(
        self, max_refs: int, timeout_s: float | None = None, *, partition: tuple[int, int] | None = None
    ) -> list[R]: ...

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]: ...

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]: ...

    def release(self, refs: Iterable[R]) -> list[str]: ...

    def renew(self, refs: Iterable[R]) -> list[str]: ...


class PartialWindowWarning(UserWarning):
    """Warn that refs of a last, incomplete global window were given back to pending/."""


class TrainerView(Generic[R]):
    """View a queue as one data-parallel rank.

    `get` returns exactly the refs asked for, or none once the stream has ended. All ranks get the same number of
    batches. The last refs, too few for a batch each, go back to pending/ from all ranks, with a
    `PartialWindowWarning`, and the stream ends there. Where the queue object keeps no heartbeat, a thread renews the
    refs that are out. The view is a consumer of the stream from its making to its close, in the process that made it:
    after a fork, the child's use of it is an `OtherProcessError`, and its close leaves all to the parent.

    Args:
        queue: the queue.
        partition: (rank, world size); None for a single rank. A rank takes refs of its own partition first, and
            others where none of its own is pending. For ids are never spread quite evenly: ranks that take equal
            numbers would leave ever more of some partition behind, up to the producers' watermark, where all wait
            for each other.
        batch: refs in a batch, for all ranks alike.
        session: names the group of all ranks, such as a launcher's run id. Ranks that are started again, as many of
            them or another number, take the places of those before them, once these are gone.
        idle_timeout_s: how long to wait for a ref before `StreamStalledError` says who was last seen when.
        required, attempt, on_sigterm: as for `FileSampleRefQueue.consumer`.
    """

    loader_close_retryable = True

    def __init__(
        self,
        queue: LeasingQueue[R],
        *,
        partition: tuple[int, int] | None = None,
        batch: int = 1,
        session: str = "",
        idle_timeout_s: float | None = None,
        required: bool = False,
        attempt: int | None = None,
        on_sigterm: OnSigterm = None,
    ) -> None:
        arguments.with_call("TrainerView(queue)", "a FileSampleRefQueue", queue, "stream", "renew")
        if partition is not None:
            arguments.partition("TrainerView", partition)
        arguments.at_least("TrainerView(batch=)", batch, 1)
        arguments.patience("TrainerView(idle_timeout_s=)", idle_timeout_s)
        self._queue = queue
        self._pid = os.getpid()
        self._partition = partition
        self._batch = batch
        self._idle_timeout_s = idle_timeout_s
        rank, self._world = partition or (0, 1)
        handle = queue.handle
        self._handle = handle
        self._stream = queue.stream()
        group = session or "trainer"
        self._members = members = [f"{group}-{k}" for k in range(self._world)]
        self._others = [name for k, name in enumerate(members) if k != rank]
        self._out: dict[str, R] = {}
        self._ended = False
        self._looked_at = handle.ops.monotonic()  # across calls: also ranks that never wait learn of a failure
        self._closed = threading.Event()
        self._renewer: threading.Thread | None = None
        joined: list[Membership] = []
        try:
            with reaching("joining as consumer", handle.layout):
                self._stream.join(
                    "consumer",
                    members[rank],
                    joined,
                    expected=self._world,
                    required=required,
                    attempt=attempt,
                    group=group,
                    ranks=members,
                    on_sigterm=on_sigterm,
                )
            self._membership = joined[0]
            self._rendezvous = Rendezvous(handle, self._stream, rank, members, session)
            self._renewer = self._start_renewing()
        except BaseException:
            self._closed.set()
            for membership in joined:
                membership.vanish()
            raise

    def get(
        self,
        max_refs: int | None = None,
        timeout_s: float | None = None,
        *,
        stop_event: StopEvent | None = None,
        **_: Any,
    ) -> list[R]:
        """Return the next batch: exactly max_refs refs (the view's batch unless given), or [] at the stream's end.

        timeout_s is accepted for the loaders' sake; how long to wait is the view's idle_timeout_s. Once stop_event is
        set, this returns [] too, after giving back what it has leased.

        Raises:
            MemberFailedError: a producer, or another rank, failed or died.
            StreamStalledError: nothing came for idle_timeout_s seconds.
            QueueClosedError: the view was closed, or its queue object.
        """
        return self.get_interruptible(max_refs or self._batch, stop_event=stop_event)

    def get_interruptible(self, max_refs: int, *, stop_event: StopEvent | None = None) -> list[R]:
        """Do as `get`, as the loaders call it."""
        self._refuse_in_child()
        arguments.at_least("get(max_refs)", max_refs, 1)
        refs: list[R] = []
        try:
            with reaching("taking part in the stream of", self._handle.layout):
                complete = not self._ended and self._collect(max_refs, refs, stop_event)
            if complete:
                self._out.update((id_of_ref(ref), ref) for ref in refs)
                self._rendezvous.next_window()
                return refs
        except BaseException:
            self._take_back(refs)
            raise
        self._give_back(refs, stopped=stop_event is not None and stop_event.is_set())
        return []

    def _take_back(self, refs: list[R]) -> None:
        """Release what a get that was cut short has leased; nobody has it."""
        for ref in refs:
            self._out.pop(id_of_ref(ref), None)
        self._queue.release(refs)

    def _collect(self, wanted: int, refs: list[R], stop_event: StopEvent | None) -> bool:
        """Lease until all ranks have what they want; False when the stream has ended, or on the stop event."""
        ops = self._handle.ops
        last_came = ops.monotonic()
        pause_s = _FIRST_PAUSE_S
        while stop_event is None or not stop_event.is_set():
            if self._closed.is_set():
                raise QueueClosedError(self._queue.path, "view")
            if ops.monotonic() - self._looked_at > _MEMBERS_S:
                self._looked_at = ops.monotonic()
                self._look_around(self._looked_at - last_came, len(refs), wanted)
                self._drop_lost(refs)
            found = self._lease(refs, wanted - len(refs), pause_s)
            now = ops.monotonic()
            last_came = now if found else last_came
            ended = self._has_ended(len(refs) == wanted, found)
            if ended is not None:
                return not ended
            pause_s = _FIRST_PAUSE_S if found else min(_SLOWING * pause_s, _LONGEST_PAUSE_S)
        return False

    def _lease(self, refs: list[R], wanted: int, pause_s: float) -> bool:
        """Lease up to so many refs more; wait for pause_s at most, also where none is wanted any more.

        What is leased is in refs at once, where an exception between two lines finds it.
        """
        before = len(refs)
        if not wanted:
            self._handle.ops.sleep(pause_s)
            return False
        refs += self._queue.get(wanted, pause_s, partition=self._partition)
        if len(refs) == before and self._world > 1:
            refs += self._queue.get(wanted)
        found = len(refs) > before
        self._drop_leased_anew(refs, before)
        return found

    def _look_around(self, waited_s: float, have: int, wanted: int) -> None:
        self._membership.raise_if_replaced()
        self._rendezvous.look_for_leader()
        self._stream.raise_failures("producer")
        self._stream.raise_failures("consumer", among=self._members)
        self._raise_if_left_alone()
        if self._idle_timeout_s is not None and waited_s > self._idle_timeout_s:
            raise StreamStalledError(
                f"queue {self._queue.path}: no ref for {waited_s:.0f} s, {have} of {wanted} in hand; "
                f"{self._rendezvous.describe()}; {self._stream.describe('producer')}"
            )

    def _raise_if_left_alone(self) -> None:
        """Raise where another rank has left for no verdict.

        RACE: a rank that has read the end's verdict leaves; so this looks for one once more before it raises.
        """
        gone = self._stream.left(self._others)
        if gone is not None and self._rendezvous.verdict() is None:
            raise StreamStalledError(
                f"queue {self._queue.path}: {gone.describe()} has left, and this rank cannot go on without it"
            )

    def _has_ended(self, complete: bool, found: bool) -> bool | None:
        """Return False where this window is on, True where the stream is over, None while neither is known.

        A ref that is leased elsewhere may come back. So a rank is starved only when the stream is drained but for
        what the ranks themselves lease, and the end comes only when every rank waits here for the same window.
        """
        closed = not complete and not found and self._stream.all_closed("producer")
        starved = closed and self._stream.drained(besides=self._rendezvous.owners())
        if self._world == 1:
            return False if complete else starved or None
        if starved and self._stream.have_closed(self._others):
            return True  # this rank was started again after the others had come to the end
        if complete or starved:
            self._rendezvous.post("ready" if complete else "starved")
        verdict = self._rendezvous.verdict()
        if verdict == "go" and starved:
            raise StreamStalledError(
                f"queue {self._queue.path}: a lease of this rank's was lost after all ranks had agreed to go on, and "
                "nothing is left to lease: the others wait for it; start all ranks again from the last checkpoint"
            )
        if verdict == "go" and not complete:
            return None  # a lease was lost after this rank had spoken: the others wait for it at their next step
        return None if verdict is None else verdict == "end"

    def _drop_lost(self, refs: list[R]) -> None:
        """Renew what is in hand; a ref whose lease is lost will come again, to this rank or another."""
        if refs:
            lost = set(self._queue.renew(refs))
            refs[:] = [ref for ref in refs if id_of_ref(ref) not in lost]

    def _drop_leased_anew(self, refs: list[R], before: int) -> None:
        """Drop what this handle has just leased again: a rank that was stopped for long reclaims its own leases."""
        again = set(map(id_of_ref, refs[before:]))
        refs[:before] = [ref for ref in refs[:before] if id_of_ref(ref) not in again]

    def _give_back(self, refs: list[R], stopped: bool) -> None:
        self._queue.release(refs)
        if stopped:
            return
        self._ended = self._world > 1
        if refs:
            warnings.warn(
                f"the stream of {self._queue.path} ended with an incomplete window: "
                f"{len(refs)} refs of this rank were given back to pending/",
                PartialWindowWarning,
                stacklevel=4,
            )

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Acknowledge refs, at an optimizer step where given; return the ids whose lease was lost."""
        return self._settle("ack", refs, lambda batch: self._queue.ack(batch, step=step))

    def ack_ids(self, sample_ids: Iterable[str], *, step: int | None = None) -> list[str]:
        """Acknowledge refs that this view handed out, by id; ids that it does not have out are ignored."""
        return self.ack([self._out[i] for i in sample_ids if i in self._out], step=step)

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]:
        """Give refs back as failed; see `FileSampleRefQueue.fail`."""
        return self._settle("fail", refs, lambda batch: self._queue.fail(batch, reason, retryable))

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back without counting an attempt; return the ids whose lease was lost."""
        return self._settle("release", refs, self._queue.release)

    def _settle(self, call: str, refs: Iterable[R], settle: Callable[[list[R]], list[str]]) -> list[str]:
        self._refuse_in_child()
        batch = list(arguments.batch(call, refs))
        lost = settle(batch)
        for ref in batch:
            # A late settlement of an earlier lease says nothing about the one that is out by now.
            if id_of_ref(ref) not in lost or self._out.get(id_of_ref(ref)) is ref:
                self._out.pop(id_of_ref(ref), None)
        return lost

    def _refuse_in_child(self) -> None:
        if os.getpid() != self._pid:
            raise OtherProcessError(f"a TrainerView of queue {self._queue.path}", self._pid)

    def close(self) -> None:
        """Give back what is still out, and leave the stream, also where giving back fails."""
        self.__exit__(None, None, None)

    def _stop(self) -> None:
        """Release what is out; who is interrupted in here completes it by closing again."""
        if os.getpid() != self._pid:
            return
        self._closed.set()
        if self._renewer is not None:
            # RACE: it may wait for a lock of this very thread, where a signal handler closes the view on top of a call.
            # A renewal that is still under way knows what the release says of the leases.
            self._renewer.join(_RENEWER_S)
        if self._out:
            self._queue.release(list(self._out.values()))
            self._out.clear()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a TrainerView of queue {self._queue.path} cannot be copied or pickled: copy the queue object, "
            "and make a view of the copy where it is used"
        )

    def __enter__(self) -> TrainerView[R]:
        self._membership.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop()
        finally:
            self._membership.__exit__(kind, error, trace)

    def _start_renewing(self) -> threading.Thread | None:
        timeout_s = self._queue.lease_timeout_s
        if timeout_s is None or self._handle.presence.heartbeat_s is not None:
            return None
        thread = threading.Thread(target=self._renew, args=(timeout_s / 4,), name="fsqueue-renew", daemon=True)
        thread.start()
        return thread

    def _renew(self, interval_s: float) -> None:
        while not self._closed.wait(interval_s):
            try:
                self._queue.renew(list(self._out.values()))
            except QueueClosedError:
                return
            except OSError:
                continue  # tried again at the next interval; the lease timeout allows for several
