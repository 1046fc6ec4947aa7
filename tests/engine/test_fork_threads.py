"""One handle in several threads and across fork; several handles in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, OtherProcessError, QueueClosedError, TrainerView, dp_partition
from fsqueue.engine import lock
from tests.support import (
    GUARD_S,
    FakeClock,
    InThread,
    Tap,
    assert_clean,
    content,
    drain,
    folder_of,
    holders_in,
    ids,
    in_fork,
    names_in,
    numbered,
    open_descriptors,
    open_tapped,
    ref,
    refs,
    together,
    wait_until,
)

# Python 3.12 warns of every fork beside threads; handles are made for it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_child_is_an_owner_of_its_own(path: Path) -> None:
    """After a fork the child's first use opens a handle of its own; the parent's lease stays the parent's."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("a", "b"))
    leased = queue.get(1)
    parent = queue.owner

    def child() -> None:
        assert queue.owner != parent
        assert f".{os.getpid()}." in queue.owner
        assert queue.get(5) == refs("b")
        assert holders_in(path) == sorted([f"a@{parent}", f"b@{queue.owner}"])
        assert queue.ack(refs("b")) == []
        queue.close()

    in_fork(child)
    assert queue.owner == parent
    assert queue.ack(leased) == []
    assert names_in(path, "done") == ["a.json", "b.json"]
    assert_clean(path)


def test_child_acks_by_id(path: Path) -> None:
    """A child may ack what its parent leased; the parent's own ack of it then changes nothing."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("a"))
    leased = queue.get(1)

    def child() -> None:
        assert queue.ack(leased) == []

    in_fork(child)
    assert names_in(path, "done") == ["a.json"]
    queue.ack(leased)
    assert tuple(queue.counts()) == (0, 0, 1, 0)


def test_childs_leases_end_with_the_child(path: Path) -> None:
    """A forked child's leases come back when it is gone, though its parent lives and has the same handle."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("a"))

    def child() -> None:
        assert ids(queue.get(1)) == ["a"]

    in_fork(child)
    assert ids(queue.get(1, GUARD_S)) == ["a"]


