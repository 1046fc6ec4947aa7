"""Mounts on which a granted lock freshens nothing: what is read under it is what the last holder wrote all the same."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from fsqueue import FileSampleRefQueue, StaleLockWarning
from tests.support import Child, Tap, assert_clean, drain, ids, names_in, numbered, open_tapped, refs

DOUBTED = "fuse.anything"


class Status:
    """Show a file's status with some of it changed."""

    def __init__(self, real: os.stat_result, **changes: int | float) -> None:
        self._real = real
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Stale(Tap):
    """A client that believes what it knows of order.lock: its size until it stamps it, its pages until told.

    As on GlusterFS (content and size under a lock are old) and ceph-fuse (pages outlive a new descriptor).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._order = path / "order.lock"
        self._size: int | None = None
        self._pages: dict[int, bytes] = {}
        self.ops.filesystem_type = lambda path: DOUBTED
        real_stat, real_read, real_write = self.ops.fstat, self.ops.pread, self.ops.pwrite
        real_utime = self.ops.utime

        def fstat(fd: int) -> Any:
            status = real_stat(fd)
            if not self._is_order(fd):
                return status
            self._size = status.st_size if self._size is None else self._size
            return Status(status, st_size=self._size)

        def pread(fd: int, count: int, offset: int) -> bytes:
            if not self._is_order(fd):
                return real_read(fd, count, offset)
            if fd not in self._pages:
                self._pages[fd] = self._order.read_bytes()
            size = len(self._pages[fd]) if self._size is None else self._size
            return self._pages[fd][:size][offset : offset + count]

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if self._is_order(fd):
                self._pages.pop(fd, None)
                self._size = max(self._size or 0, offset + len(data))
            return real_write(fd, data, offset)

        def utime(name: Any, *args: Any, **kwargs: Any) -> None:
            real_utime(name, *args, **kwargs)
            if name == "order.lock":
                self._size = None

        def forget(fd: int) -> None:
            self._pages.pop(fd, None)

        self.ops.fstat, self.ops.pread, self.ops.pwrite = fstat, pread, pwrite  # type: ignore[assignment]
        self.ops.utime, self.ops.forget = utime, forget  # type: ignore[method-assign, assignment]

    def _is_order(self, fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}") == str(self._order)


def test_the_order_is_kept_by_clients_that_believe_what_they_know(path: Path) -> None:
    """Two clients put in turn and both get: every ref comes in the order of the puts."""
    FileSampleRefQueue(path, durable=False).close()
    one, two = (open_tapped(Stale(path), path, durable=False) for _ in range(2))
    expected: list[str] = []
    found: list[str] = []
    for number in range(60):
        (one, two)[number % 2].put(refs(f"{(number * 7) % 60:02d}"))
        expected.append(f"{(number * 7) % 60:02d}")
        if number % 5 == 4:
            found += ids((two, one)[number % 2].get(4))
    while batch := one.get(3) + two.get(2):
        found += ids(batch)
    assert found == expected
    one.close()
    two.close()


def test_a_waiting_get_is_woken_where_the_order_looks_old(path: Path) -> None:
    """It sees the ref's name come into pending/ at its next look."""
    FileSampleRefQueue(path, durable=False).close()
    tap, other = Stale(path), FileSampleRefQueue(path, durable=False)
    now, put_at = 1_000.0, 0.0
    tap.ops.monotonic = lambda: now
    queue = open_tapped(tap, path, durable=False, poll_interval_s=0.05)

    def sleep(seconds: float) -> None:
        nonlocal now, put_at
        now += seconds
        if not put_at and now >= 1_003.0:
            put_at = now
            other.put(refs("a"))

    tap.ops.sleep = sleep
    assert ids(queue.get(1, 30.0)) == ["a"]
    assert put_at <= now <= put_at + 0.06
    other.close()
    queue.close()


def try_to_lock(pipe: Connection, path: Path) -> None:
    """A child that tries to take the queue's lock each time that it is told to, and says if it could."""
    while pipe.recv():
        try:
            with FileLock(path / "order.lock", timeout=0):
                pipe.send(True)
        except Timeout:
            pipe.send(False)


def test_closing_the_second_descriptor_does_not_give_the_lock_away(path: Path) -> None:
    """Another process is kept out from the grant of the lock to its end, though a descriptor of the file is closed."""
    tap = Tap()
    tap.ops.filesystem_type = lambda path: DOUBTED
    queue = open_tapped(tap, path, durable=False)
    with Child(try_to_lock, path) as other:
        with queue.handle.order_file.surely:
            content = queue.handle.order_file.content
            assert content.fd != content.locked_fd
            content.close_second()
            other.send(True)
            assert other.receive() is False
        other.send(True)
        assert other.receive() is True
        other.send(False)
    queue.close()


def test_a_lock_that_keeps_other_descriptors_out(path: Path) -> None:
    """Where a lock is a mandatory one, as SMB's are, the order is read and written through the locked descriptor."""
    tap, locked = Tap(), set[int]()
    tap.ops.filesystem_type = lambda path: "cifs"

    def keep_out(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "lock":
            locked.add(args[0])
        elif name in ("unlock", "close"):
            locked.discard(args[0])
        elif name in ("pread", "pwrite", "ftruncate") and locked and args[0] not in locked:
            raise OSError(errno.EACCES, "injected")

    tap.before = keep_out
    queue = open_tapped(tap, path, durable=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue.put(numbered(9))
        assert ids(queue.get(4)) + ids(queue.get(9)) == ids(numbered(9))
    queue.close()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.EBADF])
