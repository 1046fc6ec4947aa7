"""Wait for a ref by looks that come ever less often: filesystems tell nobody of a change.

Here is what all waits share, and the wait on a local mount, where a look costs next to nothing; `lookout` has the one
on a shared mount.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from fsqueue.engine.handle import Handle
from fsqueue.errors import QueueClosedError

_FIRST_PAUSE_S = 0.0002
_GROWTH = 1.2
_MOST_ROUNDS = 5
SHARE = 0.2
"""How long a pause between two looks on a shared mount may be, as a part of the time that was waited."""
_SLICE_S = 0.1
_LEAST_S = 1e-6  # less may be nothing, by a clock that counts from 1970
_LOOK_S = 1.0
_LONGEST_LOOK_S = 10.0


class StopEvent(Protocol):
    """Tell a waiting call to end, as a `threading.Event` does."""

    def is_set(self) -> bool: ...


class AnyOf:
    """Be set once any of these events is."""

    def __init__(self, *events: StopEvent | None) -> None:
        self._events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        return any(event.is_set() for event in self._events)


class StoppedError(Exception):
    """End a get whose stop event was set; it never leaves the getter."""


class Look(Enum):
    """Say what a get is to look at next.

    NOTHING: there is nothing to be had. LEASES: whether some have ended. ORDER: what the order names. ALL: besides,
    leases, and what no line of the order names.
    """

    NOTHING = "nothing"
    LEASES = "leases"
    ORDER = "order"
    ALL = "all"

    @property
    def takes(self) -> bool:
        """True where refs are leased that are pending."""
        return self in (Look.ORDER, Look.ALL)


def patience_s(handle: Handle, waited_s: float) -> float:
    """Return for how long a loop lets a get wait before it looks at what else may end it, seconds.

    On a shared mount that is longer the longer it has waited, since it costs looks.
    """
    return min(max(_LOOK_S, waited_s / 2), _LONGEST_LOOK_S) if handle.layout.remote else _LOOK_S


def sleep_until(handle: Handle, at: float, ends: Callable[[], bool]) -> None:
    """Sleep in slices, so that a stop is heard soon and a long pause is no gap in this process's being awake.

    Args:
        at: until when, monotonic.
        ends: called before each slice; True ends the sleep.
    """
    slice_s = min(_SLICE_S, handle.awake.gap_s / 2)
    while not ends() and (left_s := at - handle.ops.monotonic()) > 0:
        handle.ops.sleep(max(_LEAST_S, min(left_s, slice_s)))
        handle.awake.tick()


class Waiting:
    """Hold what ends one waiting get: its deadline, its stop event, the handle's close.

    Attributes:
        patient: it waits; else its caller polls.
    """

    def __init__(self, handle: Handle, timeout_s: float | None, stop: StopEvent | None) -> None:
        self.stop = stop
        self.patient = timeout_s is not None
        self._handle = handle
        self._ops = handle.ops
        self._deadline = self._ops.monotonic() + timeout_s if timeout_s and timeout_s > 0 else None
        self._over = self._deadline is None

    def raise_if_stopped(self) -> None:
        """Raise where the caller wants no refs any more.

        Raises:
            StoppedError: its stop event is set.
            QueueClosedError: the handle was closed.
        """
        if self._handle.closed:
            raise QueueClosedError(self._handle.layout.path)
        if self.stop is not None and self.stop.is_set():
            raise StoppedError

    def expired(self) -> bool:
        """Return whether the time is up; it is only after one more look at or past the deadline."""
        return self._over

    def first(self) -> Look:
        """Return what to look at before anything is waited for."""
        return Look.ALL

    def wait(self) -> Look:
        """Sleep until there is something to look at, or the time is up; return what to look at."""
        raise NotImplementedError

    def _sleep_until(self, at: float, meanwhile: Callable[[], bool] = bool) -> None:
        """Sleep until then, or until meanwhile returns True; raise where the caller wants no refs any more."""

        def ends() -> bool:
            self.raise_if_stopped()
            return meanwhile()

        sleep_until(self._handle, at, ends)


class Pace:
    """Remember, from one waiting get of a handle on a local mount to the next, how often they look.

    Args:
        idle_s: returns how long a full look may be put off, seconds, after so many rounds in which nothing happened.

    Attributes:
        ceiling_s: the longest pause between two looks.
        waited_s: how long gets have waited since one last came back with refs, seconds.
        rounds: how many full looks in a row have found nothing.
        sees_some: False: no look here is one at what is pending.
    """

    sees_some = False

    def __init__(self, handle: Handle, idle_s: Callable[[float], float]) -> None:
        self.ceiling_s = handle.poll_interval_s
        self.idle_s = idle_s
        self.waited_s = 0.0
        self.rounds = 1
        self._handle = handle
        self._poller = Waiting(handle, None, None)

    def waiter(self, timeout_s: float | None, stop: StopEvent | None) -> Waiting:
        if timeout_s is None and stop is None:
            return self._poller
        return _LocalWaiter(self._handle, timeout_s, self, stop)

    def restart(self) -> None:
        """Note that a get came back with refs."""
        self.waited_s = 0.0

    def first_pause_s(self) -> float:
        return min(max(_FIRST_PAUSE_S, (_GROWTH - 1) * self.waited_s), self.ceiling_s)


class _LocalWaiter(Waiting):
    """Pace one waiting get on a local mount.

    Between full looks, which reclaim and list, a poll is one look at the order file, which every put and every ref
    that comes back changes.
    """

    def __init__(self, handle: Handle, timeout_s: float | None, pace: Pace, stop: StopEvent | None) -> None:
        super().__init__(handle, timeout_s, stop)
        self._pace = pace
        self._rounds = pace.rounds if pace.waited_s else 1
        self._pause_s = pace.first_pause_s() if timeout_s else 0.0
        self._seen = self._look() if self._deadline is not None else None
        self._pauses = handle.pause.changes
        self._full_look_at = float("inf")

    def wait(self) -> Look:
        """Sleep until the order may name something new, a full look is due, or the time is up; ORDER in the first case.

        Of many waiters, most come too late for the refs of a put: they need not list pending/ for that.
        """
        started = self._ops.monotonic()
        try:
            return self._wait(started)
        finally:
            self._pace.waited_s += self._ops.monotonic() - started
            self._pace.rounds = self._rounds

    def _wait(self, started: float) -> Look:
        assert self._deadline is not None
        self._full_look_at = min(
            self._full_look_at, started + max(self._pace.idle_s(self._rounds), self._pace.ceiling_s)
        )
        while True:
            self.raise_if_stopped()
            now = self._ops.monotonic()
            if now >= self._deadline:
                self._over = True
                return Look.ALL
            pause_s = self._pause_s * (0.9 + 0.1 * self._ops.random())
            self._sleep_until(min(now + pause_s, self._deadline))
            self._pause_s = min(self._pause_s * _GROWTH, self._pace.ceiling_s)
            before, self._seen = self._seen, self._look()
            if self._seen != before:
                self._rounds = 1
            if self._pause_has_changed():
                self._rounds, self._full_look_at = 1, now
            if now >= self._full_look_at or _is_another(self._seen, before):
                self._full_look_at = float("inf")
                self._rounds = min(self._rounds + 1, _MOST_ROUNDS)
                return Look.ALL
            if self._seen != before and self._handle.order.may_name_some():
                return Look.ORDER

    def _pause_has_changed(self) -> bool:
        """Return whether the queue was paused or resumed, as far as this handle knows; look where it is paused."""
        before, pause = self._pauses, self._handle.pause
        if pause.found is not None:
            pause.look()
        self._pauses = pause.changes
        return self._pauses != before

    def _look(self) -> tuple[int, int] | None:
        return self._handle.order_file.peek()


def _is_another(seen: tuple[int, int] | None, before: tuple[int, int] | None) -> bool:
    """Return whether the order file came, went or was replaced between two looks."""
    return (seen and seen[0]) != (before and before[0])
