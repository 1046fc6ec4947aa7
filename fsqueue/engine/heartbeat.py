"""Keep the heartbeats of a process's handles and stream members, in one thread a mount: one that hangs stops its own.

The thread also ticks more often than it beats, so that a handle knows whether its process was stopped.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fsqueue.engine.awake import Awake
from fsqueue.log import logger

_TICKS_A_GAP = 2
_AFTER_AN_ERROR_S = 0.1


@dataclass
class _Heart:
    """Hold one handle's or member's beat, and when it is due."""

    beat: weakref.WeakMethod[Callable[[], None]]
    interval_s: float
    awake: Awake
    due: float

    def next_s(self) -> float:
        """Tick, and return in how many seconds the next beat or tick is due."""
        return min(self.due - self.awake.tick(), self.awake.gap_s / _TICKS_A_GAP)


class Heartbeats:
    """Call each registered beat at its interval, in one thread a mount.

    A thread is a daemon, starts with its mount's first registration, and ends with the last. No error ends it: a beat
    that fails is logged and tried again at its next interval, since the lease timeout allows for several.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._hearts: dict[int, dict[int, _Heart]] = {}  # by mount
        self._threads: dict[int, threading.Thread] = {}
        self._keys = itertools.count(1)

    def new_key(self) -> int:
        """Return the key of one more beat, for `register`: who is interrupted there has it, to register once more."""
        return next(self._keys)

    def register(self, key: int, beat: Callable[[], None], interval_s: float, awake: Awake, mount: int) -> None:
        """Call beat every interval_s seconds, as long as the object that it is a method of lives.

        Args:
            mount: a number that is the same for all queues that hang together.
        """
        try:
            with self._changed:
                hearts = self._hearts.setdefault(mount, {})
                hearts[key] = _Heart(weakref.WeakMethod(beat), interval_s, awake, awake.tick() + interval_s)
                try:
                    self._start_locked(mount)
                except BaseException:
                    hearts.pop(key, None)
                    raise
                self._changed.notify_all()
        except BaseException:
            self._drop_leftovers()
            raise

    def _start_locked(self, mount: int) -> None:
        thread = self._threads.get(mount)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._run, args=(mount,), name="fsqueue-heartbeat", daemon=True)
            thread.start()
            self._threads[mount] = thread

    def unregister(self, key: int) -> None:
        try:
            with self._changed:
                for hearts in self._hearts.values():
                    hearts.pop(key, None)
                self._changed.notify_all()
        except BaseException:
            self._drop_leftovers()
            raise

    def _drop_leftovers(self) -> None:
        """Let go of what an exception on the way out of a block has left locked: all heartbeats would end."""
        with suppress(RuntimeError):  # which says that this thread does not hold it any more
            while True:
                self._changed.release()

    def _run(self, mount: int) -> None:
        while True:
            try:
                if not self._step(mount):
                    return
            except BaseException:
                logger(__name__).exception("an error in the heartbeat thread; it goes on")
                time.sleep(_AFTER_AN_ERROR_S)

    def _step(self, mount: int) -> bool:
        """Make the beat that is due, or wait for one; False where there is none left to make."""
        with self._changed:
            hearts = self._hearts.get(mount)
            if not hearts:
                self._hearts.pop(mount, None)
                self._threads.pop(mount, None)
                return False
            wait_s = min(heart.next_s() for heart in hearts.values())
            if wait_s > 0:
                self._changed.wait(wait_s)
                return True
            key, heart = min(hearts.items(), key=lambda item: item[1].due)
            heart.due = heart.awake.tick() + heart.interval_s
        beat = heart.beat()
        if beat is None:
            self.unregister(key)
        else:
            self._beat(key, heart, beat)
        return True

    def _beat(self, key: int, heart: _Heart, beat: Callable[[], None]) -> None:
        try:
            beat()
        except BaseException as error:
            if any(key in hearts for hearts in list(self._hearts.values())):  # it was not just closed
                logger(__name__).warning("a heartbeat failed, the next one is due in %g s: %r", heart.interval_s, error)
        heart.awake.tick()


heartbeats = Heartbeats()


def _forget_parent_threads() -> None:
    global heartbeats
    heartbeats = Heartbeats()


os.register_at_fork(after_in_child=_forget_parent_threads)