@pytest.mark.parametrize("mount", [DOUBTED, "nfs4"])
def test_rm_order_lock_is_safe(path: Path, mount: str, code: int) -> None:
    """After it is deleted elsewhere, opening it says all kinds of things for a while: no call fails, none warns."""
    tap, left = Tap(), [0]
    tap.ops.filesystem_type = lambda path: mount
    queue = open_tapped(tap, path, durable=False)

    def contradict(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[0] == "order.lock" and left[0]:
            left[0] -= 1
            raise OSError(code, "injected")

    tap.before = contradict
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(6):
            (path / "order.lock").unlink()
            left[0] = 12
            queue.put(refs(f"a{number}", f"b{number}"))
            left[0] = 5
            assert len(queue.get(1)) == 1
    left[0] = 0
    assert len(names_in(path, "leased")) == 6
    assert len(drain(queue)) == 6
    queue.close()


def test_contradictions_that_do_not_end(path: Path) -> None:
    """A mount that says for good that the name is there and is not gets a fresh file under it."""
    tap, now = Tap(), [1_000.0]
    tap.ops.filesystem_type = lambda path: DOUBTED
    tap.ops.monotonic = lambda: now[0]
    tap.ops.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    queue = open_tapped(tap, path, durable=False)
    (path / "order.lock").unlink()

    def contradict(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[0] == "order.lock" and args[1] & os.O_CREAT and not (path / "order.lock").exists():
            raise FileExistsError(errno.EEXIST, "injected")

    tap.before = contradict
    with pytest.warns(StaleLockWarning, match="replaced"):
        queue.put(refs("a", "b"))
    assert now[0] < 1_010.0
    assert ids(queue.get(2)) == ["a", "b"]
    queue.close()
    tap.before = None


def frozen(tap: Tap) -> Tap:
    """Let no directory's mtime move, as on some FUSE mounts over object stores."""
    real = tap.ops.fstat

    def fstat(fd: int) -> Any:
        status = real(fd)
        return Status(status, st_mtime_ns=10**18, st_mtime=1e9) if stat.S_ISDIR(status.st_mode) else status

    tap.ops.fstat = fstat
    tap.ops.filesystem_type = lambda path: DOUBTED
    return tap


def test_directory_times_that_never_move(path: Path) -> None:
    """Counts, watermarks and the end of a stream are right, and a ref that was moved by hand is found."""
    from fsqueue import StreamStalledError

    tap, now = frozen(Tap()), [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    tap.ops.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    other = FileSampleRefQueue(path, durable=False)
    queue = open_tapped(tap, path, durable=False)
    for _ in range(4):
        assert queue.depth() == 0 and queue.get(1) == [] and tuple(queue.counts()) == (0, 0, 0, 0)
        now[0] += 5.0
    other.put(numbered(30))
    assert queue.depth() == 30 and queue.counts().pending == 30
    with pytest.raises(StreamStalledError):
        queue.put_when_below(refs("x"), high=10, timeout_s=1.0)
    with other.producer("p"):
        assert not queue.drained()
    assert not queue.drained()
    assert len(drain(queue)) == 30
    assert queue.drained()
    (path / "done" / "s00003.json").rename(path / "pending" / "s00003.json")
    assert not queue.drained()
    assert ids(queue.get(1, 120.0)) == ["s00003"]
    queue.ack(refs("s00003"))
    other.close()
    queue.close()
    assert_clean(path)


def test_the_lease_is_taken_in_the_queue_that_was_opened(path: Path, tmp_path: Path) -> None:
    """A path that leads to another queue by now does not lead the lock astray."""
    for name in ("one", "two"):
        FileSampleRefQueue(tmp_path / name, lock="lease").close()
    path.symlink_to("one")
    queue = FileSampleRefQueue(path, durable=False)
    path.unlink()
    path.symlink_to("two")
    with queue.handle.order_file.surely:
        assert (tmp_path / "one" / "order.lease").exists() and not (tmp_path / "two" / "order.lease").exists()
    queue.put(refs("a"))
    assert names_in(tmp_path / "one", "pending") == ["a.json"]
    queue.close()


@pytest.mark.parametrize(("kind", "synced"), [(DOUBTED, True), ("nfs4", False), ("ext4", False)])
def test_what_was_written_is_synced_before_the_unlock(path: Path, kind: str, synced: bool) -> None:
    """GlusterFS writes in the background. It costs nothing where a lock freshens, or nothing was written."""
    tap, seen = Tap(), list[str]()
    tap.ops.filesystem_type = lambda path: kind

    def note(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "unlock" or (
            name in ("pwrite", "fsync") and os.readlink(f"/proc/self/fd/{args[0]}").endswith("lock")
        ):
            seen.append(name)

    tap.before = note
    with open_tapped(tap, path, durable=False) as queue:
        seen.clear()
        queue.put(refs("a"))
        assert seen == ["pwrite", *["fsync"] * synced, "unlock"]
        queue.get(1)
        seen.clear()
        queue.get(1)
        assert "fsync" not in seen
