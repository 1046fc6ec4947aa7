"""Waiting for a ref: polls that start short and grow to a ceiling, since shared filesystems tell nobody."""

from __future__ import annotations

from collections.abc import Callable

from fsqueue.engine.handle import Handle

_FIRST_PAUSE_S = 0.0002
_GROWTH = 1.2
_REMOTE_FACTOR = 3
_MOST_ROUNDS = 5


class Waiter:
    """Paces one waiting get.

    Between full looks, which reclaim and list, a poll is one look at the order file: every put and every ref
    that comes back changes it. NFS: a look costs three operations, so it is made a third as often in the end.

    Args:
        ceiling_s: the longest pause between two looks.
        idle_s: how long a full look may be put off, seconds, given for how many rounds nothing has happened.
    """

    def __init__(
        self, handle: Handle, timeout_s: float | None, ceiling_s: float, idle_s: Callable[[int], float]
    ) -> None:
        self._handle = handle
        self._ops = handle.ops
        self._ceiling_s = ceiling_s * (_REMOTE_FACTOR if handle.layout.remote else 1)
        self._idle_s = idle_s
        self._rounds = 1
        self._pause_s = min(max(_FIRST_PAUSE_S, (_GROWTH - 1) * handle.waited_s), self._ceiling_s)
        self._deadline = self._ops.monotonic() + timeout_s if timeout_s and timeout_s > 0 else None
        self._seen = self._look() if self._deadline is not None else None
        self._over = self._deadline is None
        self._full_look_at = float("inf")

    def expired(self) -> bool:
        """Whether the time is up; true only after one more look at or past the deadline."""
        return self._over

    def wait(self) -> bool:
        """Sleep until the order may name something new, a full look is due, or the time is up; False in the first case.

        Of many that wait, most find the refs of a put taken when they come: they need not list what is pending.
        """
        started = self._ops.monotonic()
        try:
            return self._wait(started)
        finally:
            self._handle.waited_s += self._ops.monotonic() - started

    def _wait(self, started: float) -> bool:
        assert self._deadline is not None
        self._full_look_at = min(self._full_look_at, started + max(self._idle_s(self._rounds), self._ceiling_s))
        while True:
            now = self._ops.monotonic()
            if now >= self._deadline:
                self._over = True
                return True
            pause_s = self._pause_s * (0.9 + 0.1 * self._ops.random())
            self._ops.sleep(min(pause_s, self._deadline - now))
            self._pause_s = min(self._pause_s * _GROWTH, self._ceiling_s)
            before, self._seen = self._seen, self._look()
            if self._seen != before:
                self._rounds = 1
            if now >= self._full_look_at or _is_another(self._seen, before):
                self._full_look_at = float("inf")
                self._rounds = min(self._rounds + 1, _MOST_ROUNDS)
                return True
            if self._seen != before and self._handle.order.may_name_some():
                return False

    def _look(self) -> tuple[int, int] | None:
        try:
            return self._handle.order_file.peek()
        except FileNotFoundError:
            return None


def _is_another(seen: tuple[int, int] | None, before: tuple[int, int] | None) -> bool:
    """Whether the order file came, went or was replaced between two looks."""
    return (seen and seen[0]) != (before and before[0])
