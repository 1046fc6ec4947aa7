"""A real pseudo-terminal for the program to run on."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

GUARD_S = 60.0
_OURS = ("NO_COLOR", "FSQUEUE_DIR", "COLUMNS", "LINES")


class Terminal:
    """A process on a terminal, of 30 lines unless told; killed if need be, and reaped, at the end of `with`.

    Attributes:
        text: everything that it has written so far.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        columns: int = 120,
        lines: int = 30,
    ) -> None:
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        plain = {key: value for key, value in os.environ.items() if key not in _OURS}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**plain, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
        )
        self.text = ""

    def settings(self) -> list[object]:
        """The terminal's settings now."""
        return termios.tcgetattr(self._theirs)

    def read_until(self, done: Callable[[str], bool], what: str) -> str:
        deadline = time.monotonic() + GUARD_S
        while not done(self.text):
            assert time.monotonic() < deadline, f"hung while waiting for {what}: {self.text[-2000:]!r}"
            self._read(0.05)
        return self.text

    def end(self) -> str:
        """Everything that the program writes until it ends by itself."""
        self.read_until(lambda _: self.process.poll() is not None, "the program's end")
        while self._read(0.0):
            pass
        return self.text

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def _read(self, patience_s: float) -> bool:
        if not select.select([self._fd], [], [], patience_s)[0]:
            return False
        self.text += os.read(self._fd, 1 << 16).decode("utf-8", "replace")
        return True

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(GUARD_S)
        os.close(self._fd)
        os.close(self._theirs)
