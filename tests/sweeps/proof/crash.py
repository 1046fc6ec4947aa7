"""Run an operation in a child that dies at one file operation, and judge what it left behind.

Two ways to die: ``os._exit`` at the point itself, and a SIGKILL that the parent sends once the child, stopped at
the point, has told it so through a pipe.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsqueue.disk import fileops
from fsqueue.operate.check import Violation, check_queue, repair
from tests.sweeps.proof import tally
from tests.sweeps.proof.operations import FAILED, LIVE, Operation
from tests.sweeps.proof.stages import CORRUPT, Stage, new_batch
from tests.sweeps.proof.verdict import Bystanders, StoppedClock, assert_drains, assert_landed, census

_FINISHED, _DIED, _UNEXPECTED = 0, 70, 71


@dataclass(frozen=True)
class Point:
    """One crash point: before or after the at-th file operation, counted from 0."""

    at: int
    after: bool
    killed: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} file operation {self.at}"


class Trap:
    """Counts file operations once it is armed, and calls die at its point."""

    def __init__(self, point: Point, die: Callable[[], None]) -> None:
        self.armed = False
        self._point = point
        self._die = die
        self._seen = 0
        self._mutex = threading.Lock()

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.armed:
            return call(*args, **kwargs)
        with self._mutex:
            hit = self._seen == self._point.at
            self._seen += 1
        if hit and not self._point.after:
            self._die()
        try:
            return call(*args, **kwargs)
        finally:
            if hit:
                self._die()


def crash(path: Path, operation: Operation, size: int, point: Point, **options: Any) -> bool:
    """Run the operation up to the point and judge; returns whether it came so far before it had finished."""
    batch = new_batch(size)
    clock = StoppedClock()
    with fileops.using(clock):
        bystanders = None if operation.bare else Bystanders.settle_in(path, operation)
    died = _run_in_child(Stage(path, batch, {**options, **operation.options}), operation, bystanders, point)
    try:
        _judge(path, batch, operation, bystanders, finished=not died)
    except AssertionError as error:
        raise AssertionError(f"{operation} with a batch of {size}, died {point}: {error}") from error
    finally:
        if bystanders is not None:
            bystanders.queue.close()
    return died


def _judge(path: Path, batch: list[Any], operation: Operation, bystanders: Bystanders | None, finished: bool) -> None:
    known = list(batch)
    if bystanders is not None:
        found = census(path)
        known.append(bystanders.waiting)
        bystanders.assert_untouched(found, path)
        assert_landed(found, batch, operation, finished)
        damage = [] if operation.damaged else checked(path)
        assert damage == [], f"check finds {damage}"
    elif not finished:
        with fileops.using(StoppedClock()):
            Stage(path, [], {}).open().close()
    assert_drains(path, known, at_once=not operation.waits, may_fail=FAILED in operation.lands)
    if bystanders is not None:
        assert bystanders.queue.ack(bystanders.held) == []
        assert not any(LIVE in states for found, states in census(path).items() if found != CORRUPT)
    _assert_repairable(path)


def _assert_repairable(path: Path) -> None:
    """There is no damage; where a killed process left something behind, a repair removes it."""
    left = checked(path, notes=True)
    assert all(found.severity == "note" for found in left), f"check finds {left}"
    if left:
        tally.count("crash points that left something for a repair to remove")
        with fileops.using(StoppedClock()):
            repair(path)
        left = checked(path, notes=True)
        assert left == [], f"after a repair, check finds {left}"


def checked(path: Path, notes: bool = False) -> list[Violation]:
    """Check the queue, in a time that passes only in the check's own pauses."""
    with fileops.using(StoppedClock()):
        return check_queue(path, notes=notes)


def _run_in_child(stage: Stage, operation: Operation, bystanders: Bystanders | None, point: Point) -> bool:
    """Fork, run, and reap; True where the child died at the point."""
    told, tell = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of a fork beside threads; this child uses none of theirs, and never returns.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(told)
        os._exit(_child(stage, operation, bystanders, point, tell))
    os.close(tell)
    try:
        stopped = os.read(told, 1)
        if stopped:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(told)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (_FINISHED, _DIED, -signal.SIGKILL), f"{operation} failed in the child (see its traceback above)"
    return status != _FINISHED


def _child(stage: Stage, operation: Operation, bystanders: Bystanders | None, point: Point, tell: int) -> int:
    def stop_and_wait() -> None:
        os.write(tell, b"k")
        threading.Event().wait()

    trap = Trap(point, stop_and_wait if point.killed else lambda: os._exit(_DIED))
    try:
        with fileops.using(fileops.wrapped(StoppedClock(), trap)):
            operation.prepare(stage)
            if bystanders is not None:
                with fileops.using(StoppedClock()):
                    stage.open(owner="producer").put([bystanders.waiting])
            trap.armed = True
            operation.run(stage)
            trap.armed = False
    except BaseException:
        traceback.print_exc()
        return _UNEXPECTED
    return _FINISHED
