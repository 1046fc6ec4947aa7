"""The order on NFS: one direct read under the lock tells what it holds and how long it is."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Queue, Tap, ids, numbered, open_tapped, refs

ORDER = "order.lock"


class Mount:
    """A directory that passes for one on NFS; its clock stands still."""

    def __init__(self, path: Path) -> None:
        self.now, self.tap = 1_000.0, Tap()
        self.read: list[tuple[int, int]] = []
        real = self.tap.ops.open
        self.tap.ops.open = lambda path, flags, *rest, **named: real(path, flags & ~os.O_DIRECT, *rest, **named)
        self.tap.ops.filesystem_type = lambda path: "nfs4"
        self.tap.ops.monotonic = lambda: self.now
        self.tap.before = self._note
        self.queue: Queue = open_tapped(self.tap, path, durable=False, io_threads=1)

    def _note(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name == "pread":
            self.read.append(args[1:])

    def spends(self, work: Callable[[], object]) -> tuple[int, int]:
        """Return how often a call reads the order, and asks for a status."""
        self.tap.counts.clear()
        work()
        return self.tap.counts["pread"], self.tap.counts["fstat"]


def test_one_read_under_the_lock_is_all(path: Path) -> None:
    """A get reads a short order once and asks nothing more within a second; a put of one asks for its length alone."""
    mount = Mount(path)
    mount.queue.put(refs("x", "y"))
    mount.queue.get(1)
    assert mount.spends(lambda: mount.queue.put(refs("a"))) == (0, 1)
    assert mount.spends(lambda: mount.queue.put(numbered(20))) == (1, 1)
    assert mount.spends(lambda: mount.queue.get(1)) == (1, 0)
    mount.now += 1.5
    assert mount.spends(lambda: mount.queue.get(1)) == (1, 1)
    assert mount.spends(lambda: mount.queue.get(1)) == (1, 0)
    mount.queue.close()


def test_an_order_that_is_longer_than_what_is_read_ahead(path: Path) -> None:
    """Of a long order, and of one whose cursor has come beyond what is read ahead, every ref comes out in order."""
    mount = Mount(path)
    wanted = numbered(5_000, prefix="a-rather-long-name-")
    mount.queue.put(wanted)
    assert (path / ORDER).stat().st_size > 1 << 16
    found: list[str] = []
    while got := mount.queue.get(200):
        found += ids(got)
        mount.queue.ack(got)
    assert found == ids(wanted)
    mount.queue.close()


def test_partitions_see_what_was_just_marked(path: Path) -> None:
    """A partitioned get reads what it has written itself, not what was read ahead before."""
    mount = Mount(path)
    mount.queue.put(numbered(40))
    found: list[str] = []
    for index in (0, 1, 0, 1):
        while got := mount.queue.get(3, partition=(index, 2)):
            found += ids(got)
    assert sorted(found) == ids(numbered(40))
    mount.queue.close()


def test_an_order_that_was_removed_is_noticed(path: Path) -> None:
    """After an rm order.lock a put makes a new one at once, and a get within a second; nothing is lost."""
    mount = Mount(path)
    mount.queue.put(refs("z", "a", "b", "c"))
    assert ids(mount.queue.get(1)) == ["z"]
    (path / ORDER).unlink()
    assert ids(mount.queue.get(1)) == ["a"]
    assert not (path / ORDER).exists()
    mount.now += 1.5
    assert ids(mount.queue.get(1)) == ["b"]
    assert (path / ORDER).exists()
    (path / ORDER).unlink()
    mount.queue.put(refs("d"))
    assert b"\nd ....\n" in (path / ORDER).read_bytes()
    mount.now += 1.5
    assert sorted(ids(mount.queue.get(3)) + ids(mount.queue.get(3))) == ["c", "d"]
    mount.queue.close()


def test_an_order_that_refuses_direct_reads_is_read_as_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mount takes O_DIRECT at open and refuses it at the first read, the order is read without."""
    mount = Mount(path)
    mount.queue.put(refs("a"))
    real, direct = mount.tap.ops.pread, [os.O_DIRECT]

    def pread(fd: int, count: int, offset: int) -> bytes:
        if direct[0]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, count, offset)

    def control(fd: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL:
            direct[0] = flags & os.O_DIRECT
        return direct[0]

    mount.tap.ops.pread = pread
    monkeypatch.setattr(fcntl, "fcntl", control)
    assert ids(mount.queue.get(1)) == ["a"]
    mount.queue.close()


@pytest.mark.parametrize("lock", ["lease", "none"])
def test_without_flock_the_file_is_opened_anew_each_time(path: Path, lock: str) -> None:
    """Where no flock freshens what a kept descriptor shows, nothing is believed from one hold to the next."""
    tap = Tap()
    tap.ops.filesystem_type = lambda path: "nfs4"
    with open_tapped(tap, path, durable=False, lock=lock) as queue:
        queue.put(refs("a", "b"))
        tap.counts.clear()
        assert ids(queue.get(1)) == ["a"]
        assert tap.counts["fstat"] >= 1
