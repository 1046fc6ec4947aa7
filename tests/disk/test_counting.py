"""Counting a directory's names, without listing it again while it has certainly not changed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from tests.support import FakeClock, Queue, Tap, numbered, open_tapped, refs


@pytest.fixture
def tap() -> Tap:
    return Tap()


@pytest.fixture
def seconds(tap: Tap) -> FakeClock:
    clock = FakeClock()
    tap.ops.monotonic = clock
    return clock


@pytest.fixture
def queue(tap: Tap, seconds: FakeClock, tmp_path: Path) -> Queue:
    return open_tapped(tap, tmp_path / "q", durable=False)


def test_an_unchanged_backlog_is_counted_without_a_listing(queue: Queue, tap: Tap, seconds: FakeClock) -> None:
    """Once the directory's time has stood still for two seconds, depth and in_flight make no listing."""
    queue.put(numbered(5))
    queue.get(2)
    counted = []
    for _ in range(4):
        tap.counts.clear()
        counted.append((queue.depth(), queue.in_flight(), tap.counts["listdir"]))
        seconds.now += 1.5
    assert counted == [(3, 2, 2), (3, 2, 2), (3, 2, 2), (3, 2, 0)]


def test_what_another_handle_does_is_seen_at_once(queue: Queue, seconds: FakeClock) -> None:
    """A count that is trusted gives way to the first change."""
    other = FileSampleRefQueue(queue.path, durable=False)
    other.put(numbered(5))
    for _ in range(4):
        assert queue.depth() == 5
        seconds.now += 1.5
    other.put(refs("new"))
    assert queue.depth() == 6
    other.get(4)
    assert (queue.depth(), queue.in_flight()) == (2, 4)
    other.close()


def test_a_directory_s_time_is_believed_for_a_while_only(queue: Queue, tap: Tap, seconds: FakeClock) -> None:
    """A change that no time tells of is counted ten seconds later."""
    pending = Path(queue.path, "pending")
    queue.put(refs("a"))
    for _ in range(4):
        assert queue.depth() == 1
        seconds.now += 1.5
    before = pending.stat()
    (pending / "b.json").write_text("{}")
    os.utime(pending, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert queue.depth() == 1
    seconds.now += 10.0
    assert queue.depth() == 2


def test_a_change_within_the_grain_of_the_timestamps_is_seen(queue: Queue, seconds: FakeClock) -> None:
    """A name that appears without a new timestamp is counted, as long as the timestamp is a fresh one."""
    pending = Path(queue.path, "pending")
    queue.put(refs("a"))
    assert queue.depth() == 1
    before = pending.stat()
    (pending / "b.json").write_text("{}")
    os.utime(pending, ns=(before.st_atime_ns, before.st_mtime_ns))
    seconds.now += 1.5
    assert queue.depth() == 2


def test_a_listing_that_failed_is_made_again(queue: Queue, tap: Tap, seconds: FakeClock) -> None:
    """Errors in a row do not make an old count the truth."""
    assert queue.depth() == 0
    queue.put(numbered(5))

    def fail(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "listdir":
            raise OSError(errno.EIO, "Input/output error")

    tap.before = fail
    for _ in range(2):
        with pytest.raises(QueueIOError):
            queue.depth()
        seconds.now += 3.0
    tap.before = None
    assert queue.depth() == 5
