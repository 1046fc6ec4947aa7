"""Where a loader's refs come from: how it waits for them."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, SampleRef, dp_partition
from fsqueue.features.source import QueueSource
from tests.support import Tap, numbered, open_tapped


def at_rest(path: Path, mount: str) -> tuple[FileSampleRefQueue[SampleRef], Counter[int]]:
    """Return a queue on such a mount whose waits take no time, and its file operations by the minute of its clock."""
    tap, now, made = Tap(), [1_000.0], Counter[int]()
    tap.ops.filesystem_type = lambda path: mount
    tap.ops.monotonic = lambda: now[0]
    tap.ops.sleep = lambda pause_s: now.__setitem__(0, now[0] + pause_s)
    tap.before = lambda name, args, kwargs: made.update([int(now[0] - 1_000.0) // 60])
    return open_tapped(tap, path, durable=False), made


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("partition", [None, (0, 2)])
def test_a_wait_on_a_shared_mount_makes_few_operations(
    path: Path, partition: tuple[int, int] | None, ahead: bool
) -> None:
    """Two a second at most after a minute, as a get of the queue's own; ten where others' refs are pending."""
    queue, made = at_rest(path, "nfs4")
    if partition is not None:
        queue.put([ref for ref in numbered(20) if dp_partition(ref.sample_id, 2) != partition[0]][:3])
    source = QueueSource[SampleRef](queue, 180.0, partition)
    assert source.next(1, threading.Event() if ahead else None) == []
    assert 0 < made[2] < 60 * (2 if partition is None else 10)
    queue.close()


@pytest.mark.parametrize("partition", [None, (0, 2)])
def test_a_stop_ends_a_wait_on_a_shared_mount(path: Path, partition: tuple[int, int] | None) -> None:
    """However long the pauses between two looks have become."""
    queue, _ = at_rest(path, "nfs4")
    if partition is not None:
        queue.put([ref for ref in numbered(20) if dp_partition(ref.sample_id, 2) != partition[0]][:3])
    ops, stop = queue.handle.ops, threading.Event()
    pause, began = ops.sleep, ops.monotonic()

    def stop_after_a_minute(pause_s: float) -> None:
        pause(pause_s)
        if ops.monotonic() - began > 60.0:
            stop.set()

    ops.sleep = stop_after_a_minute
    assert QueueSource[SampleRef](queue, 180.0, partition).next(1, stop) == []
    assert ops.monotonic() - began < 61.0
    queue.close()
