"""A handle on a shared mount, in a time that a test moves on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import Queue, Tap, open_tapped

IDLE_S = 10.0


class Shared:
    """A handle on a mount of some kind, in a time that goes on only while it sleeps.

    Attributes:
        made: how many file operations it made, by the second since it began to wait.
    """

    def __init__(self, path: Path, mount: str, **arguments: Any) -> None:
        self.tap = Tap()
        self.now = self.began = 1_000.0
        self.made: Counter[int] = Counter()
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.tap.ops.filesystem_type = lambda path: mount
        self.tap.ops.monotonic = lambda: self.now
        self.tap.ops.sleep = self._sleep
        self.queue: Queue = open_tapped(self.tap, path, **({"lease_timeout_s": 600.0} | arguments))
        self.tap.before = self._note

    def _note(self, name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name != "utime":  # a beat: the heart's thread lives in another time
            self.made[int(self.now - self.began)] += 1

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        for at, act in [each for each in self.due if each[0] <= self.now]:
            self.due.remove((at, act))
            act()

    def after(self, seconds: float, act: Callable[[], object]) -> float:
        """Act once it has slept for so long; return when that is."""
        self.due.append((self.began + seconds, act))
        return self.began + seconds

    def a_second(self, until_s: float) -> float:
        """Return how many operations a second it made from the tenth second on."""
        return sum(made for second, made in self.made.items() if IDLE_S <= second < until_s) / (until_s - IDLE_S)
