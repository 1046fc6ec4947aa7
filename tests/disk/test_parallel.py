"""File operations side by side on a shared mount that is slow, and one after the other everywhere else."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueConfigError, QueueIOError
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.claim import Claimer
from tests.support import InThread, Tap, assert_clean, ids, names_in, numbered, open_tapped, refs

GUARD_S = 60.0


@pytest.fixture
def shared() -> Tap:
    """A mount that is not known to be local."""
    tap = Tap()
    tap.ops.filesystem_type = lambda path: "nfs4"
    return tap


def side_by_side(tap: Tap, operation: str, of: int) -> None:
    """Let each of these operations go on only when so many are under way at once."""
    meeting = threading.Barrier(of)

    def meet(name: str, args: Any, kwargs: Any) -> None:
        if name == operation:
            meeting.wait(GUARD_S)

    tap.before = meet


def test_on_a_slow_mount_stamps_reads_and_writes_overlap(shared: Tap, tmp_path: Path) -> None:
    """Four threads are in the middle of a write, a stamp and a read at the same time; order and content stay."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=4, durable=False)
    queue.put(numbered(1, "first"))  # it writes type.json too, and the get reads it
    queue.ack(queue.get(1))
    todo = numbered(8)
    side_by_side(shared, "write", 4)
    queue.put(todo)
    for operation in ("utime", "read"):
        side_by_side(shared, operation, 4)
        assert queue.get(4) == todo[:4]
        del todo[:4]
    shared.before = None
    queue.close()
    assert_clean(tmp_path / "q")


def test_a_local_disk_gets_no_threads(tmp_path: Path) -> None:
    """On a local disk every operation but an fsync is made by the caller's own thread."""
    tap, threads = Tap(), set()
    queue = open_tapped(tap, tmp_path / "q")
    tap.before = lambda name, args, _: threads.add(threading.get_ident()) if name != "fsync" else None
    queue.put(numbered(20))
    queue.ack(queue.get(20))
    assert threads == {threading.get_ident()}
    queue.close()


@pytest.mark.parametrize(("first_took_s", "spread"), [(0.0001, False), (0.003, True)])
def test_what_the_first_operation_took_decides(shared: Tap, tmp_path: Path, first_took_s: float, spread: bool) -> None:
    """A shared mount that answers at once needs no threads either."""
    clock = itertools.count(0.0, first_took_s)
    threads = set()
    queue = open_tapped(shared, tmp_path / "q", durable=False)
    queue.get(1)
    shared.ops.monotonic = lambda: next(clock)
    shared.before = lambda name, args, _: threads.add(threading.get_ident()) if name == "write" else None
    queue.put(numbered(20))
    assert (len(threads) > 1) == spread
    queue.close()


def test_one_ref_has_its_two_modifications_made_at_once(shared: Tap, tmp_path: Path) -> None:
    """The rename of a put meets the order's line, and the stamp of a get the order's cursor; the ref goes through."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=4, durable=False)
    queue.put(numbered(1, "first"))
    queue.ack(queue.get(1))
    taken: list[Any] = []
    calls: dict[str, Callable[[], object]] = {
        "rename": lambda: queue.put(numbered(1)),
        "utime": lambda: taken.extend(queue.get(1)),
    }
    for operation, call in calls.items():
        meeting, awaited = threading.Barrier(2), {operation, "pwrite"}

        def meet(name: str, args: Any, kwargs: Any, awaited: set[str] = awaited, meeting: Any = meeting) -> None:
            if name in awaited:
                awaited.discard(name)
                meeting.wait(GUARD_S)

        shared.before = meet
        call()
        assert not awaited
    shared.before = None
    assert taken == numbered(1)
    assert queue.ack(taken) == []
    queue.close()
    assert_clean(tmp_path / "q")


@pytest.mark.parametrize("failing", ["rename", "pwrite"])
def test_a_put_of_one_whose_rename_or_line_fails(shared: Tap, tmp_path: Path, failing: str) -> None:
    """A rename that fails leaves nothing but a line that means nothing; a line that fails leaves a ref to be found."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=4, durable=False)
    queue.put(numbered(1, "first"))
    queue.ack(queue.get(1))

    def fail(name: str, args: Any, kwargs: Any) -> None:
        if name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    shared.before = fail
    if failing == "rename":
        with pytest.raises(QueueIOError, match="No space left"):
            queue.put(numbered(1))
        shared.before = None
        assert names_in(tmp_path / "q", "pending") == names_in(tmp_path / "q", "tmp") == []
        assert queue.put(numbered(1)).added == 1
    else:
        assert queue.put(numbered(1)).added == 1
        shared.before = None
    assert queue.get(2) == numbered(1)
    queue.close()


