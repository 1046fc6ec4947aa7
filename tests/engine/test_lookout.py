"""A get that waits on a shared mount makes few looks, and misses nothing that it is to notice."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueClosedError, SampleRef
from fsqueue.aio import AsyncSampleRefQueue
from fsqueue.records import dp_partition
from tests.support import (
    Child,
    Queue,
    assert_clean,
    ids,
    lease_and_obey,
    numbered,
    ref,
    refs,
)
from tests.support.shared import Shared

SHARED = ["nfs4", "lustre", "fuse.glusterfs", "fuse.sshfs", "one that nobody knows"]


@pytest.fixture
def other(path: Path) -> Any:
    """Another handle, which knows the mount as a local one."""
    with FileSampleRefQueue[SampleRef](path, lease_timeout_s=600.0, durable=False) as queue:
        yield queue


@pytest.mark.parametrize("mount", SHARED)
def test_a_get_that_waits_makes_at_most_two_operations_a_second(path: Path, mount: str) -> None:
    """Rounds and sweeps included, once it has been idle for ten seconds."""
    shared = Shared(path, mount)
    assert shared.queue.get(1, 130.0) == []
    assert 0 < shared.a_second(130.0) <= 2
    shared.queue.close()


@pytest.mark.parametrize("mount", ["nfs4", "lustre"])
def test_so_does_a_loop_of_work(path: Path, other: Queue, mount: str) -> None:
    other.put(refs("a"))  # until something was put, each get looks for the class of what is in the queue
    other.ack(other.get(1))
    shared = Shared(path, mount)
    assert list(shared.queue.consume(idle_s=130.0)) == []
    assert 0 < shared.a_second(130.0) <= 2
    shared.queue.close()


def test_so_does_a_get_in_asyncio(path: Path) -> None:
    shared = Shared(path, "nfs4")

    async def wait() -> None:
        async with AsyncSampleRefQueue(shared.queue) as queue:
            assert await queue.get(1, 130.0) == []

    asyncio.run(wait())
    assert 0 < shared.a_second(130.0) <= 2


def test_gets_in_several_threads_share_a_look(path: Path) -> None:
    """The second of two that begin at the same time makes no operation."""
    shared = Shared(path, "nfs4")
    assert shared.queue.get(1, 30.0) == []
    shared.now += 1.0
    before = shared.tap.counts.total()
    for waiter in [shared.queue.engine.getter.pace.waiter(30.0, None) for _ in range(2)]:
        waiter.first()
    assert shared.tap.counts.total() == before + 3
    shared.queue.close()


@pytest.mark.parametrize("mount", SHARED)
@pytest.mark.parametrize("interval_s", [None, 0.5])
def test_a_put_is_seen_within_the_poll_interval(path: Path, other: Queue, mount: str, interval_s: float | None) -> None:
    """However long the get has waited; by default that is 3 s, or 6 s where listings may be old."""
    shared = Shared(path, mount, poll_interval_s=interval_s)
    put_at = shared.after(100.0, lambda: other.put(refs("a")))
    assert ids(shared.queue.get(1, 200.0)) == ["a"]
    assert shared.queue.handle.poll_interval_s == interval_s or shared.queue.handle.poll_interval_s in (3.0, 6.0)
    assert put_at <= shared.now <= put_at + shared.queue.handle.poll_interval_s
    shared.queue.close()


def test_a_get_that_has_waited_shortly_wakes_sooner(path: Path, other: Queue) -> None:
    """A pause lasts for a fifth of the time that was waited."""
    shared = Shared(path, "nfs4")
    put_at = shared.after(1.0, lambda: other.put(refs("a")))
    assert ids(shared.queue.get(1, 200.0)) == ["a"]
    assert shared.now <= put_at + 0.3
    shared.queue.close()


def test_a_ref_that_was_moved_in_by_hand_is_seen_too(path: Path, other: Queue) -> None:
    """No line of the order names it: it is leased a second after the look that shows it, or with the next one."""
    other.put(refs("a"))
    os.rename(path / "pending" / "a.json", path / "a.json")
    shared = Shared(path, "nfs4")
    put_at = shared.after(100.0, lambda: os.rename(path / "a.json", path / "pending" / "a.json"))
    assert ids(shared.queue.get(1, 200.0)) == ["a"]
    assert shared.now <= put_at + 2 * shared.queue.handle.poll_interval_s
    shared.queue.close()


def test_names_that_are_none_of_the_queue_s_hide_no_ref(path: Path, other: Queue) -> None:
    """However many of them a listing shows first."""

    def put() -> None:
        other.put(refs("a"))
        for number in range(200):  # a tmpfs lists the latest first, other filesystems in an order of their own
            (path / "pending" / f".{number}.part").touch()
            (path / "pending" / f"a.{number}.part").touch()

    shared = Shared(path, "nfs4")
    put_at = shared.after(100.0, put)
    assert ids(shared.queue.get(1, 200.0)) == ["a"]
    assert shared.now <= put_at + shared.queue.handle.poll_interval_s
    shared.queue.close()


@pytest.mark.parametrize("mount", ["nfs4", "fuse.sshfs"])
def test_a_listing_that_stays_old_costs_a_minute(path: Path, other: Queue, mount: str) -> None:
    """An NFS client may believe one until the directory changes again; the order tells of the put."""
    shared = Shared(path, mount)
    shared.tap.ops.scan_until = lambda fd, accept: False
    put_at = shared.after(100.0, lambda: other.put(refs("a")))
    assert ids(shared.queue.get(1, 400.0)) == ["a"]
    assert shared.now <= put_at + 60.0 + shared.queue.handle.poll_interval_s
    shared.queue.close()


def test_a_get_of_a_partition_waits_for_nothing_while_others_have_some_pending(path: Path, other: Queue) -> None:
    """Also where it begins after one that has waited, and the last look was a moment ago."""
    theirs = [each for each in numbered(20) if dp_partition(each.sample_id, 2) == 1]
    shared = Shared(path, "nfs4")
    put_at = shared.after(100.0, lambda: other.put(theirs))
    assert shared.queue.get(1, 200.0, partition=(0, 2)) == []
    seen_at = shared.now
    assert put_at <= seen_at <= put_at + shared.queue.handle.poll_interval_s
    for _ in range(5):
        assert shared.queue.get(1, 200.0, partition=(0, 2)) == [] and shared.now == seen_at
    shared.queue.close()


def test_a_ref_that_comes_and_goes_between_two_looks_and_comes_again(path: Path, other: Queue) -> None:
    """Each look that shows it has it tried, whatever the one before has shown."""
    shared = Shared(path, "nfs4")
    held: list[SampleRef] = []
    other.put(refs("a"))
    held += other.get(1)
    for number in range(20):
        shared.after(60.0 + number, lambda: other.release(held) and None)
        shared.after(60.0 + number + 0.001, lambda: held.__setitem__(slice(None), other.get(1)))
    back_at = shared.after(90.0, lambda: other.release(held))
    assert ids(shared.queue.get(1, 200.0)) == ["a"]
    assert shared.now <= back_at + shared.queue.handle.poll_interval_s
    shared.queue.close()


def test_a_lease_that_expires_is_noticed_in_time(path: Path) -> None:
    """However long nothing has happened."""
    shared = Shared(path, "nfs4", lease_timeout_s=60.0)
    slept = shared.tap.ops.sleep

    def sleep(seconds: float) -> None:
        slept(seconds)
        for state in ("leased", "owners"):
            for file in (path / state).iterdir():
                os.utime(file, ns=(0, int(os.stat(file).st_mtime_ns - seconds * 1e9)))

    shared.tap.ops.sleep = sleep
    with FileSampleRefQueue(path, lease_timeout_s=60.0) as holder:
        holder.put(refs("a"))
        holder.get(1)
        assert ids(shared.queue.get(1, 300.0)) == ["a"]
        assert 1_050.0 <= shared.now < 1_061.5  # real time passes, too, by the clock that stamps
        shared.queue.close()


def test_the_death_of_a_process_on_this_host_is_noticed_within_a_second(path: Path, other: Queue) -> None:
    """Of one that held leases when this handle looked last; no file is looked at for that."""
    other.put(refs("a"))
    with Child(lease_and_obey, path, 1, {"lease_timeout_s": 600.0}) as child:
        child.receive()
        shared = Shared(path, "nfs4")
        killed_at = shared.after(100.0, child.kill)
        assert ids(shared.queue.get(1, 200.0)) == ["a"]
        assert shared.now <= killed_at + 1.2
        shared.queue.close()
    assert_clean(path)


def test_a_stop_is_heard_at_once(path: Path) -> None:
    """However long the pauses are by then."""
    shared, stop = Shared(path, "nfs4"), threading.Event()
    set_at = shared.after(100.0, stop.set)
    assert shared.queue.get(1, 200.0, stop_event=stop) == []
    assert shared.now <= set_at + 0.2
    closed_at = shared.after(150.0, shared.queue.close)
    with pytest.raises(QueueClosedError):
        shared.queue.get(1, 200.0)
    assert shared.now <= closed_at + 0.2


def test_long_pauses_are_no_gap_in_being_awake(path: Path) -> None:
    """Else a get that has waited for long could call nobody's lease expired."""
    shared = Shared(path, "nfs4", lease_timeout_s=60.0, heartbeat_s=20.0)
    shared.tap.ops.time = lambda: shared.now
    assert shared.queue.get(1, 120.0) == []
    assert shared.queue.handle.awake.gaps == 0
    shared.queue.close()


