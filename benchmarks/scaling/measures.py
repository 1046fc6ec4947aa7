"""What the parts of scale.py share: the parameters, a measure and its goal, filling, timing, counting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.disk.fileops import FileOps, using, wrapped
from subjects.sample import LEASE_TIMEOUT_S
from subjects.subject import put_all

Queue = FileSampleRefQueue[SampleRef]
FILL_BATCH = 1_000
BATCH = 64


@dataclass(frozen=True)
class Scale:
    """The parameters of a run.

    Attributes:
        seconds: how long things are watched.
        rounds: how often calls are timed.
        beside: another checkout, whose operations are timed in turns with this one's.
        durable: whether operators' queues fsync what is put.
        modify_ms: how long a modification takes on a simulated server; None: as on this mount, if it is a shared one.
    """

    directory: str
    backlog: int
    wide: int
    consumers: int
    producers: int
    seconds: float
    rounds: int
    beside: str | None = None
    durable: bool = False
    modify_ms: float | None = None


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        bound: the goal: at most this, or at least; None where there is no goal.
        verifies: whether missing the goal means that refs were lost or doubled.
    """

    name: str
    value: float
    unit: str = ""
    bound: float | None = None
    at_least: bool = False
    verifies: bool = False

    @property
    def met(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def figure(self) -> str:
        return f"{_round(self.value)} {self.unit}".rstrip()

    @property
    def goal(self) -> str:
        if self.bound is None:
            return ""
        return f"{'>=' if self.at_least else '<='} {_round(self.bound)} {self.unit}".rstrip()


def _round(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def open_queue(path: str, ops: FileOps | None = None, **arguments: Any) -> Queue:
    with using(ops or FileOps()):
        return FileSampleRefQueue(path, lease_timeout_s=LEASE_TIMEOUT_S, durable=False, **arguments)


def fill(queue: Queue, count: int, prefix: str = "fill") -> None:
    put_all(queue, [f"{prefix}-{number:08d}" for number in range(count)], FILL_BATCH)


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Counted:
    """File operations that are counted, and timed while they hold the order's lock.

    Attributes:
        ops: the table to open handles with.
        calls: how often each ran.
        held_s: how long each hold of the lock took.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.held_s: list[float] = []
        self._locked_at = 0.0
        self.ops = wrapped(FileOps(), self._around)

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls[name] += 1
        result = call(*args, **kwargs)
        if name == "lock" and result:
            self._locked_at = time.perf_counter()
        elif name == "unlock":
            self.held_s.append(time.perf_counter() - self._locked_at)
        return result


class Watched(Counted):
    """Also notes the times.

    Attributes:
        at: for each file operation, monotonic seconds and the CPU seconds that the process had used by then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at: list[tuple[float, float]] = []

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.at.append((time.monotonic(), time.process_time()))
        return super()._around(name, call, *args, **kwargs)


def checked(name: str, put: Sequence[str], got: Sequence[str]) -> Measure:
    """Refs that were lost or delivered twice."""
    counted = Counter(got)
    wrong = len(set(put) - counted.keys()) + sum(count - 1 for count in counted.values())
    return Measure(f"{name}: refs lost or doubled", wrong, "", 0, verifies=True)
