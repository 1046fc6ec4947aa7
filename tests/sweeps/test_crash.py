"""A process dies at every file operation of every operation, and nothing is lost or doubled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.proof import tally
from tests.sweeps.proof.apart import Apart
from tests.sweeps.proof.crash import Point, crash
from tests.sweeps.proof.operations import BY_NAME


def sweep(tmp_path: Path, name: str, size: int, points: Iterator[Point], **options: Any) -> None:
    """Die at one point after the other, until the operation finishes before it comes to the next."""
    for number, point in enumerate(points):
        path = tmp_path / str(number) / "queue"
        path.parent.mkdir(parents=True)
        died = crash(path, BY_NAME[name], size, point, **options)
        shutil.rmtree(path.parent)
        if not died:
            return
        tally.count(f"crash points, died by {'SIGKILL' if point.killed else 'os._exit'}: refs lost or doubled 0")


def every_gap(tmp_path: Path, name: str) -> None:
    """Every gap between two file operations once: before and after every second one, every fourth by SIGKILL."""
    sweep(
        tmp_path,
        name,
        2,
        (Point(at, after, at % 4 == 2 and not after) for at in count(0, 2) for after in (False, True)),
    )


def every_point(tmp_path: Path, name: str, size: int, killed: bool, **options: Any) -> None:
    """Before and after every file operation."""
    for after in (False, True):
        points = (Point(at, after, killed) for at in count())
        sweep(tmp_path / str(after), name, size, points, **options)


@pytest.mark.parametrize("name", BY_NAME)
def test_dying_at_any_point_loses_and_doubles_nothing(tmp_path: Path, apart: Apart, name: str) -> None:
    """A second consumer gets at once, once and unchanged, every ref that was live when the process died."""
    apart(every_gap, tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["exit", "sigkill"])
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "quick"])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", BY_NAME)
def test_dying_at_every_point_in_every_way(
    tmp_path: Path, apart: Apart, name: str, size: int, durable: bool, killed: bool
) -> None:
    """The same before and after every file operation, for batches of several sizes."""
    apart(every_point, tmp_path, name, size, killed, durable=durable)
