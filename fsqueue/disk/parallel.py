"""Make file operations side by side, on mounts where that pays.

A Linux NFS client holds a directory's lock for the whole of a create, and the mount's for the whole of a rename
between directories, but it lets writes with their close, stamps, lookups and reads overlap, and creates in different
directories. On a local disk only fsyncs take long enough to be worth a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from fsqueue.disk.fileops import FileOps

T = TypeVar("T")
U = TypeVar("U")

IoThreads = int | Literal["auto"]
Kind = Literal["look", "read", "stamp", "write", "one"]
"""What operations do that take about as long as each other; "one": whatever is made beside another one."""

_THREADS = 16
_SYNCS = 8
_BELIEVED = 16
_WORTH_A_THREAD_S = 0.0005


class Overlap:
    """Make those file operations of one handle that do not depend on each other.

    Args:
        io_threads: "auto": side by side on a mount that is not known to be local, where the first of their kind took
            long; 1: always one after the other; more: always so many at a time.
        remote: whether the mount is not known to be local.
        durable: whether an fsync does anything there: where it does not, it is not worth a thread.

    Attributes:
        in_turn: they are always made one after the other.
    """

    def __init__(self, ops: FileOps, io_threads: IoThreads, remote: bool, durable: bool = True) -> None:
        self._ops = ops
        self._measures = io_threads == "auto" and remote
        self._slow: dict[Kind, bool] = {}  # as the last one of its kind that was timed
        self._believed: Counter[Kind] = Counter()  # for how many calls more
        self._threads = 1 if io_threads == "auto" and not remote else _several(io_threads, _THREADS)
        self.in_turn = self._threads < 2
        self.syncs = _several(io_threads, _SYNCS) if durable else 1

    def pays(self, kind: Kind) -> bool:
        """Return whether the next operations of a kind are made side by side, as far as is known before the first."""
        return not self.in_turn and (not self._measures or self._slow.get(kind, False))

    def ahead(self, kind: Kind, work: Callable[[T], U], items: Sequence[T]) -> Callable[[T], U]:
        """Return what returns or raises for each of the items what work does; to be called in their order.

        Where work is done side by side, all of it has ended when this returns. Elsewhere each call does its own, so
        that the caller's operations come in between.
        """
        if self.in_turn or len(items) < 2:
            return work
        outcomes = {item: Outcome(work, item) for item in items}
        runs = [outcome.run for outcome in outcomes.values()]
        if self._is_to_be_timed(kind):
            started = self._ops.monotonic()
            runs.pop(0)()
            self._slow[kind] = self._ops.monotonic() - started >= _WORTH_A_THREAD_S
            if not self._slow[kind]:
                outcomes, runs = {items[0]: outcomes[items[0]]}, []
        self._ops.each(_call, runs, self._threads)
        return lambda item: outcomes.pop(item)() if item in outcomes else work(item)

    def _is_to_be_timed(self, kind: Kind) -> bool:
        """Return whether the first operation is to be made alone; beside others, a thread's turns count as its time."""
        if not self._measures:
            return False
        left = self._believed[kind] if self._slow.get(kind) else 0
        self._believed[kind] = left - 1 if left else _BELIEVED
        return not left

    def beside(self, work: Callable[[], object], other: Callable[[], object]) -> bool:
        """Make work, and where that pays the other at the same time; return whether it was made.

        An error of either is raised once both have ended, that of work first.
        """
        if self.in_turn:
            work()
            return False
        started, both = self._ops.monotonic(), self.pays("one")
        try:
            if both:
                outcomes = [Outcome(_call, work), Outcome(_call, other)]
                self._ops.each(_call, [outcome.run for outcome in outcomes], self._threads)
                for outcome in outcomes:
                    outcome()
            else:
                work()
        finally:
            self._slow["one"] = self._ops.monotonic() - started >= _WORTH_A_THREAD_S
        return both


def _call(work: Callable[[], U]) -> U:
    return work()


class Outcome(Generic[T, U]):
    """Make a call, and keep its result, or its error, for somebody who asks for it later, once."""

    __slots__ = ("_error", "_item", "_result", "_work")

    def __init__(self, work: Callable[[T], U], item: T) -> None:
        self._work = work
        self._item = item
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._result = self._work(self._item)
        except Exception as error:
            self._error = error

    def __call__(self) -> U:
        if self._error is not None:
            raise self._error
        return self._result


def _several(io_threads: IoThreads, unless_given: int) -> int:
    return unless_given if io_threads == "auto" else io_threads
