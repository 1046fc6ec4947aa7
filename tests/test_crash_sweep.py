"""A process dies before and after every file operation of every operation, and nothing is lost or doubled."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from proof import tally
from proof.crash import Point, crash
from proof.operations import OPERATIONS, Operation

pytest_plugins = ["proof.summary"]

BATCHES = (1, 2, 5)


def sweep(tmp_path: Path, operation: Operation, size: int, *, killed: bool = False, **options: Any) -> None:
    """Die before every file operation, and after every one, until the operation finishes."""
    for after in (False, True):
        for at in itertools.count():
            path = tmp_path / f"{size}-{after}-{at}" / "queue"
            path.parent.mkdir()
            died = crash(path, operation, size, Point(at, after, killed), **options)
            shutil.rmtree(path.parent)
            if not died:
                break
            tally.count(f"crash points ({'SIGKILL' if killed else 'os._exit'})")


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_dying_at_any_point_loses_and_doubles_nothing(tmp_path: Path, operation: Operation) -> None:
    """A second consumer gets at once, once and unchanged, every ref that was live when the process died."""
    sweep(tmp_path, operation, 2, durable=True)
