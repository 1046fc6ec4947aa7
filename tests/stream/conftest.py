"""A queue whose members beat often enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of an empty queue with a lease timeout of a minute."""
    FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=60).close()
    return tmp_path / "q"


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A path at which nothing is yet: the queue is made on a mount that is not what it seems."""
    return tmp_path / "q"
