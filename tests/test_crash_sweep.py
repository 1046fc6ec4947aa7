"""A process dies at every file operation of every operation, and nothing is lost or doubled."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proof import tally
from proof.crash import Point, crash
from proof.operations import OPERATIONS, Operation


def sweep(tmp_path: Path, operation: Operation, size: int, points: Iterator[Point], **options: Any) -> None:
    """Die at one point after the other, until the operation finishes before it comes to the next."""
    for number, point in enumerate(points):
        path = tmp_path / str(number) / "queue"
        path.parent.mkdir(parents=True)
        died = crash(path, operation, size, point, **options)
        shutil.rmtree(path.parent)
        if not died:
            return
        tally.count(f"crash points, died by {'SIGKILL' if point.killed else 'os._exit'}: refs lost or doubled 0")


def alternating() -> Iterator[Point]:
    """Every gap between two file operations once: before and after every second one, every fourth by SIGKILL."""
    for at in itertools.count(0, 2):
        yield Point(at, after=False, killed=at % 4 == 2)
        yield Point(at, after=True, killed=False)


def every(*, after: bool, killed: bool) -> Iterator[Point]:
    """Every file operation."""
    return (Point(at, after, killed) for at in itertools.count())


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_dying_at_any_point_loses_and_doubles_nothing(tmp_path: Path, operation: Operation) -> None:
    """A second consumer gets at once, once and unchanged, every ref that was live when the process died."""
    sweep(tmp_path, operation, 2, alternating())


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["exit", "sigkill"])
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "quick"])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_dying_at_every_point_in_every_way(
    tmp_path: Path, operation: Operation, size: int, durable: bool, killed: bool
) -> None:
    """The same before and after every file operation, for batches of several sizes."""
    sweep(tmp_path / "before", operation, size, every(after=False, killed=killed), durable=durable)
    sweep(tmp_path / "after", operation, size, every(after=True, killed=killed), durable=durable)
