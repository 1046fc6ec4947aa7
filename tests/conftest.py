"""Puts files into memory where there is room, and gives the tests what they share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.implementations import EVERY, FULL, SHARED, Implementation
from tests.sweeps.proof.apart import Apart

pytest_plugins = ["tests.sweeps.proof.summary"]

_MEMORY = "/dev/shm"
_ROOM_BYTES = 4 << 30

# What the tests do to a directory takes a third of the time on a tmpfs; what an fsync is for, they simulate.
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _MEMORY)


def _implementation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    it = Implementation(request.param, tmp_path)
    yield it
    it.close()


@pytest.fixture(params=EVERY)
def any_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    """Every implementation."""
    yield from _implementation(request, tmp_path)


@pytest.fixture(params=SHARED)
def shared_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    """Those that several handles share."""
    yield from _implementation(request, tmp_path)


@pytest.fixture(params=FULL)
def full_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    """Those with fencing, attempts, release, renew, dead letters and counts."""
    yield from _implementation(request, tmp_path)


@pytest.fixture(scope="session")
def apart() -> Iterator[Apart]:
    """Runs functions in a process that has imported little, and forks fast."""
    it = Apart()
    yield it
    it.close()


def pytest_collection_finish() -> None:
    """Keep what was imported out of all further garbage collections: a fork that runs one would copy all of it."""
    gc.collect()
    gc.freeze()


# Started in the background, a shell's children ignore Ctrl-C, and would hand that on to the children of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
