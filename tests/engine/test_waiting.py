"""A get that nobody waits for any more, since it was stopped or its queue object was closed, leases nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, MemorySampleRefQueue, QueueClosedError, SampleRef
from tests.support import GUARD_S, InThread, Queue, Tap, assert_clean, ids, names_in, numbered, open_tapped, refs


class Waiting(Tap):
    """Sees the file operations, and says when a get has begun to wait between two looks."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeping = threading.Event()
        sleep = self.ops.sleep

        def tell(seconds: float) -> None:
            self.sleeping.set()
            sleep(seconds)

        self.ops.sleep = tell


def at_each_operation(tmp_path: Path, act: Callable[[Queue, threading.Event], None]) -> int:
    """Get three of four refs, and act after the k-th file operation, for every k; return how many k there were.

    A get that returns refs has returned before the act, or does not know of it; all others leave nothing leased.
    """
    number = 0
    while True:
        path, tap, stop, left = tmp_path / str(number), Tap(), threading.Event(), [number]
        queue = open_tapped(tap, path, lease_timeout_s=600.0, heartbeat_s=60.0, durable=False)
        queue.put(refs("a", "b", "c", "d"))

        def after(*_: Any, left: list[int] = left, queue: Queue = queue, stop: threading.Event = stop) -> None:
            left[0] -= 1
            if left[0] == -1:
                act(queue, stop)

        tap.after = after
        try:
            found = queue.get(3, stop_event=stop)
        except QueueClosedError:
            found = []
        tap.after = None
        if left[0] >= 0:
            assert ids(found) == ["a", "b", "c"]
            queue.close()
            return number
        assert found == [] and names_in(path, "leased") == []
        queue.close()
        assert names_in(path, "owners") == []
        with FileSampleRefQueue(path) as other:
            again = other.get(9)
            assert sorted(ids(again)) == ["a", "b", "c", "d"]
            other.ack(again)
        assert_clean(path)
        assert all(b'"attempts"' not in file.read_bytes() for file in (path / "done").iterdir())
        number += 1


def test_a_stop_event_ends_a_waiting_get(tmp_path: Path) -> None:
    """It returns nothing, leases nothing that comes later, and the handle goes on."""
    tap, stop = Waiting(), threading.Event()
    queue = open_tapped(tap, tmp_path / "q")
    waiting = InThread(lambda: queue.get(4, GUARD_S, stop_event=stop))
    assert tap.sleeping.wait(GUARD_S)
    stop.set()
    assert waiting.result() == []
    queue.put(numbered(4))
    assert queue.get(4, GUARD_S, stop_event=stop) == [] and queue.counts() == (4, 0, 0, 0)
    assert len(queue.get(4, GUARD_S, stop_event=threading.Event())) == 4
    queue.close()


def test_a_stop_at_any_file_operation_leases_nothing(tmp_path: Path) -> None:
    """Set between any two operations of a get, the event gives back what was leased, without counting an attempt."""
    assert at_each_operation(tmp_path, lambda queue, stop: stop.set()) > 10


def test_a_get_that_asyncio_cancels(tmp_path: Path) -> None:
    """`wait_for` gives up on a get in a thread; its stop event keeps that from leasing refs that nobody receives."""
    tap = Waiting()
    queue = open_tapped(tap, tmp_path / "q", lease_timeout_s=60.0, heartbeat_s=20.0)

    async def main() -> None:
        stop = threading.Event()
        getting = asyncio.create_task(asyncio.to_thread(queue.get, 4, GUARD_S, stop_event=stop))
        await asyncio.to_thread(tap.sleeping.wait, GUARD_S)
        try:
            await asyncio.wait_for(getting, 0.0)
        except asyncio.TimeoutError:
            stop.set()
        queue.put(numbered(4))

    asyncio.run(main())  # its end waits for the thread
    with FileSampleRefQueue(tmp_path / "q") as other:
        assert len(other.get(4)) == 4
    queue.close()


def test_a_stop_event_and_the_queue_in_memory() -> None:
    """The queue in memory keeps the same contract."""
    stop = threading.Event()
    queue: MemorySampleRefQueue[SampleRef] = MemorySampleRefQueue()
    waiting = InThread(lambda: queue.get(4, GUARD_S, stop_event=stop))
    stop.set()
    assert waiting.result() == []
    queue.put(numbered(4))
    assert queue.get(4, stop_event=stop) == [] and queue.depth() == 4


def test_closing_under_a_waiting_get(tmp_path: Path) -> None:
    """The get raises QueueClosedError in its thread, and close has not waited for it."""
    tap = Waiting()
    queue = open_tapped(tap, tmp_path / "q")
    waiting = InThread(lambda: queue.get(4, GUARD_S))
    assert tap.sleeping.wait(GUARD_S)
    queue.close()
    with pytest.raises(QueueClosedError):
        waiting.result()
    assert names_in(tmp_path / "q", "owners") == []
    with pytest.raises(QueueClosedError):
        queue.get(1)


def test_closing_at_any_file_operation_of_a_get(tmp_path: Path) -> None:
    """Closed on top of its own get, as a signal handler does it, a handle leaves no lease and no record behind."""
    assert at_each_operation(tmp_path, lambda queue, stop: queue.close()) > 10


def test_closing_from_another_thread_at_any_file_operation_of_a_get(tmp_path: Path) -> None:
    """Closed by another thread at any moment of a get, a handle leaves no lease and no record behind."""
    assert at_each_operation(tmp_path, lambda queue, stop: InThread(queue.close).result()) > 10


def test_a_closing_signal_handler_that_exits(tmp_path: Path) -> None:
    """`close(); sys.exit()` in a handler, in the middle of a get, closes, and the exit goes through."""
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "q")
    queue.put(refs("a"))

    def leave(*_: Any) -> None:
        queue.close()
        raise SystemExit(7)

    def interrupt(name: str, *_: Any) -> None:
        if name == "rename":
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, leave)
    tap.before = interrupt
    try:
        with pytest.raises(SystemExit):
            queue.get(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert names_in(tmp_path / "q", "leased") == names_in(tmp_path / "q", "owners") == []
    assert names_in(tmp_path / "q", "pending") == ["a.json"]


def test_an_interrupted_use_does_not_keep_a_handle_open(tmp_path: Path) -> None:
    """An interrupted call that could not end its use keeps the handle open while its frame lives, no longer."""
    for kept in (False, True):
        queue = FileSampleRefQueue(tmp_path / "q")
        handle = queue.handle
        frames = [handle.begin_use()]  # as a traceback keeps it; no end_use follows
        if not kept:
            frames.clear()
        queue.close()
        assert (handle.layout.root.fd == -1) is not kept
        frames.clear()
        assert handle.layout.root.fd == -1
