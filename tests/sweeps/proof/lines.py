"""Raise an exception at one chosen line of the package, wherever it is: what a signal handler may do at any moment."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import fsqueue

_PACKAGE = os.path.dirname(fsqueue.__file__) + os.sep
_NEVER = 1 << 60
HANG_S = 30


class Tripwire:
    """Count the lines of the package that a call runs in this thread, and raise at the one that is wanted.

    Attributes:
        lines: how many were run so far.
        where: file and line at which this raised; None as long as it has not.
    """

    def __init__(self, at: int = _NEVER, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.lines = 0
        self.where: str | None = None
        self._at = at
        self._error = error

    def run(self, call: Callable[[], Any]) -> Any:
        """Return what the call does; raise what it raises, normally the error that was planted in it."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._step if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and self.where is None and not _in_finalizer(frame):
            self.lines += 1
            if self.lines == self._at:
                self.where = f"{frame.f_code.co_filename.removeprefix(_PACKAGE)}:{frame.f_lineno}"
                raise self._error(self.where)
        return self._step


def _in_finalizer(frame: FrameType | None) -> bool:
    """Return whether an object's end runs this frame: the interpreter swallows what is raised there."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def lines_of(call: Callable[[], Any]) -> int:
    """Return how many lines of the package a call runs."""
    wire = Tripwire()
    wire.run(call)
    return wire.lines


@contextmanager
def hang_is_an_error(what: str) -> Iterator[None]:
    """Raise in the main thread when a block takes `HANG_S` seconds, which nothing in it does unless it hangs."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hung after {what}")

    handler = signal.signal(signal.SIGALRM, give_up)
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)
        signal.signal(signal.SIGALRM, handler)


def is_lockable(path: str | os.PathLike[str]) -> bool:
    """Return whether another open file can lock this one at once."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