def test_two_threads_of_a_handle_each_go_by_their_own_stamp(
    shared: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp of a get of one that goes along with the cursor: another thread's says nothing of this one's ref."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=4, durable=False)
    queue.put(refs("warm"))
    queue.ack(queue.get(1))
    queue.put(refs("a", "b", "c"))
    os.rename(tmp_path / "q" / "pending" / "b.json", tmp_path / "b.json")
    first_took, second_took, first_ended = (threading.Event() for _ in range(3))
    claim, tell, wait_for = Claimer._claim, {"a": first_took, "b": second_took}, {"a": second_took, "b": first_ended}

    def claim_later(claimer: Claimer, stems: list[str], *args: Any) -> None:
        if stems and stems[0] in tell:
            tell[stems[0]].set()
            assert wait_for[stems[0]].wait(GUARD_S)
        claim(claimer, stems, *args)

    monkeypatch.setattr(Claimer, "_claim", claim_later)

    def get() -> list[str]:
        try:
            return ids(queue.get(1))
        finally:
            first_ended.set()

    first = InThread(get)
    assert first_took.wait(GUARD_S)
    assert (ids(queue.get(1)), first.result()) == (["c"], ["a"])
    queue.close()


def test_an_interrupt_waits_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it comes while work is handed to a thread: the caller may close what that writes to."""
    submit, begun, running = ThreadPoolExecutor.submit, threading.Semaphore(0), []

    def work(item: int) -> None:
        running.append(item)
        begun.release()
        threading.Event().wait(0.2)
        running.remove(item)

    def interrupted(*args: Any) -> Any:
        future = submit(*args)
        begun.acquire()
        if len(running) == 2:
            raise KeyboardInterrupt
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FileOps().each(work, [1, 2, 3], 4)
    assert running == []


def test_an_unreadable_file_costs_that_ref_alone(shared: Tap, tmp_path: Path) -> None:
    """One of the reads that were made side by side fails: the others are delivered, and this one comes again."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=4, durable=False)
    queue.put(numbered(6))

    def fail(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "open" and str(args[0]).startswith("s00003@"):
            raise OSError(errno.EIO, "Input/output error")

    shared.before = fail
    assert ids(queue.get(6)) == [f"s0000{i}" for i in (0, 1, 2, 4, 5)]
    shared.before = None
    assert ids(queue.get(6)) == ["s00003"]
    queue.close()
    assert_clean(tmp_path / "q")


def test_a_disk_that_fills_up_leaves_nothing_of_a_put(shared: Tap, tmp_path: Path) -> None:
    """The fourth of the writes that are made side by side fails: nothing is pending, and tmp/ is empty."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=4, durable=False)
    queue.get(1)
    writes = itertools.count(1)

    def fail(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "write" and next(writes) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    shared.before = fail
    with pytest.raises(QueueIOError, match="No space left"):
        queue.put(numbered(8))
    shared.before = None
    assert names_in(tmp_path / "q", "pending") == names_in(tmp_path / "q", "tmp") == []
    queue.put(numbered(8))
    assert queue.depth() == 8
    queue.close()


@pytest.mark.parametrize(("backlog", "lookups"), [(0, 0), (500, 10)])
def test_a_short_backlog_is_listed_a_long_one_is_asked_for(
    shared: Tap, tmp_path: Path, backlog: int, lookups: int
) -> None:
    """Finding out which ids are pending already costs one listing if few are, and a lookup each if many are."""
    queue = open_tapped(shared, tmp_path / "q", io_threads=1, durable=False)
    queue.put(numbered(backlog, prefix="old"))
    queue.put(refs("warm up"))
    shared.counts.clear()
    queue.put(numbered(10))
    assert shared.counts["access"] == lookups
    queue.put(numbered(10))
    assert queue.depth() == backlog + 11
    queue.close()


@pytest.mark.parametrize("io_threads", [0, -1, "some", 1.5])
def test_a_number_of_threads_that_makes_no_sense_is_refused(tmp_path: Path, io_threads: Any) -> None:
    """The error names what is expected, and no queue is made."""
    with pytest.raises(QueueConfigError, match="io_threads of at least 1 or 'auto'"):
        FileSampleRefQueue(tmp_path / "q", io_threads=io_threads)
    assert not (tmp_path / "q").exists()
