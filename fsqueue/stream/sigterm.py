"""Have SIGTERM withdraw a member, from when it begins to join until it has left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Literal

from fsqueue.errors import InvalidArgumentError

OnSigterm = Literal["withdraw"] | None


class SigtermHandler:
    """Take SIGTERM for one member: run the handler that was there before, or raise SystemExit, once.

    Args:
        on_sigterm: "withdraw", in the main thread only; None: this does nothing.

    Attributes:
        told_to_stop: the signal has come.
    """

    def __init__(self, on_sigterm: OnSigterm) -> None:
        if on_sigterm is not None:
            _require_sigterm(on_sigterm)
        self._wanted = on_sigterm is not None
        self._before: Callable[[int, FrameType | None], object] | int | None = None
        self.told_to_stop = False

    def install(self) -> None:
        if self._wanted and self._before is None:
            self._before = signal.signal(signal.SIGTERM, self._stop)

    def restore(self) -> None:
        """Put the handler back that was there before, unless somebody has put another one over this one."""
        before = self._before
        if before is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._stop:
            signal.signal(signal.SIGTERM, before)
            self._before = None

    def raise_if_told(self) -> None:
        """Raise SystemExit where the signal has come, and the handler of before has let the process go on."""
        if self.told_to_stop:
            raise SystemExit(128 + signal.SIGTERM)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.told_to_stop = self.told_to_stop, True
        if callable(self._before):
            self._before(number, frame)
        elif self._before == signal.SIG_DFL and not again:  # Slurm sends two: the second cuts nothing short
            raise SystemExit(128 + number)


def _require_sigterm(on_sigterm: object) -> None:
    if on_sigterm != "withdraw":
        raise InvalidArgumentError("on_sigterm", "'withdraw' or None", on_sigterm)
    if threading.current_thread() is not threading.main_thread():
        raise InvalidArgumentError("on_sigterm", "None outside the main thread, which handles signals", on_sigterm)