def test_a_pause_costs_no_more_and_its_end_is_seen_within_the_poll_interval(path: Path, other: Queue) -> None:
    other.put(refs("a"))
    other.pause("a test")
    shared = Shared(path, "nfs4")
    ended_at = shared.after(130.0, other.resume)
    assert ids(shared.queue.get(1, 200.0)) == ["a"]
    assert ended_at <= shared.now <= ended_at + shared.queue.handle.poll_interval_s
    assert shared.a_second(130.0) <= 2
    shared.queue.close()


def test_a_look_that_fails_has_the_get_look_at_all(path: Path, other: Queue) -> None:
    """It says why nothing can be had, or finds what is there all the same."""
    shared = Shared(path, "nfs4")

    def fail(name: str, args: Any, _: Any) -> None:
        if name == "scan_until":
            raise OSError(errno.EIO, "no look")

    assert shared.queue.get(1, 30.0) == []
    shared.tap.before = fail
    shared.began = shared.now
    put_at = shared.after(10.0, lambda: other.put([ref("a")]))
    assert ids(shared.queue.get(1, 120.0)) == ["a"]
    assert shared.now <= put_at + 20.0
    shared.queue.close()


def test_gets_one_after_the_other_go_on_where_the_last_one_stood(path: Path, other: Queue) -> None:
    """One that begins as the last one ends makes no look of its own for that."""
    other.put(refs("a"))  # until something was put, each get looks for the class of what is in the queue
    other.ack(other.get(1))
    shared = Shared(path, "nfs4")
    while shared.now < 1_130.0:
        assert shared.queue.get(1, 5.0) == []
    assert shared.a_second(130.0) <= 2
    put_at = shared.now
    other.put(numbered(1))
    assert len(shared.queue.get(1, 5.0)) == 1 and shared.now - put_at <= shared.queue.handle.poll_interval_s
    shared.queue.close()
