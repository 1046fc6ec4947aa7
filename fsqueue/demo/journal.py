"""Each process's journal: JSON lines in a file of its own; and a reader that follows all of them.

The supervisor's display, its decisions and the final report rest on these lines and on the queue alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

Kind = Literal[
    "started", "preparing", "prepared", "found", "put", "paused", "resumed", "joined", "delivered", "step", "acked",
    "lease_lost", "rewound", "failed", "acceptance", "surviving", "finished",
]  # fmt: skip


class JournalEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a journal: something that a process did.

    Attributes:
        at: seconds since the epoch, for people and rates.
        worker: which process, such as ``trainer-0``.
        loss: of this process's own refs in a step.
        global_loss: of all ranks' refs in a step.
        value: an acceptance.
        note: a digest, a reason, what is done now.
    """

    kind: Kind
    at: float
    worker: str
    ids: tuple[str, ...] = ()
    step: int = 0
    loss: float | None = None
    global_loss: float | None = None
    value: float | None = None
    note: str = ""


class Journal:
    """Appends events to ``<log>/<worker>.<start>.jsonl``, one write(2) a line, so that a SIGKILL tears none."""

    def __init__(self, log_dir: str, worker: str, start: int) -> None:
        self.worker = worker
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._fd = os.open(os.path.join(log_dir, f"{worker}.{start}.jsonl"), flags, 0o666)
        self.write("started")

    def write(self, kind: Kind, ids: Iterable[str] = (), **facts: Any) -> None:
        """Append an event; facts are its other fields."""
        event = JournalEvent(kind, time.time(), self.worker, tuple(ids), **facts)
        os.write(self._fd, msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        os.close(self._fd)


class JournalReader:
    """Reads every event of a log directory once, as they are written."""

    def __init__(self, log_dir: str) -> None:
        self._log_dir = log_dir
        self._offsets: dict[str, int] = {}

    def read(self) -> Iterator[JournalEvent]:
        """Yield the events since the last call; a line without its end is left for the next one."""
        found = [(parts, name) for name in os.listdir(self._log_dir) if (parts := _parts(name))]
        for _, name in sorted(found):
            with open(os.path.join(self._log_dir, name), "rb") as f:
                f.seek(self._offsets.get(name, 0))
                whole, _, _ = f.read().rpartition(b"\n")
            if whole:
                self._offsets[name] = self._offsets.get(name, 0) + len(whole) + 1
                yield from (msgspec.json.decode(line, type=JournalEvent) for line in whole.split(b"\n"))


def starts_of(log_dir: str, worker: str) -> int:
    """Count how often a worker was started, by its journals."""
    parsed = map(_parts, os.listdir(log_dir))
    return max((found[1] for found in parsed if found and found[0] == worker), default=0)


def _parts(name: str) -> tuple[str, int] | None:
    """Return worker and start in a journal's file name; None for other files."""
    worker, _, start = name.removesuffix(".jsonl").rpartition(".")
    return (worker, int(start)) if name.endswith(".jsonl") and start.isdecimal() else None
