"""Secure one rank's share of each window: lease until every rank has its own, or learn that the stream has ended.

A *window* is what all ranks agree on at a time. It opens only once each of them has leased all of its share.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from fsqueue.engine.holding import wait_since
from fsqueue.engine.renewing import LeasingQueue
from fsqueue.engine.waiting import AnyOf, StopEvent, sleep_until
from fsqueue.errors import QueueClosedError, StreamStalledError
from fsqueue.records import id_of_ref
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.members import Member
from fsqueue.stream.membership import Membership
from fsqueue.stream.pacing import longest_pause_s, members_pause_s
from fsqueue.stream.sieve import Sieve
from fsqueue.stream.stream import Stream

R = TypeVar("R")
Ended = Callable[[bool, bool], bool | None]
"""Return False where this window is on, True where the stream is over, None while neither is known.

Its arguments: all that is wanted is leased; the last look found nothing, and what it may be the end of is to be asked.
"""

_FIRST_PAUSE_S = 0.005
_SLOWING = 1.25
_LONGEST_PAUSE_S = 0.5
_LONGEST_AGREEMENT_S = 2.0  # on a shared mount: two of these, one after the other, are between a ref and its step
_JUST_NOW_S = 0.2
_MEMBERS_S = 1.0
_ALL_AGAIN = "the others wait for it; start all ranks again from the last checkpoint"


class StreamedQueue(LeasingQueue[R], Protocol[R]):
    """List the calls of `FileSampleRefQueue` that a view makes."""

    path: str

    def stream(self) -> Stream: ...

    def get(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition: tuple[int, int] | None = None,
        stop_event: StopEvent | None = None,
    ) -> list[R]: ...


class Share(Generic[R]):
    """Lease for one rank.

    Args:
        partition: (rank, world size); None for a single rank.
        members: the name under which each rank is a consumer of the stream, by rank.
        closed: set once the view is closed.
        sieve: takes out what is not to be worked on.
    """

    def __init__(
        self,
        queue: StreamedQueue[R],
        membership: Membership,
        rendezvous: Rendezvous,
        partition: tuple[int, int] | None,
        members: Sequence[str],
        idle_timeout_s: float | None,
        closed: threading.Event,
        sieve: Sieve[R],
    ) -> None:
        self._queue = queue
        self._membership = membership
        self._rendezvous = rendezvous
        self._partition = partition
        self._members = members
        self._idle_timeout_s = idle_timeout_s
        self._closed = closed
        self._sieve = sieve
        self._stream = queue.stream()
        self._ops = queue.handle.ops
        rank, self._world = partition or (0, 1)
        self._others = [name for k, name in enumerate(members) if k != rank]
        self._looked_at = self._ops.monotonic()  # across calls: also ranks that never wait learn of a failure
        handle = queue.handle
        self._is_remote = handle.layout.remote
        self._longest_pause_s = longest_pause_s(handle, _LONGEST_PAUSE_S)
        self._longest_agreement_s = min(self._longest_pause_s, _LONGEST_AGREEMENT_S)

    def secure(self, wanted: int, refs: list[R], stop_event: StopEvent | None) -> bool:
        """Lease so many refs, until all ranks have as many; False when the stream has ended, or on the stop event.

        What is leased is in refs at once, also where this raises.

        Raises:
            MemberFailedError: a producer, or another rank, failed or died.
            StreamStalledError: nothing came for idle_timeout_s seconds.
            QueueClosedError: the view was closed.
            QueueConfigError: the ranks want different numbers of refs; the first rank says so, and the others stop.
        """
        return self._lease_until(wanted, refs, stop_event, partial(self._has_ended, wanted))

    def keep(self, wanted: int, refs: list[R], soon: int, stop_event: StopEvent | None) -> bool:
        """Replace what is lost of a window that is open, where the first refs, which are wanted soon, show a loss.

        So much is looked at once a second at most, or where an earlier call was cut short. Returns False on the stop
        event. Raises what `secure` does.

        Args:
            wanted: how many refs of the window are to be handed out still.
        """
        if not self._is_time_to_look() and len(refs) == wanted:
            return True
        self._raise_failures()
        if not self._queue.renew(refs[:soon]) and len(refs) == wanted:
            return True
        self._drop_lost(refs)
        return self._lease_until(wanted, refs, stop_event, self._has_none_for_the_lost)

    def _lease_until(self, wanted: int, refs: list[R], stop_event: StopEvent | None, has_ended: Ended) -> bool:
        """Lease until this has ended; meanwhile no time to hold a ref runs, for nobody has them yet."""
        try:
            self._wait_since(refs, None)
            return self._keep_leasing(wanted, refs, stop_event, has_ended)
        finally:
            self._wait_since(refs, self._ops.monotonic())

    def _wait_since(self, refs: list[R], since: float | None) -> None:
        wait_since(self._queue.handle.held.claims_on(refs), since)

    def _keep_leasing(self, wanted: int, refs: list[R], stop_event: StopEvent | None, has_ended: Ended) -> bool:
        last_came = self._ops.monotonic()
        pause_s, found = _FIRST_PAUSE_S, True
        stop = AnyOf(stop_event, self._closed)
        while stop_event is None or not stop_event.is_set():
            if self._closed.is_set():
                raise QueueClosedError(self._queue.path, "view")
            looks = self._is_time_to_look(self._ops.monotonic() - last_came)
            if looks:
                self._look_around(self._looked_at - last_came, len(refs), wanted)
                self._drop_lost(refs)
                # Here, and not after a long pause: the look at the members tells most of it.
                if self._is_remote and not found and (ended := has_ended(len(refs) == wanted, True)) is not None:
                    return not ended
            found = self._lease(refs, wanted - len(refs), pause_s, stop)
            asks = not found and (self._has_just_looked() or not self._is_remote)
            if found or (looks and self._is_paused()):
                last_came = self._ops.monotonic()
            complete = len(refs) == wanted
            ended = has_ended(complete, asks)
            if ended is not None:
                return not ended
            longest_s = self._longest_agreement_s if complete else self._longest_pause_s
            pause_s = _FIRST_PAUSE_S if found else min(_SLOWING * pause_s, longest_s)
        return False

    def _is_paused(self) -> bool:
        """Tell whether the queue is paused, where that keeps the time from running that a ref is waited for."""
        return self._idle_timeout_s is not None and self._queue.handle.pause.look() is not None

    def _lease(self, refs: list[R], wanted: int, pause_s: float, stop: AnyOf) -> bool:
        """Lease up to so many refs more; wait for pause_s at most, also where none is wanted any more, or for the stop.

        What is leased is in refs at once, where an exception between two lines finds it.
        """
        before, until = len(refs), self._ops.monotonic() + pause_s
        if not wanted:
            sleep_until(self._queue.handle, until, stop.is_set)
            return False
        refs += self._queue.get(wanted, pause_s, partition=self._partition, stop_event=stop)
        waited = self._ops.monotonic() >= until  # a get of a partition does not wait while others have some pending
        if len(refs) == before and self._world > 1 and not (waited and self._is_remote):
            refs += self._queue.get(wanted, stop_event=stop)
        self._wait_since(refs[before:], None)
        found = len(refs) > before
        if not found:
            sleep_until(self._queue.handle, until, stop.is_set)
        self._sieve.sift(refs, before)
        self._drop_leased_anew(refs, before)
        return found

    def _is_time_to_look(self, waited_s: float = 0.0) -> bool:
        """Tell whether the members are to be looked at, once a second; on a shared mount less often while it waits."""
        now = self._ops.monotonic()
        due = now - self._looked_at > max(_MEMBERS_S, members_pause_s(self._queue.handle, waited_s))
        if due:
            self._looked_at = now
        return due

    def _has_just_looked(self) -> bool:
        return self._ops.monotonic() - self._looked_at < _JUST_NOW_S

    def _raise_failures(self) -> list[Member]:
        """Raise where somebody failed; return the members, as they were read for that."""
        self._membership.raise_if_replaced()
        found = self._stream.watched()
        self._stream.raise_failures("producer", found=found)
        self._stream.raise_failures("consumer", among=self._members, found=found)
        return found

    def _look_around(self, waited_s: float, have: int, wanted: int) -> None:
        found = self._raise_failures()
        self._rendezvous.look_for_leader(found)
        self._raise_if_left_alone(found)
        if self._idle_timeout_s is None or waited_s <= self._idle_timeout_s:
            return
        if self._queue.handle.pause.look_now() is None:
            raise StreamStalledError(
                f"queue {self._queue.path}: no ref for {waited_s:.0f} s, {have} of {wanted} in hand; "
                f"{self._rendezvous.describe()}; {self._stream.describe('producer')}"
            )

    def _raise_if_left_alone(self, found: list[Member]) -> None:
        """Raise where another rank has left for no verdict.

        RACE: a rank that has read the end's verdict leaves; so this looks for one once more before it raises.
        """
        gone = self._stream.left(self._others, found)
        if gone is not None and self._rendezvous.verdict() is None:
            raise StreamStalledError(
                f"queue {self._queue.path}: {gone.describe()} has left, and this rank cannot go on without it"
            )

    def _is_starved(self, complete: bool, asks: bool) -> bool:
        """Tell whether this rank will get nothing more: what others than the ranks lease may still come back."""
        may_have = not complete and asks and (not self._is_remote or self._stream.some_had_closed("producer"))
        return (
            may_have and self._stream.all_closed("producer") and self._stream.drained(besides=self._rendezvous.owners())
        )

    def _has_ended(self, wanted: int, complete: bool, asks: bool) -> bool | None:
        """Agree with the other ranks: the end comes only when every rank waits here for the same window."""
        starved = self._is_starved(complete, asks)
        if self._world == 1:
            return False if complete else starved or None
        if starved and self._stream.have_closed(self._others):
            return True  # this rank was started again after the others had come to the end
        if complete or starved:
            self._rendezvous.post("ready" if complete else "starved", wanted)
        elif self._is_remote and not asks:
            return None
        verdict = self._rendezvous.verdict()
        if verdict == "go" and starved:
            raise self._lost_for_good()
        if verdict == "go" and not complete:
            return None  # a lease was lost after this rank had spoken: the others wait for it at their next step
        return None if verdict is None else verdict == "end"

    def _has_none_for_the_lost(self, complete: bool, asks: bool) -> bool | None:
        """Do as `_has_ended`, where all ranks have agreed to go on."""
        if self._is_starved(complete, asks):
            raise self._lost_for_good()
        return False if complete else None

    def _lost_for_good(self) -> StreamStalledError:
        return StreamStalledError(
            f"queue {self._queue.path}: a lease of this rank's was lost after all ranks had agreed to go on, and "
            f"nothing is left to lease: {_ALL_AGAIN}"
        )

    def _drop_lost(self, refs: list[R]) -> None:
        """Renew what is in hand; a ref whose lease is lost will come again, to this rank or another."""
        if refs:
            lost = set(self._queue.renew(refs))
            refs[:] = [ref for ref in refs if id_of_ref(ref) not in lost]

    def _drop_leased_anew(self, refs: list[R], before: int) -> None:
        """Drop what this handle has just leased again: a rank that was stopped for long reclaims its own leases."""
        again = set(map(id_of_ref, refs[before:]))
        refs[:before] = [ref for ref in refs[:before] if id_of_ref(ref) not in again]
