"""Real filesystems without a block or an inode left: whatever empties a queue goes on, also when it is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError, TrainerView
from fsqueue.engine.reserve import RESERVE
from fsqueue.operate.operator import pack, purge
from fsqueue.operate.requeue import requeue_failed
from tests.support import (
    Child,
    assert_clean,
    backdate,
    drain,
    ids,
    lease_and_obey,
    names_in,
    numbered,
    ref,
)
from tests.support.disks import KINDS, free, mounted, use_up_blocks, use_up_inodes

USE_UP: dict[str, Callable[[Path], list[Path]]] = {"blocks": use_up_blocks, "inodes": use_up_inodes}
COUNT = 300
EVERYTHING = [
    pytest.param(kind, what, marks=pytest.mark.slow if (kind, what) == ("xfs", "inodes") else ())  # thousands of files
    for kind in KINDS
    for what in USE_UP
]


class Full:
    """A queue on a disk that is full.

    Attributes:
        ballast: the files that fill it.
    """

    def __init__(self, path: Path, ballast: list[Path]) -> None:
        self.path = path
        self.ballast = ballast


@contextmanager
def full_disk(folder: Path, kind: str, what: str, prepare: Callable[[Path], None]) -> Iterator[Full]:
    with mounted(kind, folder, few_inodes=what == "inodes") as disk:
        path = disk / "q"
        prepare(path)
        yield Full(path, USE_UP[what](disk))


def with_pending(path: Path) -> None:
    """A queue with refs to get."""
    with FileSampleRefQueue(path, lease_timeout_s=600.0) as queue:
        queue.put(numbered(COUNT))


def with_done(path: Path) -> None:
    """A queue with refs that are done, and two dead letters."""
    with FileSampleRefQueue(path, lease_timeout_s=600.0) as queue:
        queue.put([*numbered(COUNT), ref("x"), ref("y")])
        queue.ack(queue.get(COUNT), step=7)
        queue.fail(queue.get(2), "broken", retryable=False)


@pytest.mark.parametrize("keep_done", [True, False], ids=["kept", "removed"])
@pytest.mark.parametrize(("kind", "what"), EVERYTHING)
def test_a_new_consumer_drains_a_full_disk(tmp_path: Path, kind: str, what: str, keep_done: bool) -> None:
    """It needs no record to lease, and the reserve has the blocks for the names in leased/ and done/."""
    with full_disk(tmp_path, kind, what, with_pending) as full:
        got: list[str] = []
        with FileSampleRefQueue(full.path, keep_done=keep_done) as queue:
            assert names_in(full.path, "owners") == []
            while batch := queue.get(16):
                got += ids(batch)
                assert queue.ack(batch, step=len(got)) == []
            assert got == ids(numbered(COUNT))
            assert queue.counts() == (0, 0, COUNT if keep_done else 0, 0)
        assert_clean(full.path)


@pytest.mark.parametrize(("kind", "what"), EVERYTHING)
def test_the_operators_commands_make_room(tmp_path: Path, kind: str, what: str) -> None:
    """Packing loses nothing of what is done; requeueing and purging work too, and make room for a put."""
    with full_disk(tmp_path, kind, what, with_done) as full:
        assert pack(str(full.path), 0.0).refs == COUNT
        assert len(names_in(full.path, "done")) < COUNT / 10
        assert [outcome.moved for outcome in requeue_failed(str(full.path))] == [True, True]
        with FileSampleRefQueue(full.path) as queue:
            assert queue.counts() == (2, 0, COUNT, 0)
            assert drain(queue) == ["x", "y"]
            free(full.ballast)  # each ref that comes back from a segment takes an inode and a block
            assert queue.rewind(after_step=6) == ids(numbered(COUNT))
            full.ballast += USE_UP[what](full.path.parent)
            assert sorted(drain(queue)) == ids(numbered(COUNT))
            purge(str(full.path), "done", 0.0)
            assert queue.counts() == (0, 0, 0, 0)
            queue.put(numbered(COUNT))
            assert sorted(drain(queue)) == ids(numbered(COUNT)), "there may be no room to name them in the order"
        assert_clean(full.path)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_without_any_room_says_so_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    """Where the reserve is gone too, the error names the room that it takes, and every file keeps its name."""

    def prepare(path: Path) -> None:
        with_done(path)
        (path / RESERVE).unlink()

    with full_disk(tmp_path, kind, "blocks", prepare) as full:
        before = names_in(full.path, "done")
        with pytest.raises(QueueIOError, match=r"packing .*bytes and an inode to begin with; \d+ bytes are free"):
            pack(str(full.path), 0.0)
        assert names_in(full.path, "done") == before
        free(full.ballast)
        assert pack(str(full.path), 0.0).refs == COUNT
        assert_clean(full.path)


@pytest.mark.parametrize(("kind", "what"), EVERYTHING)
def test_leases_of_a_process_killed_on_a_full_disk_come_back(tmp_path: Path, kind: str, what: str) -> None:
    """Without a record nothing proves that it is dead: its leases end by their own stamps."""
    with full_disk(tmp_path, kind, what, with_pending) as full, Child(lease_and_obey, full.path, 10, {}) as child:
        _, leased = child.receive()
        assert len(leased) == 10 and names_in(full.path, "owners") == []
        child.kill()
        with FileSampleRefQueue(full.path) as queue:
            for name in names_in(full.path, "leased"):
                backdate(full.path / "leased" / name, 700.0)
            assert queue.reclaim() == 10
            assert sorted(drain(queue)) == ids(numbered(COUNT))
        assert_clean(full.path)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize(("kind", "what"), EVERYTHING)
def test_several_consumers_join_on_a_full_disk(tmp_path: Path, kind: str, what: str, stream: bool) -> None:
    """Each takes an inode for its file, and the first one another for stream/: the reserve has them."""

    def prepare(path: Path) -> None:
        with_pending(path)
        if stream:
            with FileSampleRefQueue(path) as queue:
                queue.configure_stream(silence_s=30)

    with full_disk(tmp_path, kind, what, prepare) as full, ExitStack() as at_work:
        got: list[str] = []
        for number in range(5):
            queue = at_work.enter_context(FileSampleRefQueue(full.path))
            at_work.enter_context(queue.consumer(f"c{number}"))
            got += ids(batch := queue.get(8))
            assert queue.ack(batch) == []
        view = at_work.enter_context(TrainerView(at_work.enter_context(FileSampleRefQueue(full.path)), batch=8))
        got += ids(batch := view.get())
        assert view.ack(batch, step=1) == []
        assert len(got) == 48 and len(queue.stream().members()) == 6


def acknowledge_and_pack(pipe: Connection, path: Path) -> None:
    """A child that says what it acknowledges, and packs now and then."""
    with FileSampleRefQueue(path) as queue:
        while batch := queue.get(7):
            queue.ack(batch, step=1)
            pipe.send(ids(batch))
            with suppress(QueueIOError):  # the last inode may have gone to what a killed one left behind
                queue.pack(older_than_s=0.0)


@pytest.mark.parametrize(("kind", "what"), EVERYTHING)
def test_kills_on_a_full_disk_lose_nothing(tmp_path: Path, kind: str, what: str) -> None:
    """Whatever it was at when it was killed, each ref is in one state, and what it said was done is done."""
    acked: list[str] = []
    with full_disk(tmp_path, kind, what, with_pending) as full:
        for reports in (1, 3, 2):
            with Child(acknowledge_and_pack, full.path) as child:
                for _ in range(reports):
                    acked += child.receive()
                child.kill()
                with suppress(EOFError):
                    while True:
                        acked += child.pipe.recv()
        with FileSampleRefQueue(full.path) as queue:
            for name in names_in(full.path, "leased"):
                backdate(full.path / "leased" / name, 700.0)
            queue.reclaim()
            rest = drain(queue)
            assert set(rest).isdisjoint(acked)
            assert queue.counts() == (0, 0, COUNT, 0)
            free(full.ballast)
            assert set(acked) <= set(queue.rewind(after_step=0)), "what was drained here was acked without a step"
            assert queue.counts() == (COUNT - len(rest), 0, len(rest), 0)
        assert_clean(full.path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_put_leaves_the_reserve_alone(tmp_path: Path, kind: str) -> None:
    """What fills a disk gets nothing of what is there to empty it."""
    with full_disk(tmp_path, kind, "blocks", with_pending) as full, FileSampleRefQueue(full.path) as queue:
        before = os.stat(full.path / RESERVE).st_size
        with pytest.raises(QueueIOError, match="ENOSPC"):
            queue.put(numbered(COUNT, prefix="new"))
        assert os.stat(full.path / RESERVE).st_size == before > 0
        assert queue.depth() == COUNT and names_in(full.path, "tmp") == []


@pytest.mark.parametrize(("kind", "what"), EVERYTHING)
def test_a_consumer_joins_a_stream_on_a_full_disk(tmp_path: Path, kind: str, what: str) -> None:
    """Its file is worth the reserve; a producer's, who would fill the disk further, is not."""

    def prepare(path: Path) -> None:
        with FileSampleRefQueue(path, lease_timeout_s=600.0) as queue, queue.producer("rollout"):
            queue.put(numbered(COUNT))

    with full_disk(tmp_path, kind, what, prepare) as full, FileSampleRefQueue(full.path) as queue:
        with pytest.raises(QueueIOError, match="ENOSPC"):
            queue.producer("another")
        with queue.consumer("trainer"):
            assert drain(queue) == ids(numbered(COUNT))
            assert queue.drained()
