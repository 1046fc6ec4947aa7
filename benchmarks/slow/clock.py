"""A clock that runs on by what operations are said to take: what a slow mount costs, on a machine that is busy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class VirtualClock:
    """Tell the time of operations that are made in turn, as if threads had made them side by side.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._free_at: defaultdict[object, float] = defaultdict(float)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def each(self, work: Callable[[T], None], items: list[T], threads: int) -> None:
        """Take the place of `FileOps.each`: each item begins when the first of so many threads has nothing to do."""
        free_at = [self.now] * max(1, min(threads, len(items)))
        for item in items:
            self.now = min(free_at)
            index = free_at.index(self.now)
            work(item)
            free_at[index] = self.now
        self.now = max(free_at)

    def await_locks(self, locks: Iterable[object]) -> None:
        """Go on to when all of these were let go of."""
        self.now = max([self.now, *(self._free_at[lock] for lock in locks)])

    def let_go(self, locks: Iterable[object]) -> None:
        for lock in locks:
            self._free_at[lock] = self.now
