"""Say how long to wait from one look at a lock that somebody holds to the next.

Each look wakes a process up: where many wait, on few processors, their looks keep the holder from running. So whoever
waits goes by what it has seen. It looks about as often as it is likely to find the lock free, and no more than a few
times in a turn, which is as long for all who take turns: so all look equally often, and get equal shares.
"""

from __future__ import annotations

_SHORTEST_S = 0.00005
_GROWTH = 0.5
_BRISK_S = 0.002
_LONGEST_S = 0.02
_OF_A_TURN = 0.4
_SHORT_TURN_S = 0.002  # in which only a few take turns, whose looks cost little
_OF_A_WAIT = 2.0
_LONG_TURNS = 2.0
_LONG_TURN_S = 1.0
_SMOOTHING = 0.125


class LockPace:
    """Learn, for one handle, how long a turn at the lock takes and how much of it goes into waiting.

    Attributes:
        free: how often the lock was free at once since it had to be waited for; the owner counts it up.
    """

    def __init__(self) -> None:
        self.free = 0
        self._turn_s = 0.0  # from one taking to the next, mean
        self._wait_s = 0.0  # before a taking, mean
        self._taken_at = -1e9

    def taken(self, now: float, waited_s: float) -> None:
        """Note that the lock has been taken, after so long a wait."""
        turns, self.free = self.free + 1, 0
        turn_s = min((now - self._taken_at) / turns, _LONG_TURN_S)
        self._taken_at = now
        self._turn_s += (turn_s - self._turn_s) * _SMOOTHING
        self._wait_s += (waited_s / turns - self._wait_s) * _SMOOTHING

    def pause_s(self, waited_s: float) -> float:
        """Return for how long to pause, on average, after a wait of so long; one that is unusually long slows down."""
        usual_s = min(_OF_A_TURN * (self._turn_s - _SHORT_TURN_S), _OF_A_WAIT * self._wait_s)
        brisk_s = min(_GROWTH * waited_s, _BRISK_S)
        late_s = _GROWTH * (waited_s - _LONG_TURNS * self._turn_s)
        return min(_LONGEST_S, max(_SHORTEST_S, usual_s, brisk_s, late_s))
