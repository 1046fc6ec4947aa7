"""Count what one queue object does in one process, for whoever wants to know its rates."""

from __future__ import annotations

from collections import defaultdict
from threading import get_ident
from typing import Literal, get_args

Counted = Literal[
    "put", "skipped", "leased", "acked", "failed", "dead", "released", "lost", "reclaimed",
    "lock_waits", "lock_wait_s", "lock_not_had", "lock_replaced",
]  # fmt: skip
"""What is counted; `fsqueue.operate.process` says what each means."""


class Counters:
    """Add up, without a lock: a signal handler may count on top of a call that does.

    Each thread has numbers of its own, to which nobody else adds.
    """

    def __init__(self) -> None:
        self._threads: dict[int, defaultdict[Counted, float]] = {}

    def add(self, what: Counted, number: float = 1) -> None:
        """Count so many."""
        try:
            self._threads[get_ident()][what] += number
        except KeyError:  # this thread has counted nothing yet
            self._threads.setdefault(get_ident(), defaultdict[Counted, float](int))[what] += number

    def read(self) -> dict[Counted, float]:
        """Return the sums over all threads, also of those that have ended."""
        found: dict[Counted, float] = dict.fromkeys(get_args(Counted), 0)
        for numbers in list(self._threads.values()):
            for what, number in list(numbers.items()):
                found[what] += number
        return found
