"""Start peer processes, here or on another node, and talk to them in JSON lines over stdin and stdout.

A peer ends when its stdin does, so none outlives whoever started it.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

MODULE = "fsqueue.operate.doctor.peer_tasks"
ANSWER_TIMEOUT_S = 180.0
_END_PATIENCE_S = 5.0
_START_S = 0.05


class PeerError(RuntimeError):
    """Say that a task failed in a peer, or that the peer went away.

    Attributes:
        code: the system's error number where the task failed with an OSError, else None.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


def local_command() -> list[str]:
    """Return the command that starts a peer on this host."""
    return [sys.executable, "-m", MODULE]


class Peer:
    """Start one peer process, and talk to it.

    Args:
        name: what messages call it.
        directory: the directory that it works in, as seen from there.
    """

    def __init__(self, name: str, directory: str, command: Sequence[str] | None = None) -> None:
        self.name = name
        self.directory = directory
        self.command = list(command or local_command())
        self._buffer = b""
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), bufsize=0
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def send(self, task: str, *, armed: bool = False, **arguments: Any) -> None:
        """Start a task; an armed one says when it is ready and then waits for `go`."""
        self._write({"task": task, "arguments": arguments, "armed": armed})

    def go(self, in_s: float) -> None:
        """Let an armed task start so many seconds after this message arrives."""
        self._write({"in_s": in_s})

    def receive(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Return the result of the task sent last.

        Raises:
            PeerError: the task failed, or no answer came.
        """
        answer = json.loads(self._line(timeout_s))
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}", answer.get("errno"))
        return answer["result"]

    def call(self, task: str, **arguments: Any) -> Any:
        """Run a task and return its result."""
        self.send(task, **arguments)
        return self.receive()

    def close(self, patience_s: float = _END_PATIENCE_S) -> None:
        """End the process: by the end of its stdin, or by force where that takes too long."""
        self._stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._stdout.close()

    def _write(self, message: dict[str, Any]) -> None:
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise PeerError(self._gone()) from None

    def _line(self, timeout_s: float) -> bytes:
        fd = self._stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise PeerError(f"{self.name}: no answer within {timeout_s:.0f} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise PeerError(self._gone())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _gone(self) -> str:
        command = shlex.join(self.command)
        return f"{self.name}: the process is gone; `{command}` has to find a Python that can import this fsqueue"


class Peers(ExitStack):
    """Start peers, and end them on leaving the block: at once where it ends with an error."""

    def start(self, name: str, directory: str, command: Sequence[str] | None = None) -> Peer:
        peer = Peer(name, directory, command)
        self.push(lambda kind, error, trace: peer.close(0.0 if error else _END_PATIENCE_S))
        return peer


def together(peers: Sequence[Peer], task: str, **arguments: Any) -> list[Any]:
    """Run one task in all of them at once; each works in its own directory and gets its name as ``key``.

    Raises:
        PeerError: it failed in one of them; the others have ended by then.
    """
    return side_by_side([(peer, task, arguments) for peer in peers])


def side_by_side(work: Sequence[tuple[Peer, str, dict[str, Any]]]) -> list[Any]:
    """Run several tasks at once, each in a peer of its own; see `together`."""
    for peer, task, arguments in work:
        peer.send(task, armed=True, directory=peer.directory, key=peer.name, **arguments)
    for peer, _, _ in work:
        peer.receive()
    start = time.monotonic() + _START_S
    for peer, _, _ in work:
        peer.go(start - time.monotonic())
    results: list[Any] = []
    errors: list[PeerError] = []
    for peer, _, _ in work:
        try:
            results.append(peer.receive())
        except PeerError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


def environment() -> dict[str, str]:
    """Return this process's environment, with this very package importable though it may not be installed."""
    package_parent = str(Path(__file__).resolve().parents[3])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": package_parent + (os.pathsep + path if path else "")}
