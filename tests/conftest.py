"""Puts temporary files into memory where there is room; gives the tests their fixtures."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fsqueue import FileSampleRefQueue
from fsqueue.disk import once
from fsqueue.engine.awake import Awake
from tests.support import Queue
from tests.sweeps.proof.apart import Apart

pytest_plugins = ["tests.sweeps.proof.summary"]

_MEMORY = "/dev/shm"
_ROOM_BYTES = 4 << 30

# What the tests do to a directory takes a third of the time on a tmpfs; what an fsync is for, they simulate.
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _MEMORY)


# No verdict depends on how fast the machine is.
settings.register_profile("fsqueue", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fsqueue")

_awake_for_s = Awake.for_s


@pytest.fixture(autouse=True)
def awake_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test's process counts as awake for long, however slow the machine is."""
    monkeypatch.setattr(Awake, "for_s", lambda awake: float("inf"))


@pytest.fixture
def noticing_stalls(awake_for_long: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's process counts as awake since its last stall, as anybody else's does."""
    monkeypatch.setattr(Awake, "for_s", _awake_for_s)


@pytest.fixture(autouse=True)
def creators_settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written once settles at once: under a test's lies lies a disk on which a link has one winner."""
    monkeypatch.setattr(once, "SETTLES_S", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the test's queue; nothing is there yet."""
    return tmp_path / "q"


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    """An empty queue, closed when the test ends."""
    with FileSampleRefQueue(path, durable=False) as it:
        yield it


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own: a tmpfs of 1 MiB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2000", "tmpfs", str(mount_point)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "-l", str(mount_point)], check=True, timeout=60)


@pytest.fixture(scope="session")
def apart() -> Iterator[Apart]:
    """Runs functions in a process that has imported little, and forks fast."""
    it = Apart()
    yield it
    it.close()


# The queue of whoever runs the tests is none of theirs.
for _variable in ("FSQUEUE_DIR", "FSQUEUE_OWNER", "FSQUEUE_LOG"):
    os.environ.pop(_variable, None)


def pytest_collection_finish() -> None:
    """Keep what was imported out of all further garbage collections: a fork that runs one would copy all of it."""
    gc.collect()
    gc.freeze()


# Started in the background, a shell's children ignore Ctrl-C, and would hand that on to the children of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
