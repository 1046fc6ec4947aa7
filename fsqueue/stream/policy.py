"""Say who is missed in a stream and for how long: one small file, so that all processes of a run agree.

    stream/policy.json     {"silence_s": 30.0, "await_s": 1800.0, "restart_s": 0.0, "quorum": 0}

Without the file, the defaults hold. They suit a cluster that preempts: a member that left politely or fell silent is
awaited, a member whose work raised stops the others.
"""

from __future__ import annotations

import math

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import read_json
from fsqueue.errors import QueueConfigError

POLICY = "policy.json"
BEAT_S = 5.0
_BEATS_A_SILENCE = 6
_FEWEST_BEATS = 3
_LEAST_SILENCE_S = 0.1


class StreamPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a stream's members agree on.

    Attributes:
        silence_s: an open member without a heartbeat for so many seconds has fallen silent. More than the longest time
            for which a process may hold the interpreter's lock.
        await_s: seconds for which the others wait for a member that withdrew or fell silent, before they stop.
        restart_s: seconds for which they wait for one whose work raised; 0: they stop at once.
        quorum: so many producers that have closed end the stream, where no other one is at work; 0: all have to.
    """

    silence_s: float = 30.0
    await_s: float = 1800.0
    restart_s: float = 0.0
    quorum: int = 0

    @property
    def beat_s(self) -> float:
        """Return how often a member shows that it lives, in seconds."""
        return min(BEAT_S, self.silence_s / _BEATS_A_SILENCE)

    def silence_of(self, beat_s: float | None) -> float:
        """Return after how many seconds a member with this heartbeat has fallen silent."""
        return max(self.silence_s, _FEWEST_BEATS * (beat_s or 0.0))

    def validate(self, path: str) -> None:
        """Raise a QueueConfigError where a value can mean nothing."""
        for name in ("silence_s", "await_s", "restart_s"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            least = _LEAST_SILENCE_S if name == "silence_s" else 0
            if not is_number or value < least:
                raise QueueConfigError(
                    path, f"needs as {name} a number of seconds of {least:g} or more, found {value!r}"
                )
        if not isinstance(self.quorum, int) or isinstance(self.quorum, bool) or self.quorum < 0:
            raise QueueConfigError(path, f"needs as quorum a number of producers, 0 for all, found {self.quorum!r}")


def read_policy(directory: Directory) -> StreamPolicy:
    """Return a stream's policy: the default one where it has none that can be read."""
    return read_json(directory, POLICY, StreamPolicy) or StreamPolicy()
