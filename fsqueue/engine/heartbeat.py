"""Keep heartbeats in one thread of a process, for all its handles and stream members."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from fsqueue.errors import FsQueueError


class Heartbeats:
    """Call each registered handle's beat at its interval, in one thread of the process.

    The thread is a daemon, starts with the first registration, and ends with the last.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._beats: dict[int, tuple[float, weakref.WeakMethod[Callable[[], None]]]] = {}
        self._due: dict[int, float] = {}
        self._running = False

    def register(self, beat: Callable[[], None], interval_s: float, monotonic: Callable[[], float]) -> int:
        """Call beat every interval_s seconds, as long as the object that it is a method of lives."""
        with self._changed:
            key = max(self._beats, default=0) + 1
            self._beats[key] = (interval_s, weakref.WeakMethod(beat))
            self._due[key] = monotonic() + interval_s
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, args=(monotonic,), name="fsqueue-heartbeat", daemon=True).start()
            self._changed.notify()
            return key

    def unregister(self, key: int) -> None:
        with self._changed:
            self._beats.pop(key, None)
            self._due.pop(key, None)
            self._changed.notify()

    def _run(self, monotonic: Callable[[], float]) -> None:
        while True:
            with self._changed:
                if not self._beats:
                    self._running = False
                    return
                key = min(self._due, key=self._due.__getitem__)
                wait_s = self._due[key] - monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                interval_s, reference = self._beats[key]
                self._due[key] = monotonic() + interval_s
            beat = reference()
            if beat is None:
                self.unregister(key)
                continue
            with suppress(OSError, FsQueueError):  # tried again at the next interval; the timeout allows for several
                beat()
            del beat


heartbeats = Heartbeats()


def _forget_parent_thread() -> None:
    global heartbeats
    heartbeats = Heartbeats()


os.register_at_fork(after_in_child=_forget_parent_thread)
