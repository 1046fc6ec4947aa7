"""Know since when this process has been running without a gap: whoever was stopped himself accuses nobody.

After a stall of everybody (a mount that hung, a machine that was paused, an allocation that was stopped) the first to
wake finds all the others silent. Their silence proves something only once this process has been awake for as long as
they need to show up: `grace_s`.
"""

from __future__ import annotations

import time
from collections.abc import Container

from fsqueue.disk.fileops import FileOps

LONGEST_GAP_S = 1.0
_SHORTEST_GAP_S = 0.05
_BEATS = 1.5
_BEAT_MARGIN_S = 0.5
_EPSILON_S = 1e-6
_COARSEST_S = 2.0
_imported = time.monotonic()


def grace_s(heartbeat_s: float | None, timeout_s: float | None) -> float:
    """Return for how long one must have been awake before an owner's silence means that it is gone, seconds."""
    if heartbeat_s is not None:
        return _BEATS * heartbeat_s + _BEAT_MARGIN_S
    return LONGEST_GAP_S if timeout_s is None else min(LONGEST_GAP_S, timeout_s / 4)


def gap_s(heartbeat_s: float | None, timeout_s: float | None) -> float:
    """Return how long a handle may go without a sign of running before it counts as stopped, seconds.

    Half a beat: a lease lasts two beats or more, so what is overlooked lets none expire.
    """
    longest_s = grace_s(None, timeout_s) if heartbeat_s is None else min(LONGEST_GAP_S, heartbeat_s / 2)
    return max(_SHORTEST_GAP_S, longest_s)


def process_age_s() -> float:
    """Return for how long this process is known to have run, seconds: since it imported this module."""
    return time.monotonic() - _imported


class Awake:
    """Keep for one handle since when it has been running; its calls and the heartbeat thread tick.

    Threads share it without a lock, which an interrupted call could leave held: they race for some microseconds.

    A handle that has just been opened takes its process to have run since this module was imported.

    Attributes:
        gap_s: a longer time between two ticks is a stall, by the monotonic clock or the wall's: a machine that is
            suspended may stop the former.
        gaps: how many stalls were noticed.
    """

    def __init__(self, ops: FileOps, gap_s: float) -> None:
        self.gap_s = gap_s
        self.gaps = 0
        self._ops = ops
        self._last = ops.monotonic()
        self._last_wall = ops.time()
        self._heard: tuple[float, float] | None = None
        self._since = self._last - process_age_s()

    def tick(self, began_at: float | None = None) -> float:
        """Note that this process runs; return the monotonic time.

        Args:
            began_at: when the caller began what it has just ended, monotonic: one thread may have hung in it while
                another ran.
        """
        now, wall = self._ops.monotonic(), self._ops.time()
        last = self._last if began_at is None else min(began_at, self._last)
        if now - last > self.gap_s or wall - self._last_wall > now - self._last + LONGEST_GAP_S:
            self._note_gap(now)
        self._last, self._last_wall = now, wall
        return now

    def hear(self, told: float) -> None:
        """Note the filesystem's time: on a machine that was paused it has gone on while no clock of its own did."""
        now, heard = self.tick(), self._heard
        step_s = (
            _COARSEST_S if told % 1 == 0 else 0.0
        )  # a filesystem that keeps no part of a second steps ahead at once
        if heard is not None and told - heard[0] > now - heard[1] + LONGEST_GAP_S + step_s:
            self._note_gap(now)
        self._heard = told, now

    def _note_gap(self, now: float) -> None:
        self.gaps += 1
        self._since = now

    def for_s(self) -> float:
        """Return for how long this process has been running without a gap, seconds."""
        return self.tick() - self._since


class Doubts:
    """Hold back what silence seems to prove, until this process has been awake for long enough.

    Or until it has seen the same silence at an earlier look, that long ago: a handle that makes a call now and then,
    and keeps no heartbeat, is never known to have been awake.

    Attributes:
        left_s: how long the doubts of the latest looks will last, seconds; 0: there are none.
    """

    def __init__(self, awake: Awake) -> None:
        self.left_s = 0.0
        self._awake = awake
        self._seen: dict[object, tuple[float, float]] = {}

    def about(self, who: object, stamp: float, grace: float) -> float:
        """Return for how many seconds more this one's silence since the stamp proves nothing; 0: it does."""
        awake_s, now = self._awake.for_s(), self._awake.tick()
        seen_stamp, seen_at = self._seen.get(who, (None, now))
        if seen_stamp != stamp:
            seen_at = now
            self._seen[who] = stamp, now
        left_s = grace - max(awake_s, now - seen_at)
        if left_s <= _EPSILON_S:
            return 0.0
        self.left_s = max(self.left_s, left_s)
        return left_s

    def keep(self, present: Container[object]) -> None:
        """Forget what is not there any more, and begin to look anew."""
        self._seen = {who: seen for who, seen in self._seen.items() if who in present}
        self.left_s = 0.0