def test_childs_descriptors_are_its_own(path: Path) -> None:
    """The child closes the parent's descriptors when it is forked, and closing its handle leaves the parent's open."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("a"))
    before = open_descriptors()

    def child() -> None:
        assert open_descriptors() < before
        queue.get(1)
        queue.release(refs("a"))
        queue.close()
        with pytest.raises(QueueClosedError):
            queue.get(1)

    in_fork(child)
    assert open_descriptors() == before
    assert ids(queue.get(1, 1.0)) == ["a"]


@pytest.mark.parametrize("mode", ["flock", "none", "lease"])
@pytest.mark.parametrize("operation", ["put", "get"])
def test_fork_while_a_thread_is_inside(path: Path, operation: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork in the middle of another thread's put or get, lock held, leaves the child a working handle."""
    monkeypatch.setattr(lock, "GET_PATIENCE_S", 0.05)
    tap, parent = Tap(), os.getpid()
    inside, go_on = threading.Event(), threading.Event()
    queue = open_tapped(tap, path, lock=mode, durable=False)
    queue.put(refs("a", "b"))
    queue.release(queue.get(1))

    def block(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
            in_lock = name == "pread" if operation == "get" else name == "rename"
            if in_lock and not inside.is_set():
                inside.set()
                assert go_on.wait(GUARD_S)

    tap.before = block
    thread = InThread(lambda: queue.put(refs("c")) if operation == "put" else ids(queue.get(1)))
    assert inside.wait(GUARD_S)

    def child() -> None:
        assert len(queue.get(2, 5.0)) == 2
        assert queue.ack(refs("a", "b")) == []
        queue.close()

    in_fork(child)
    go_on.set()
    thread.result()
    tap.before = None
    assert drain(queue) == (["c"] if operation == "put" else [])
    assert names_in(path, "done") == (["a.json", "b.json", "c.json"] if operation == "put" else ["a.json", "b.json"])
    assert names_in(path, "tmp") == []
    assert_clean(path)


def test_heartbeat_in_the_child(path: Path) -> None:
    """A child's heartbeat beats for its own record, by a thread of its own."""
    queue = FileSampleRefQueue(path, lease_timeout_s=60.0, heartbeat_s=0.02)
    queue.put(refs("a"))
    queue.get(0)
    queue.release(queue.get(1))

    def child() -> None:
        assert ids(queue.get(1)) == ["a"]
        record = path / "owners" / f"{queue.owner}.json"
        record.unlink()
        wait_until(record.exists, "a beat of the child")
        queue.ack(refs("a"))
        queue.close()

    in_fork(child)
    queue.close()
    assert names_in(path, "owners") == []


def test_threads_share_a_handle(path: Path) -> None:
    """Eight threads on one handle put, get, ack, fail and release; each ref is acked by exactly one of them."""
    queue = FileSampleRefQueue(path, durable=False, lease_timeout_s=3600.0)
    acked: Counter[str] = Counter()
    holding: set[str] = set()
    produced = threading.Barrier(8)
    guard = threading.Lock()

    def work(number: int) -> None:
        for k in range(10):
            queue.put(numbered(5, prefix=f"t{number}-{k}-"))
        produced.wait(GUARD_S)
        round_number = 0
        while batch := queue.get(7, 0.5):
            round_number += 1
            with guard:
                assert not holding & set(ids(batch)), "leased to two threads"
                holding.update(ids(batch))
            give_back = batch[:2] if round_number % 3 == 0 else []
            with guard:
                holding.difference_update(ids(batch))
            queue.release(give_back[:1])
            queue.fail(give_back[1:], "again", retryable=True)
            assert queue.ack(batch[len(give_back) :]) == []
            with guard:
                acked.update(ids(batch[len(give_back) :]))

    threads = [InThread(partial(work, number)) for number in range(8)]
    for thread in threads:
        thread.result()
    assert len(acked) == 400 and set(acked.values()) == {1}
    assert tuple(queue.counts()) == (0, 0, 400, 0)
    queue.close()
    assert_clean(path)


def test_first_get_in_two_threads(path: Path) -> None:
    """Two threads that make a handle's first lease at once announce one owner between them."""
    tap, barrier = Tap(), threading.Barrier(2)
    queue = open_tapped(tap, path)
    queue.put(refs("a", "b"))

    def meet(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and folder_of(kwargs["dst_dir_fd"]) == "owners":
            together(barrier)

    tap.before = meet
    threads = [InThread(lambda: ids(queue.get(1))) for _ in range(2)]
    assert sorted(found for thread in threads for found in thread.result()) == ["a", "b"]
    assert names_in(path, "owners") == [f"{queue.owner}.json"]
    assert names_in(path, "tmp") == []


def test_one_ref_named_twice_in_two_threads(path: Path) -> None:
    """Two threads that come to the same ref at the same moment, by a doubled line, do not both get it."""
    tap, barrier = Tap(), threading.Barrier(2)
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    with open(path / "order.lock", "ab") as order:
        order.write(b"a\n")

    def meet(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and args[0] == "a.json":
            together(barrier)

    tap.before = meet
    threads = [InThread(lambda: ids(queue.get(1))) for _ in range(2)]
    assert sorted(thread.result() for thread in threads) == [[], ["a"]]


def test_reclaim_in_two_threads(path: Path) -> None:
    """Two threads that reclaim the same expired lease count one attempt and one ref between them."""
    clock, tap, barrier = FakeClock(), Tap(), threading.Barrier(2)
    a = FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock)
    b = open_tapped(tap, path, clock=clock)
    a.put(refs("s"))
    a.get(1)
    clock.now += 61.0

    def meet(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and args[0].startswith(f"s@{a.owner}"):
            together(barrier)

    tap.before = meet
    threads = [InThread(b.reclaim) for _ in range(2)]
    assert sorted(thread.result() for thread in threads) == [0, 1]
    assert content(path / "pending" / "s.json")["_fsqueue"]["expiries"] == 1
    assert len(content(path / "pending" / "s.json")["_fsqueue"]["history"]) == 1


def test_own_expired_lease_renewed_in_another_thread(path: Path) -> None:
    """When one thread renews what another thread of the handle is reclaiming, renew tells the truth."""
    clock, tap = FakeClock(), Tap()
    queue = open_tapped(tap, path, lease_timeout_s=60.0, clock=clock)
    queue.put(refs("s"))
    leased = queue.get(1)
    clock.now += 61.0
    renewing: list[InThread] = []

    def renew_in_between(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "pwrite" and not renewing:
            renewing.append(InThread(lambda: queue.renew(leased)))
            renewing[0].thread.join(0.5)

    tap.before = renew_in_between
    queue.reclaim()
    lost = renewing[0].result()
    assert (lost == []) == bool(names_in(path, "leased")), "renewed means still leased"


def test_five_handles_with_partitions(path: Path) -> None:
    """A power user: five handles in one process, four of them partitions of one queue, at the same time."""
    handles = [FileSampleRefQueue(path, durable=False, owner=f"rank{k}") for k in range(5)]
    trained: dict[int, list[str]] = {k: [] for k in range(4)}
    done = threading.Event()

    def produce() -> None:
        for k in range(20):
            handles[4].put(numbered(25, prefix=f"p{k}-"))
        done.set()

    def train(rank: int) -> None:
        while True:
            was_done = done.is_set()
            batch = handles[rank].get(16, 0.02, partition=(rank, 4))
            assert all(dp_partition(i, 4) == rank for i in ids(batch))
            assert handles[rank].ack(batch, step=len(trained[rank])) == []
            trained[rank] += ids(batch)
            if was_done and not batch:
                return

    threads = [InThread(produce), *(InThread(partial(train, rank)) for rank in range(4))]
    for thread in threads:
        thread.result()
    everything = [i for part in trained.values() for i in part]
    assert len(everything) == len(set(everything)) == 500
    assert tuple(handles[4].counts()) == (0, 0, 500, 0)
    for rank in range(4):
        expected = [f"p{k}-{n:05d}" for k in range(20) for n in range(25) if dp_partition(f"p{k}-{n:05d}", 4) == rank]
        assert trained[rank] == expected, "FIFO within a partition"
    for handle in handles:
        handle.close()
    assert_clean(path)


def test_a_thread_that_outlives_the_main_thread_can_put(tmp_path: Path) -> None:
    """No thread can be started any more by then; the fsyncs are made one after the other."""
    program = """if True:
        import sys, threading
        from fsqueue import FileSampleRefQueue, SampleRef

        def work():
            threading.main_thread().join()
            refs = [SampleRef(f"s{i}", "run", None, "file:///f", {}, {}, "eagle3") for i in range(3)]
            queue.put(refs)
            print(queue.depth())

        queue = FileSampleRefQueue(sys.argv[1])
        threading.Thread(target=work).start()
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "q")], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_stream_s_members_stay_the_parent_s(path: Path) -> None:
    """However a forked child leaves the parent's blocks, the parent goes on as producer and as view."""
    with FileSampleRefQueue(path, lease_timeout_s=60) as queue, queue.producer("rollout"):
        queue.put(refs("a", "b"))
        with TrainerView(queue) as view:
            leased = view.get()

            def child() -> None:
                for use in (view.get, lambda: view.ack(leased), lambda: view.fail(leased, "no", True)):
                    with pytest.raises(OtherProcessError, match=f"process {os.getppid()}"):
                        use()
                with pytest.raises(OtherProcessError):
                    view.ack_ids([])
                view.close()
                view.__exit__(RuntimeError, RuntimeError("in the child"), None)
                with queue.producer("child"):
                    pass
                assert ids(queue.get(1)) == ["b"]  # the queue itself is the child's to use
                queue.release(refs("b"))

            in_fork(child)
            members = {member.record.name: member.state for member in queue.stream().members()}
            assert members == {"rollout": "open", "trainer-0": "open", "child": "closed"}
            assert view.ack(leased) == []
            view.ack(view.get())
    assert names_in(path, "done") == ["a.json", "b.json"]
    assert_clean(path)


@pytest.mark.parametrize("error", [None, RuntimeError("in the child")])
def test_a_producer_s_block_that_a_child_leaves_is_the_parent_s(path: Path, error: Exception | None) -> None:
    queue = FileSampleRefQueue(path)
    with queue, queue.producer("rollout") as me:

        def child() -> None:
            me.__exit__(type(error) if error else None, error, None)
            me.fail("no")

        in_fork(child)
        (member,) = queue.stream().members()
        assert member.state == "open"
    assert_clean(path)


def test_a_waiting_get_whose_order_file_another_thread_closes(path: Path) -> None:
    """It looks without the lock, so a thread that has the lock may close the descriptor under it."""
    tap, other = Tap(), FileSampleRefQueue(path, durable=False)
    queue = open_tapped(tap, path, durable=False)
    assert queue.get(1) == []
    tap.ops.sleep = lambda seconds: other.put([ref("a")]) and None
    file, closed = queue.handle.order_file.content, list[int]()

    def close_it(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "pread" and other.depth() and not closed:
            closed.append(file.fd)
            file.drop()

    tap.before = close_it
    assert ids(queue.get(1, GUARD_S)) == ["a"]
    assert closed
    other.close()
    queue.close()
