"""Reading without delegations: O_DIRECT on NFS, and a way back where it is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue.disk.fileops import FileOps, without_delegations
from fsqueue.errors import CorruptRefError
from tests.support import Tap, backdate, folder_of, ids, open_tapped, refs

READERS: dict[str, Callable[[FileOps, int, str], object]] = {
    "read_file": lambda ops, fd, name: ops.read_file(fd, name),
    "fresh_mtime": lambda ops, fd, name: ops.fresh_mtime(fd, name),
    "open_for_update": lambda ops, fd, name: ops.read_regular(ops.open_for_update(fd, name)),
}


def opened(tap: Tap, made: list[tuple[str, bool]]) -> None:
    """Note the folder of every file that is opened to be read, and whether that was with O_DIRECT.

    The flag itself is taken away: the directory that the test runs in may refuse it.
    """
    real = tap.ops.open

    def open_(path: str, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        fd: int = real(path, flags & ~os.O_DIRECT, *rest, dir_fd=dir_fd)
        if flags & os.O_ACCMODE != os.O_WRONLY and not flags & (os.O_DIRECTORY | os.O_CREAT) and dir_fd is not None:
            made.append((folder_of(dir_fd), bool(flags & os.O_DIRECT)))
        return fd

    tap.ops.open = open_  # type: ignore[assignment]


@pytest.mark.parametrize(("kind", "direct"), [("nfs4", True), ("nfs", True), ("tmpfs", False), ("fuse.sshfs", False)])
def test_refs_and_records_are_read_directly_on_nfs_alone(path: Path, kind: str, direct: bool) -> None:
    """A get, a fail, an expiry and its looks open refs and owners' records with O_DIRECT on NFS, and nowhere else."""
    tap, made = Tap(), list[tuple[str, bool]]()
    tap.ops.filesystem_type = lambda path: kind
    opened(tap, made)
    given: dict[str, Any] = {"lease_timeout_s": 60.0, "durable": False}
    with open_tapped(tap, path, **given) as other:
        other.put(refs("a", "b"))
        other.fail(other.get(1), "no", retryable=True)
        assert len(other.get(2)) == 2
    for file in [*(path / "leased").iterdir(), *(path / "owners").iterdir()]:
        backdate(file, 3600.0)
    with open_tapped(tap, path, **given) as queue:
        assert queue.reclaim() == 2
        assert sorted(ids(queue.get(2))) == ["a", "b"]
    assert {folder for folder, _ in made} >= {"leased", "owners"}
    assert {how for folder, how in made if folder in ("leased", "owners", "pending")} == {direct}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_mount_that_refuses_at_open_is_read_as_ever(tmp_path: Path, read: Callable[..., object]) -> None:
    """Where an open with O_DIRECT says EINVAL, the file is read without, and no second one is tried so."""
    (tmp_path / "a").write_bytes(b"content")
    tap, tried = Tap(), []
    real = tap.ops.open

    def refusing(path: str, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECT:
            tried.append(path)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return real(path, flags, *rest, dir_fd=dir_fd)

    tap.ops.open = refusing  # type: ignore[assignment]
    ops, fd = without_delegations(tap.ops), os.open(tmp_path, os.O_RDONLY)
    assert read(ops, fd, "a") == read(FileOps(), fd, "a")
    assert read(ops, fd, "a") == read(FileOps(), fd, "a")
    assert tried == ["a"]
    os.close(fd)


def test_a_mount_that_refuses_at_read_is_read_as_ever(tmp_path: Path) -> None:
    """Where a read of a file opened with O_DIRECT says EINVAL, the same descriptor is read without it."""
    (tmp_path / "a").write_bytes(b"content")
    tap = Tap()
    real_open, real_read, direct = tap.ops.open, tap.ops.read, set[int]()

    def open_(path: str, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        fd = real_open(path, flags & ~os.O_DIRECT, *rest, dir_fd=dir_fd)
        direct.update([fd] if flags & os.O_DIRECT else [])
        return fd

    def read(fd: int, count: int) -> bytes:
        if fd in direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_read(fd, count)

    tap.ops.open, tap.ops.read = open_, read  # type: ignore[assignment]
    ops, fd = without_delegations(tap.ops), os.open(tmp_path, os.O_RDONLY)
    ops.is_cached_now = lambda fd: direct.discard(fd) or not direct  # type: ignore[method-assign,func-returns-value]
    assert ops.read_file(fd, "a") == b"content"
    os.close(fd)


def test_what_is_no_regular_file_is_refused_as_ever(tmp_path: Path) -> None:
    """A directory, a FIFO and a symbolic link are no refs, whether or not direct reads were tried on them first."""
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "f")
    os.symlink("d", tmp_path / "l")
    ops, fd = without_delegations(FileOps()), os.open(tmp_path, os.O_RDONLY)
    for name in ("d", "l"):
        with pytest.raises(CorruptRefError):
            ops.read_file(fd, name)
    assert ops.read_file(fd, "f") == b""
    os.close(fd)


def test_a_local_disk_reads_a_ref_directly_or_falls_back(tmp_path: Path) -> None:
    """On whatever filesystem the tests run, aligned or not, what is read is the file's content."""
    for size in (0, 1, 700, 4096, 65536, 200_001):
        (tmp_path / "a").write_bytes(b"x" * size)
        ops, fd = without_delegations(FileOps()), os.open(tmp_path, os.O_RDONLY)
        assert ops.read_file(fd, "a") == b"x" * size
        os.close(fd)
