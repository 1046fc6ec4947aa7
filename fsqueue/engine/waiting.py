"""Wait for a ref by polls that start short and grow to a ceiling: shared filesystems tell nobody of a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fsqueue.engine.handle import Handle
from fsqueue.errors import QueueClosedError

_FIRST_PAUSE_S = 0.0002
_GROWTH = 1.2
_REMOTE_FACTOR = 3
_MOST_ROUNDS = 5
_NAMES_A_LOOK = 64


class StopEvent(Protocol):
    """Tell a waiting call to end, as a `threading.Event` does."""

    def is_set(self) -> bool: ...


class StoppedError(Exception):
    """End a get whose stop event was set; it never leaves the getter."""


class Pace:
    """Remember, from one waiting get of a handle to the next, how often they look.

    Args:
        ceiling_s: the longest pause between two looks.
        idle_s: returns how long a full look may be put off, seconds, after so many rounds in which nothing happened.

    Attributes:
        waited_s: how long gets have waited since one last came back with refs, seconds.
        rounds: how many full looks in a row have found nothing.
    """

    def __init__(self, handle: Handle, ceiling_s: float, idle_s: Callable[[int], float]) -> None:
        by_the_order = handle.layout.remote and not handle.order_file.content.doubted
        self.ceiling_s = ceiling_s * (_REMOTE_FACTOR if by_the_order else 1)
        self.idle_s = idle_s
        self.waited_s = 0.0
        self.rounds = 1

    def first_pause_s(self) -> float:
        return min(max(_FIRST_PAUSE_S, (_GROWTH - 1) * self.waited_s), self.ceiling_s)


class Waiter:
    """Pace one waiting get.

    Between full looks, which reclaim and list, a poll is one look at the order file, which every put and every ref
    that comes back changes. NFS: a look costs three operations, so the ceiling is three times as high. Where the
    order file may look old for a second to whoever has not locked it, the first names in pending/ are looked at, too:
    a listing is current.
    """

    def __init__(self, handle: Handle, timeout_s: float | None, pace: Pace, stop: StopEvent | None) -> None:
        self._handle = handle
        self.stop = stop
        self.patient = timeout_s is not None  # else the caller polls
        self._ops = handle.ops
        self._pace = pace
        self._rounds = pace.rounds if pace.waited_s else 1
        self._pause_s = pace.first_pause_s() if timeout_s else 0.0
        self._deadline = self._ops.monotonic() + timeout_s if timeout_s and timeout_s > 0 else None
        self._seen = self._look() if self._deadline is not None else None
        self._by_names = handle.order_file.content.doubted
        self._names: set[str] = set()
        self._pauses = handle.pause.changes
        self._over = self._deadline is None
        self._full_look_at = float("inf")

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

    def wait(self) -> bool:
        """Sleep until the order may name something new, a full look is due, or the time is up; False in the first case.

        Of many waiters, most come too late for the refs of a put: they need not list pending/ for that.
        """
        started = self._ops.monotonic()
        try:
            return self._wait(started)
        finally:
            self._pace.waited_s += self._ops.monotonic() - started
            self._pace.rounds = self._rounds

    def _wait(self, started: float) -> bool:
        assert self._deadline is not None
        self._full_look_at = min(
            self._full_look_at, started + max(self._pace.idle_s(self._rounds), self._pace.ceiling_s)
        )
        while True:
            self.raise_if_stopped()
            now = self._ops.monotonic()
            if now >= self._deadline:
                self._over = True
                return True
            pause_s = self._pause_s * (0.9 + 0.1 * self._ops.random())
            self._ops.sleep(min(pause_s, self._deadline - now))
            self._handle.awake.tick()
            self._pause_s = min(self._pause_s * _GROWTH, self._pace.ceiling_s)
            before, self._seen = self._seen, self._look()
            arrived = self._by_names and self._has_arrived()
            if arrived or self._seen != before:
                self._rounds = 1
            if self._pause_has_changed():
                self._rounds, self._full_look_at = 1, now
            if now >= self._full_look_at or _is_another(self._seen, before):
                self._full_look_at = float("inf")
                self._rounds = min(self._rounds + 1, _MOST_ROUNDS)
                return True
            if arrived or (self._seen != before and self._handle.order.may_name_some()):
                return False

    def _pause_has_changed(self) -> bool:
        """Return whether the queue was paused or resumed, as far as this handle knows; look where it is paused."""
        before, pause = self._pauses, self._handle.pause
        if pause.found is not None:
            pause.look()
        self._pauses = pause.changes
        return self._pauses != before

    def _has_arrived(self) -> bool:
        """Return whether pending/ shows a name that the last look did not show."""
        before, self._names = self._names, set(self._handle.layout.pending.some_names(_NAMES_A_LOOK))
        return not self._names <= before

    def _look(self) -> tuple[int, int] | None:
        return self._handle.order_file.peek()


def _is_another(seen: tuple[int, int] | None, before: tuple[int, int] | None) -> bool:
    """Return whether the order file came, went or was replaced between two looks."""
    return (seen and seen[0]) != (before and before[0])
