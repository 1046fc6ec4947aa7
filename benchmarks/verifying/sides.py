"""The two sides of a verification, and what a check says."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsqueue.disk import fileops
from fsqueue.operate.doctor.peer import MODULE, Peer, PeerError, Peers


@dataclass(frozen=True)
class Verdict:
    """Whether one promise holds.

    Attributes:
        holds: None where nothing is promised and the figures are worth knowing.
    """

    promise: str
    holds: bool | None
    text: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How much is tried; see the command's help."""

    lock: str
    refs: int
    files: int
    rounds: int
    lease_timeout_s: float


@dataclass
class Sides:
    """Side A, side B, and the directory that both work in, as this process sees it.

    Attributes:
        start_victim: starts one more process like side B, to be killed.
        lock: the lock mode of the queues: the one asked for, or "none" once flock turned out to be missing.
    """

    directory: str
    a: Peer
    b: Peer
    start_victim: Callable[[], Peer]
    options: Options
    lock: str = field(init=False)

    def __post_init__(self) -> None:
        self.lock = self.options.lock

    def describe(self) -> dict[str, dict[str, Any]]:
        """What each side is.

        Raises:
            PeerError: a side does not see the directory, or runs another version.
        """
        found = {peer.name: peer.call("hello", directory=peer.directory) for peer in (self.a, self.b)}
        for name, side in found.items():
            if not side["present"]:
                directory = (self.a if name == "A" else self.b).directory
                raise PeerError(f"{name} ({side['host']}) does not see {directory}: is it the same filesystem?")
        if found["A"]["fsqueue"] != found["B"]["fsqueue"]:
            raise PeerError(f"A runs fsqueue {found['A']['fsqueue']}, B {found['B']['fsqueue']}: install the same one")
        return found

    def make_directory(self, name: str) -> None:
        fileops.current().mkdir(os.path.join(self.directory, name), 0o777)

    def open_queue(self, name: str, **settings: Any) -> None:
        """Open one queue on both sides, A first."""
        for peer in (self.a, self.b):
            self.queue(peer, "open", name, lock=self.lock, **settings)

    def queue(self, peer: Peer, call: str, name: str, **arguments: Any) -> Any:
        """One call on a queue, as one side sees it."""
        return peer.call(f"queue_{call}", queue=os.path.join(peer.directory, name), **arguments)

    def drain(self, peer: Peer, name: str, wanted: int, timeout_s: float) -> list[str]:
        """Get until so many refs have come, or none came for that long."""
        ids: list[str] = []
        while len(ids) < wanted:
            more = self.queue(peer, "get", name, count=wanted - len(ids), timeout_s=timeout_s)
            if not more:
                break
            ids += more
        return ids


def start(peers: Peers, name: str, directory: str, command: Sequence[str] | None = None) -> Peer:
    """Start a peer that knows the tasks of tasks.py."""
    peer = peers.start(name, directory, command)
    peer.call("learn", source=Path(__file__).with_name("tasks.py").read_text(encoding="utf-8"))
    return peer


def remote_command(prefix: str, python: str) -> list[str]:
    """The command that starts a peer through another, such as ``ssh node2``, which takes a shell command."""
    return [*shlex.split(prefix), shlex.join([python, "-m", MODULE])]


def milliseconds(seconds: Iterable[float]) -> dict[str, float]:
    """Median and maximum."""
    values = list(seconds)
    return {"median_ms": round(statistics.median(values) * 1e3, 3), "max_ms": round(max(values) * 1e3, 3)}
