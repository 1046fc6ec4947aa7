"""Stands for the heartbeat thread of each process in a run: it beats while its process runs or sleeps, and not else.

A beat comes before a call of its process's, or in the midst of its sleep, as soon as it is due. A process that is
stopped, or hangs in a call, does not beat.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from fsqueue.engine.awake import Awake
from fsqueue.errors import FsQueueError

if TYPE_CHECKING:
    from simulation.world import Machine

Beaten = Callable[[Callable[[], None], float], None]

_TICKS_A_GAP = 2


@dataclass
class _Heart:
    beat: Callable[[], None]
    interval_s: float
    awake: Awake
    due: float


class Pulse:
    """The beats of one process.

    Args:
        monotonic: that process's clock.
        beaten: called with a beat that was made, and how many seconds ago it was begun.
    """

    def __init__(self, monotonic: Callable[[], float], beaten: Beaten) -> None:
        self.hearts: dict[int, _Heart] = {}
        self._monotonic = monotonic
        self._beaten = beaten
        self._at_it = False

    def due_in_s(self) -> float:
        """In how many seconds there is something to do."""
        if self._at_it or not self.hearts:
            return float("inf")
        now = self._monotonic()
        first = min(min(each.due - now, each.awake.gap_s / _TICKS_A_GAP) for each in self.hearts.values())
        return max(0.0, first)

    def go_on(self) -> None:
        """Tick, and make the beats that are due."""
        if self._at_it:
            return
        self._at_it = True
        try:
            for heart in list(self.hearts.values()):
                if heart.awake.tick() >= heart.due:
                    heart.due = heart.awake.tick() + heart.interval_s
                    self._make(heart)
        finally:
            self._at_it = False

    def _make(self, heart: _Heart) -> None:
        began_at = self._monotonic()
        try:
            heart.beat()
        except (OSError, FsQueueError):  # the thread logs it, and beats again
            return
        self._beaten(heart.beat, self._monotonic() - began_at)
        heart.awake.tick()


class Hearts:
    """Takes the place of `fsqueue.engine.heartbeat.heartbeats` in a run.

    Attributes:
        machines: which process each actor's thread is.
    """

    def __init__(self) -> None:
        self.machines: dict[int, Machine] = {}
        self._keys = count(1)

    def run_in(self, machine: Machine, beaten: Beaten) -> None:
        """The actor of this thread is that process from now on."""
        machine.pulse = Pulse(machine.ops.monotonic, beaten)
        self.machines[threading.get_ident()] = machine

    def new_key(self) -> int:
        return next(self._keys)

    def register(self, key: int, beat: Callable[[], None], interval_s: float, awake: Awake, mount: int) -> None:
        machine = self.machines.get(threading.get_ident())
        if machine is not None and machine.pulse is not None:
            machine.pulse.hearts[key] = _Heart(beat, interval_s, awake, awake.tick() + interval_s)

    def unregister(self, key: int) -> None:
        for machine in self.machines.values():
            if machine.pulse is not None:
                machine.pulse.hearts.pop(key, None)
