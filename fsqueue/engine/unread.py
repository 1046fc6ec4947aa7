"""Know which refs' files cannot be read, so that they end in failed/ and not in an error of every get."""

from __future__ import annotations

from collections.abc import Callable

_OUTAGE_S = 30.0
_REMEMBERED = 4096


class Unread:
    """Count how often the files of refs could not be read, though they are there.

    An outage, in which no file can be read, is no ref's fault: until another one was read, the count means something
    only after `_OUTAGE_S` seconds.
    """

    def __init__(self, monotonic: Callable[[], float], attempts: int) -> None:
        self._monotonic = monotonic
        self._attempts = attempts
        self._of: dict[str, tuple[int, float]] = {}
        self._read_at = -1e9

    def note_success(self) -> None:
        """Note that the file of some ref was read."""
        if self._of:
            self._read_at = self._monotonic()

    def is_used_up(self, stem: str) -> bool:
        """Count one more failure; return whether the ref has had as many as it may have."""
        now = self._monotonic()
        times, first_at = self._of.get(stem, (0, now))
        if times + 1 >= self._attempts and (self._read_at > first_at or now - first_at >= _OUTAGE_S):
            self._of.pop(stem, None)
            return True
        self._of[stem] = times + 1, first_at
        if len(self._of) > _REMEMBERED:
            del self._of[next(iter(self._of))]
        return False
