"""Leave refs alone for a while that could not be claimed or read, so that others come first."""

from __future__ import annotations

from collections.abc import Callable

SWEEP_S = 60.0
_REFUSED_S = 1.0


class Refused:
    """Remember the refs that could not be claimed, so that they do not fail every call: each is left alone for longer.

    The first error costs no time, as one that passes; after the second it is a second, then two, and so on.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._of: dict[str, tuple[int, float, Exception]] = {}

    def add(self, stem: str, error: Exception) -> None:
        """Note that this ref could not be claimed, and why."""
        times = self._of[stem][0] + 1 if stem in self._of else 1
        pause_s = min(_REFUSED_S * 2.0 ** (times - 2), SWEEP_S) if times > 1 else 0.0
        self._of[stem] = times, self._monotonic() + pause_s, error.with_traceback(None)

    def discard(self, stem: str) -> None:
        """Note that it could be, after all."""
        self._of.pop(stem, None)

    def why(self) -> dict[str, Exception]:
        """Return what was said of each when it was tried last."""
        return {stem: error for stem, (_, _, error) in self._of.items()}

    def __bool__(self) -> bool:
        return bool(self._of)

    def now(self) -> set[str]:
        """Return the stems of those that are to be left alone now; forget those that have been for long enough."""
        time = self._monotonic()
        self._of = {stem: found for stem, found in self._of.items() if found[1] > time - 2 * SWEEP_S}
        return {stem for stem, (_, until, _) in self._of.items() if until > time}
