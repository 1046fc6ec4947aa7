"""Exclude threads from each other by a lock that an interrupted call can be made to let go of."""

from __future__ import annotations

import threading
from contextlib import suppress


class Mutex:
    """Exclude other threads for a with block; the thread that holds it may enter again.

    An exception may come between any two lines, also on the way into or out of the block: a signal handler's, for
    instance. So whoever catches one calls `drop_leftovers`, and a block whose hold was dropped, by a call that such a
    handler made on top of it, ends as others do.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def try_acquire(self) -> bool:
        """Take it where no other thread has it, until `release`."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        try:
            self._lock.release()
        except RuntimeError as error:
            if "un-acquired" not in str(error):
                raise  # it came from a signal handler

    def drop_leftovers(self) -> None:
        """Let go of it as often as this thread holds it."""
        with suppress(RuntimeError):  # which says that it is not held any more
            while True:
                self._lock.release()
