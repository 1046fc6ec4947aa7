"""The calls of a history, and how they are recorded: a line when one begins, a line when it has returned."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

OVERLAP = "overlap"
Line = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of one handle, or what an observer saw.

    Attributes:
        kind: put, get, ack, fail, release, renew, beat, rewind (by the owner itself), requeue, move (by hand), died
            (and seen by others at once), arrived (an observer saw the ids reach done/ or failed/), overlap (two held
            the lock at one instant).
        owner: the handle's owner name; a handle that was opened after a restart is another owner.
        ids: what was asked for; of a get, what it returned; of a beat, what the owner leases.
        returned_at: None where it never returned, or raised.
        over_at: the latest moment at which it may have taken effect.
        lost: the ids that it reported as lost.
        final: of a fail: it was not retryable.
        files: of a get: which copy of each id it leased, where an observer knows.
    """

    kind: str
    owner: str
    ids: tuple[str, ...]
    invoked_at: float
    returned_at: float | None
    over_at: float = inf
    lost: tuple[str, ...] = ()
    final: bool = False
    files: tuple[int, ...] = ()

    def done_with(self, sample_id: str) -> bool:
        """Whether it surely ended the id's life in the queue: it returned, and does not report it as lost."""
        settled = self.kind in ("ack", "arrived") or (self.kind == "fail" and self.final)
        return settled and self.returned_at is not None and sample_id not in self.lost

    def overlaps(self, other: Call) -> bool:
        return self.invoked_at <= other.over_at and other.invoked_at <= self.over_at


class Log:
    """Writes calls as they happen; a process that is killed leaves its last call without an end.

    Args:
        write: takes one line.
        clock: one that all who share the history read; the default is one for all processes of a host.
        thread: tells the calls of one thread from those of another that has a log of its own to the same file.
    """

    def __init__(
        self, write: Callable[[Line], None], clock: Callable[[], float] = time.monotonic, thread: str = "main"
    ) -> None:
        self._write = write
        self._clock = clock
        self._thread = thread
        self._calls = 0

    @staticmethod
    def to_file(path: str | os.PathLike[str], clock: Callable[[], float] = time.monotonic, thread: str = "main") -> Log:
        """A log that appends to a file of this process's own, or one shared on a local disk."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        return Log(lambda line: _append(fd, line), clock, thread)

    def begin(self, kind: str, owner: str, ids: Iterable[str] = (), **facts: Any) -> str:
        """A call is about to be made; returns its key."""
        self._calls += 1
        key = f"{self._thread}/{owner}/{os.getpid()}/{self._calls}"
        self._write({"key": key, "kind": kind, "owner": owner, "ids": list(ids), "invoked_at": self._clock(), **facts})
        return key

    def end(self, key: str, **facts: Any) -> None:
        """The call has returned; facts may replace those given at its beginning."""
        now = self._clock()
        self._write({"key": key, "returned_at": now, "over_at": now, **facts})

    def gave_up(self, key: str) -> None:
        """The call raised, or its process is known to be dead: what it has not done by now, it never does."""
        self._write({"key": key, "over_at": self._clock()})

    def saw(self, kind: str, owner: str, ids: Iterable[str] = ()) -> None:
        """Something happened at this instant."""
        self.end(self.begin(kind, owner, ids))


def _append(fd: int, line: Line) -> None:
    os.write(fd, json.dumps(line).encode() + b"\n")


def calls_in(lines: Iterable[Line]) -> list[Call]:
    """The calls that a log's lines tell of."""
    calls: dict[str, Line] = {}
    for line in lines:
        calls.setdefault(line["key"], {}).update(line)
    return [_call(facts) for facts in calls.values() if "kind" in facts]


def read(path: str | os.PathLike[str]) -> list[Call]:
    """The calls in a log file; a line that a kill has cut short is skipped."""
    lines = []
    with open(path, "rb") as f:
        for line in f:
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return calls_in(lines)


def _call(facts: Line) -> Call:
    return Call(
        facts["kind"],
        facts["owner"],
        tuple(facts["ids"]),
        facts["invoked_at"],
        facts.get("returned_at"),
        facts.get("over_at", inf),
        tuple(facts.get("lost", ())),
        bool(facts.get("final", False)),
        tuple(facts.get("files", ())),
    )


class Recorded:
    """A queue whose calls go into a log; refs in and out as on the queue itself.

    Args:
        owner: the name in the log of what leases; the queue's own unless given.
        file_of: tells which file an (id, owner) stands for, where an observer knows.
    """

    def __init__(
        self, queue: Any, log: Log, *, owner: str | None = None, file_of: Callable[[str, str], int] | None = None
    ) -> None:
        self.queue = queue
        self.owner: str = owner or queue.owner
        self._log = log
        self._file_of = file_of

    def put(self, refs: list[Any]) -> None:
        self._record("put", refs, lambda: self.queue.put(refs))

    def get(self, max_refs: int, timeout_s: float | None = None, **options: Any) -> list[Any]:
        key = self._log.begin("get", self.owner)
        try:
            refs: list[Any] = self.queue.get(max_refs, timeout_s, **options)
        except BaseException:
            self._log.gave_up(key)
            raise
        files = [self._file_of(sample_id, self.owner) for sample_id in _ids(refs)] if self._file_of else []
        self._log.end(key, ids=_ids(refs), files=files)
        return refs

    def ack(self, refs: list[Any], **options: Any) -> list[str]:
        return self._record("ack", refs, lambda: self.queue.ack(refs, **options))

    def fail(self, refs: list[Any], reason: str, retryable: bool) -> list[str]:
        return self._record("fail", refs, lambda: self.queue.fail(refs, reason, retryable), final=not retryable)

    def release(self, refs: list[Any]) -> list[str]:
        return self._record("release", refs, lambda: self.queue.release(refs))

    def renew(self, refs: list[Any]) -> list[str]:
        return self._record("renew", refs, lambda: self.queue.renew(refs))

    def _record(self, kind: str, refs: list[Any], call: Callable[[], list[str] | None], **facts: Any) -> list[str]:
        key = self._log.begin(kind, self.owner, _ids(refs), **facts)
        try:
            lost = call() or []
        except BaseException:
            self._log.gave_up(key)
            raise
        self._log.end(key, lost=lost)
        return lost


def _ids(refs: Iterable[Any]) -> list[str]:
    return [ref.sample_id for ref in refs]
