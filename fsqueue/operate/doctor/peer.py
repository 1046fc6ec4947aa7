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
_START_PATIENCE_S = 90.0
_START_S = 0.05


class PeerError(RuntimeError):
    """Say that a task failed in a peer, or that the peer went away.

    Attributes:
        code: the system's error number where the task failed with an OSError, else None.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class PeerGoneError(PeerError):
    """Say that a peer has ended, or that it does not answer."""


def local_command(module: str) -> list[str]:
    """Return the command that starts a peer on this host."""
    return [sys.executable, "-m", module]


class Peer:
    """Start one peer process, and talk to it.

    Args:
        name: what messages call it.
        directory: the directory that it works in, as seen from there.
        command: what starts it; None: this Python does, with the module of its tasks.
        answer_s: seconds that an answer may take.
    """

    def __init__(
        self,
        name: str,
        directory: str,
        command: Sequence[str] | None = None,
        module: str = MODULE,
        answer_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.directory = directory
        self.command = list(command or local_command(module))
        self._answer_s = answer_s
        self._number = self._answered = 0
        self._buffer = b""
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=None if command else _package_parent(),  # `-m` would take an fsqueue in the current directory
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def send(self, task: str, *, armed: bool = False, **arguments: Any) -> None:
        """Start a task; an armed one says when it is ready and then waits for `go`."""
        self._number += 1
        self._write({"number": self._number, "task": task, "arguments": arguments, "armed": armed})

    def go(self, in_s: float) -> None:
        """Let an armed task start so many seconds after this message arrives."""
        self._write({"in_s": in_s})

    def receive(self) -> Any:
        """Return the result of the task sent last.

        Raises:
            PeerError: the task failed, or no answer came.
        """
        deadline = time.monotonic() + (self._answer_s if self._answered else max(self._answer_s, _START_PATIENCE_S))
        answer: dict[str, Any] = {}
        while answer.get("number") != self._number:  # what a login greets with, or an answer that came too late
            answer = _parsed(self._line(deadline))
        self._answered += 1
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
            raise PeerGoneError(self._gone()) from None

    def _line(self, deadline: float) -> bytes:
        fd = self._stdout.fileno()
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise PeerGoneError(f"{self.name}: no answer in time: it hangs, or the mount is very slow")
            data = os.read(fd, 1 << 16)
            if not data:
                raise PeerGoneError(self._gone())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _gone(self) -> str:
        if self._answered:
            return f"{self.name}: the process has ended, or the connection to it: try again"
        command = shlex.join(self.command)
        needed = "has to find a Python that can import this fsqueue (--peer-python names it)"
        return f"{self.name}: the process is gone; `{command}` {needed}"


class Peers:
    """Start peers, and end them on leaving the block: at once where it ends with an error."""

    def __init__(self, answer_s: float = ANSWER_TIMEOUT_S) -> None:
        self._answer_s = answer_s
        self._started: list[Peer] = []

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(at_once=error is not None)

    def start(self, name: str, directory: str, command: Sequence[str] | None = None, module: str = MODULE) -> Peer:
        peer = Peer(name, directory, command, module, self._answer_s)
        self._started.append(peer)
        return peer

    def end(self, at_once: bool = False) -> None:
        """End all that were started."""
        with ExitStack() as stack:
            while self._started:
                stack.callback(self._started.pop(0).close, 0.0 if at_once else _END_PATIENCE_S)


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the message in a line; nothing where the line is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


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
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": _package_parent() + (os.pathsep + path if path else "")}


def _package_parent() -> str:
    return str(Path(__file__).resolve().parents[3])
