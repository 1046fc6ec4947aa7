"""A disk that is really full: a small tmpfs that the test mounts and fills."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from tests.support import assert_clean, drain, fill, ids, names_in, numbered, ref

PAGE_BYTES = 4096


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("room", [0, 1, 40])
def test_disk_full_in_the_middle_of_a_put(disk: Path, durable: bool, room: int) -> None:
    """A put on a full disk says so with path and cause, leaves nothing of its batch, and works once there is room."""
    path = disk / "q"
    queue = FileSampleRefQueue(path, durable=durable)
    queue.put(numbered(10))
    leased = queue.get(4)
    ballast = fill(disk, room * PAGE_BYTES)
    todo = numbered(100, prefix="new")
    for _ in range(2):
        with pytest.raises(QueueIOError) as caught:
            queue.put(todo)
        assert caught.value.errno == errno.ENOSPC
        assert "ENOSPC" in str(caught.value) and "free space" in str(caught.value)
        assert caught.value.path.startswith(str(path)) and str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert queue.depth() == 6 and names_in(path, "tmp") == []
    assert queue.ack(leased) == [], "an ack needs no space"
    assert ids(queue.get(2)) == ["s00004", "s00005"], "nor does a get"
    ballast.unlink()
    queue.put(todo)
    assert drain(queue) == ids([*numbered(10)[6:], *todo])
    queue.ack(numbered(10))
    assert_clean(path)


def test_disk_full_of_inodes(disk: Path) -> None:
    """Running out of inodes instead of bytes is the same error and leaves as little behind."""
    path = disk / "q"
    queue = FileSampleRefQueue(path, durable=False)
    queue.put(numbered(5))
    ballast = disk / "many"
    ballast.mkdir()
    with pytest.raises(OSError, match="No space"):
        for number in range(10_000):
            (ballast / str(number)).touch()
    for number in range(3):
        (ballast / str(number)).unlink()
    with pytest.raises(QueueIOError) as caught:
        queue.put(numbered(50, prefix="new"))
    assert caught.value.errno == errno.ENOSPC
    assert names_in(path, "tmp") == [] and queue.depth() == 5
    for file in ballast.iterdir():
        file.unlink()
    queue.put(numbered(50, prefix="new"))
    assert len(drain(queue)) == 55
    assert_clean(path)


def test_everything_but_put_on_a_full_disk(disk: Path) -> None:
    """On a full disk ack, release and renew work; fail either works or fails whole, and can be repeated."""
    path = disk / "q"
    queue = FileSampleRefQueue(path, lease_timeout_s=600.0)
    queue.put([*numbered(20), ref("large", metadata={"text": "x" * (2 * PAGE_BYTES - 700)})])
    leased = queue.get(21)
    ballast = fill(disk)
    assert queue.renew(leased) == []
    assert queue.ack(leased[:5], step=3) == []
    assert queue.release(leased[5:10]) == []
    for one in leased[10:]:
        try:
            queue.fail([one], "the reason is long: " + "y" * 2 * PAGE_BYTES, retryable=True)
        except QueueIOError as error:
            assert error.errno == errno.ENOSPC and error.path.startswith(str(path))
    assert queue.depth() + queue.in_flight() == 16
    ballast.unlink()
    for one in leased[10:]:
        queue.fail([one], "again", retryable=True)
    found = drain(queue)
    assert sorted(found) == sorted(ids(leased[5:]))
    assert_clean(path)


def test_opening_on_a_full_disk(disk: Path) -> None:
    """A queue cannot be made on a full disk, says so, and can be made there once there is room."""
    ballast = fill(disk)
    with pytest.raises(QueueIOError) as caught:
        FileSampleRefQueue(disk / "q")
    assert caught.value.errno == errno.ENOSPC and str(disk / "q") in str(caught.value)
    ballast.unlink()
    with FileSampleRefQueue(disk / "q") as queue:
        queue.put(numbered(3))
        assert drain(queue) == ids(numbered(3))
    assert_clean(disk / "q")


def test_corrupt_file_on_a_full_disk(disk: Path) -> None:
    """A file that is no ref cannot be buried on a full disk; the good ones are delivered, then or afterwards."""
    path = disk / "q"
    queue = FileSampleRefQueue(path)
    queue.put(numbered(3))
    queue.release(queue.get(1))
    (path / "pending" / "bad.json").write_bytes(b"\0" * 10)
    ballast = fill(disk)
    found: list[str] = []
    for _ in range(5):
        try:
            found += ids(queue.get(2, 0.1))
        except QueueIOError as error:
            assert error.errno == errno.ENOSPC
    ballast.unlink()
    while batch := queue.get(2, 0.5):
        found += ids(batch)
    assert sorted(found) == ids(numbered(3))
    assert names_in(path, "failed") == ["bad.json"]
