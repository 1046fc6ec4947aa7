"""Ids that differ in case only: two refs, or an error, and never a ref that is dropped in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsqueue import CaseCollisionError, FileSampleRefQueue, InvalidRefError, SampleRef
from fsqueue.disk.fileops import FileOps, using, wrapped
from tests.support import Tap, drain, names_in, numbered, open_tapped, refs


def _there(name: Any, fd: int | None) -> Any:
    """The name that a directory has, in whatever case it was asked for."""
    if fd is None or fd < 0 or not isinstance(name, str) or "/" in name:
        return name
    return next((each for each in os.listdir(fd) if each.lower() == name.lower()), name)


def _folded(name: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if name in ("open", "stat", "access", "unlink", "utime"):
        args = (_there(args[0], named.get("dir_fd")), *args[1:])
    elif name in ("rename", "link"):
        args = (_there(args[0], named["src_dir_fd"]), _there(args[1], named["dst_dir_fd"]), *args[2:])
    return call(*args, **named)


@contextmanager
def ntfs(folder: Path) -> Iterator[Path]:
    """An NTFS whose driver ignores case, and lists names in lower case."""
    for command in ("mkntfs", "lowntfs-3g", "umount"):
        if os.geteuid() or shutil.which(command) is None or not os.path.exists("/dev/fuse"):
            pytest.skip(f"this needs root, /dev/fuse and {command}")
    image, point = folder / "image", folder / "disk"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    for command in (["mkntfs", "-F", "-Q", image], ["lowntfs-3g", "-o", "ignore_case", image, point]):  # type: ignore[assignment]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"{command[0]} failed: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True, timeout=60)


@pytest.fixture
def folding(tmp_path: Path) -> Iterator[Path]:
    """The path of a queue on a filesystem that ignores case and keeps it, as those of macOS and Windows do."""
    with using(wrapped(FileOps(), _folded)):
        yield tmp_path / "q"


def opened(path: Path) -> FileSampleRefQueue[SampleRef]:
    return FileSampleRefQueue(path, lease_timeout_s=60.0, owner="n", durable=False)


def test_the_second_of_two_ids_is_an_error(folding: Path) -> None:
    """Wherever the first one is, and in the same put; nothing of the batch is put, and other ids go on."""
    with opened(folding) as queue:
        queue.put(refs("sample"))
        with pytest.raises(CaseCollisionError, match="'Sample' and 'sample'") as caught:
            queue.put(refs("new", "Sample"))
        assert (caught.value.sample_id, caught.value.other, caught.value.state) == ("Sample", "sample", "pending")
        assert queue.depth() == 1 and queue.put(refs("sample", "new")) == (1, 1)
        first, second = queue.get(2)
        with pytest.raises(CaseCollisionError, match="leased"):
            queue.put(refs("SAMPLE"))
        queue.fail([first], "broken", retryable=False)
        with pytest.raises(CaseCollisionError, match="failed"):
            queue.put(refs("SAMPLE"))
        queue.ack([second])
        with pytest.raises(CaseCollisionError, match="done"):
            queue.put(refs("NEW"))
        with pytest.raises(CaseCollisionError, match="in the same put"):
            queue.put(refs("twin", "Twin"))
        assert queue.counts() == (0, 0, 1, 1) and names_in(folding, "tmp") == []


def test_ids_in_any_case_are_refs_where_case_is_kept(folding: Path) -> None:
    with opened(folding) as queue:
        assert queue.put(refs("MiXed-7", "lower")) == (2, 0) and queue.put(refs("MiXed-7", "lower")) == (0, 2)
        assert drain(queue) == ["MiXed-7", "lower"]
        assert queue.put(refs("MiXed-7")) == (1, 0), "it may come again once it is done"


def test_a_driver_that_lists_names_in_lower_case_takes_lower_case_only(tmp_path: Path) -> None:
    """A real one: an id in upper case is refused in words; the others work."""
    with ntfs(tmp_path) as disk, opened(disk / "q") as queue:
        with pytest.raises(InvalidRefError, match="'MiXed-7' has letters in upper case"):
            queue.put(refs("lower", "MiXed-7"))
        assert queue.put(refs("lower", "x-7")) == (2, 0) and queue.put(refs("lower")) == (0, 1)
        with pytest.raises(CaseCollisionError, match="in the same put"):
            queue.put(refs("twin", "Twin"))
        assert drain(queue) == ["lower", "x-7"] and names_in(disk / "q", "tmp") == []


def test_where_case_counts_both_are_refs(path: Path) -> None:
    """Also beside a file that looks as if it did not; the look costs one operation, at a handle's first put."""
    with opened(path) as queue:
        queue.put(refs("sample", "Sample", "SAMPLE"))
    (path / "FSQUEUE.JSON").touch()
    with opened(path) as queue:
        assert queue.put(refs("sAmple")) == (1, 0)
        assert len(drain(queue)) == 4
    (path / "FSQUEUE.JSON").unlink()
    tap, looks = Tap(), []
    queue = open_tapped(tap, path, durable=False)
    tap.before = lambda name, args, _: looks.append(name) if "FSQUEUE.JSON" in args else None
    for number in range(3):
        queue.put(numbered(5, f"n{number}"))
    assert looks == ["access"]
    queue.close()
