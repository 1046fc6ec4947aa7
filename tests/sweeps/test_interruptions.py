"""Calls that an interrupt or an error ends in the middle, and handles that are closed or dropped."""

from __future__ import annotations

import errno
import gc
import itertools
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, FsQueueError, QueueClosedError, QueueIOError, SampleRef
from tests.support import (
    GUARD_S,
    InThread,
    Queue,
    Tap,
    assert_clean,
    drain,
    folder_of,
    holders_in,
    ids,
    names_in,
    numbered,
    open_descriptors,
    open_tapped,
    refs,
    together,
    wait_until,
)


def interrupted_get(
    queue: Queue, tap: Tap, when: Callable[[str, Any, Any], bool], error: BaseException, after: bool, at: int = 3
) -> list[str]:
    """A get(8) that meets an error before or after the at-th operation for which when is true; returns what it got."""
    seen = [0]

    def strike(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if when(name, args, kwargs):
            seen[0] += 1
            if seen[0] == at:
                raise error

    setattr(tap, "after" if after else "before", strike)
    try:
        return ids(queue.get(8))
    except (KeyboardInterrupt, QueueIOError):
        return []
    finally:
        tap.after = tap.before = None
        assert seen[0] >= at


STRIKES: dict[str, Callable[[str, Any, Any], bool]] = {
    "claim": lambda name, args, kwargs: name == "rename",
    "stamp": lambda name, args, kwargs: name == "utime" and str(args[0]).endswith(".json"),
    "read": lambda name, args, kwargs: name == "read",
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "injected")])
@pytest.mark.parametrize("partition", [None, (0, 1)])
def test_get_that_was_interrupted_loses_nothing(
    path: Path, strike: str, error: BaseException, after: bool, partition: Any
) -> None:
    """After a get that an interrupt or an I/O error ended, the same process gets every ref, each once."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("first"))
    queue.ack(queue.get(1))
    queue.put(numbered(20))
    found = interrupted_get(queue, tap, STRIKES[strike], error, after)
    assert found == [] or not isinstance(error, KeyboardInterrupt)
    first = queue.get(1, partition=partition)
    assert len(first) == 1, "never more than asked for"
    found += ids(first)
    while batch := queue.get(6, 0.3):
        assert len(batch) <= 6
        found += ids(batch)
    assert sorted(found) == ids(numbered(20))
    assert queue.in_flight() == 20
    queue.ack(numbered(20))
    assert names_in(path, "leased") == []
    assert_clean(path)


def test_interrupted_in_one_partition_and_asked_for_another(path: Path) -> None:
    """The leases of an interrupted partitioned get are not withheld from a get for other partitions."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(40))

    def strike(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "read":
            raise OSError(errno.EIO, "injected")

    tap.before = strike
    with pytest.raises(QueueIOError):
        queue.get(10, partition=(0, 2))
    tap.before = None
    with FileSampleRefQueue(path) as other:
        found: list[str] = []
        while batch := queue.get(100, 0.3, partition=(0, 3)) + queue.get(100, 0.3, partition=(1, 3)):
            found += ids(batch)
        found += ids(other.get(100, 1.0))
        assert sorted(found) == ids(numbered(40))


def test_interrupted_and_closed(path: Path) -> None:
    """A handle that is closed after an interrupted get keeps no ref that nobody knows of."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(20))
    interrupted_get(queue, tap, STRIKES["read"], KeyboardInterrupt(), after=False)
    queue.close()
    with FileSampleRefQueue(path) as other:
        assert sorted(drain(other)) == ids(numbered(20))


def test_two_threads_recover_at_once(path: Path) -> None:
    """Two threads that both find what a failed get left behind do not take the ref away from the one that gets it."""
    tap, barrier, delivered = Tap(), threading.Barrier(2), threading.Event()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    interrupted_get(queue, tap, STRIKES["read"], KeyboardInterrupt(), after=False, at=2)  # after type.json
    assert holders_in(path) == [f"a@{queue.owner}"]
    came = itertools.count()

    def meet(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and folder_of(kwargs["dst_dir_fd"]) == "pending":
            second = next(came) == 1
            together(barrier)
            if second:
                delivered.wait(1.0)

    def get() -> list[str]:
        found = ids(queue.get(1))
        if found:
            delivered.set()
        return found

    tap.before = meet
    threads = [InThread(get) for _ in range(2)]
    found = [i for thread in threads for i in thread.result()]
    tap.before = None
    assert found == ["a"]
    assert (queue.depth(), queue.in_flight()) == (0, 1)
    assert queue.ack(refs("a")) == []


def test_two_threads_interrupted_at_once(path: Path) -> None:
    """Two threads whose gets fail at the same moment leave all their refs to be delivered."""
    tap, barrier = Tap(), threading.Barrier(2)
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(16))

    def strike(name: str, *_: Any) -> None:
        if name == "read":
            together(barrier)
            raise OSError(errno.EIO, "injected")

    tap.before = strike
    for thread in [InThread(lambda: queue.get(8)) for _ in range(2)]:
        with pytest.raises(QueueIOError):
            thread.result()
    tap.before = None
    found: list[str] = []
    while batch := queue.get(8, 0.5):
        found += ids(batch)
    assert sorted(found) == ids(numbered(16))


@pytest.mark.timeout(60)
def test_interrupted_put_is_completed_by_another(path: Path) -> None:
    """A put that is interrupted at any of its first 40 operations leaves whole refs only; another completes it."""
    for number in range(40):
        tap = Tap()
        queue = open_tapped(tap, path / str(number))
        left = [number]

        def strike(name: str, *_: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt

        tap.before = strike
        with suppress(KeyboardInterrupt):
            queue.put(numbered(3))
        tap.before = None
        with FileSampleRefQueue(path / str(number)) as other:
            assert set(names_in(path / str(number), "pending")) <= {f"{i}.json" for i in ids(numbered(3))}
            other.put(numbered(3))
            assert sorted(drain(other)) == ids(numbered(3)), f"interrupted at operation {number}"
        queue.close()
        assert_clean(path / str(number))


USES: dict[str, Callable[[Queue], Any]] = {
    "put": lambda queue: queue.put(refs("a")),
    "get": lambda queue: queue.get(1),
    "ack": lambda queue: queue.ack(refs("a")),
    "fail": lambda queue: queue.fail(refs("a"), "x", True),
    "release": lambda queue: queue.release(refs("a")),
    "renew": lambda queue: queue.renew(refs("a")),
    "reclaim": lambda queue: queue.reclaim(),
    "depth": lambda queue: queue.depth(),
    "in_flight": lambda queue: queue.in_flight(),
    "counts": lambda queue: queue.counts(),
    "owner": lambda queue: queue.owner,
}


@pytest.mark.parametrize("use", USES)
def test_use_after_close(path: Path, use: str) -> None:
    """Every use of a closed handle says that it is closed; closing again does nothing."""
    queue = FileSampleRefQueue(path)
    queue.close()
    queue.close()
    with pytest.raises(QueueClosedError, match="closed") as caught:
        USES[use](queue)
    assert caught.value.path == str(path)
    assert str(path) in repr(queue)


def test_close_keeps_leases(path: Path) -> None:
    """Closing keeps a handle's leases, and another handle can settle them by id."""
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        queue.get(1)
    with FileSampleRefQueue(path) as other:
        assert other.get(1) == []
        assert other.in_flight() == 1
        assert other.ack(refs("a")) == []
    assert_clean(path)


def test_close_while_another_thread_waits(path: Path) -> None:
    """Closing a handle ends another thread's waiting get, with an error of this package or empty-handed."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("warm"))
    queue.ack(queue.get(1))
    thread = InThread(lambda: queue.get(1, 4 * GUARD_S))
    wait_until(lambda: bool(names_in(path, "owners")), "the waiting get")
    queue.close()
    with suppress(FsQueueError):
        assert thread.result() == []


def test_handles_give_their_descriptors_back(path: Path) -> None:
    """Closed handles, and handles that were dropped without close, leave no descriptor and no thread behind."""
    FileSampleRefQueue(path, lease_timeout_s=60.0).close()
    gc.collect()
    before, threads = open_descriptors(), threading.active_count()
    for number in range(20):
        queue = FileSampleRefQueue(path, heartbeat_s=0.05, durable=bool(number % 2))
        queue.put(refs("a"))
        queue.get(1)
        queue.release(refs("a"))
        if number % 3:
            queue.close()
        del queue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert open_descriptors() == before
    wait_until(lambda: threading.active_count() <= threads, "the heartbeat thread's end")


def test_an_empty_queue_is_true(path: Path) -> None:
    """`queue or default` takes the queue, empty or not."""
    queue: FileSampleRefQueue[SampleRef] = FileSampleRefQueue(path)
    assert bool(queue) and not hasattr(queue, "__len__")
