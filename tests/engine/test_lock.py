"""The order lock: who is kept out, who goes on without it, and what a lock that nobody gives back costs."""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, SupportsIndex

import pytest
from filelock import FileLock

from fsqueue import FileSampleRefQueue, QueueIOError, StaleLockWarning
from fsqueue.engine import lock
from fsqueue.engine.reserve import INODES, RESERVE
from fsqueue.format.lines import stems_in
from tests.support import (
    GUARD_S,
    Child,
    InThread,
    Tap,
    assert_clean,
    drain,
    ids,
    locked_by_me,
    names_in,
    numbered,
    open_tapped,
    refs,
    wait_until,
)


def hold_the_lock(pipe: Connection, path: Path) -> None:
    """A child that holds the queue's lock until it is killed."""
    fd = locked_by_me(path)
    pipe.send(os.fstat(fd).st_ino)
    pipe.recv()


def test_it_is_filelocks_own_lock(path: Path) -> None:
    """While a FileLock user holds order.lock no put publishes, and it does as soon as the lock is given back."""
    queue = FileSampleRefQueue(path)
    held = FileLock(path / "order.lock")
    with held:
        thread = InThread(lambda: queue.put(refs("a")))
        wait_until(lambda: bool(names_in(path, "tmp")), "the put's file")
        time.sleep(0.02)
        assert names_in(path, "pending") == []
    thread.result()
    assert names_in(path, "pending") == ["a.json"]


def test_lock_is_held_while_publishing_only(path: Path) -> None:
    """put writes and syncs its files before it takes the lock, and gets claim after they have given it back."""
    tap, held = Tap(), [False]
    inside: set[str] = set()
    outside: set[str] = set()

    def note(name: str, *_: Any) -> None:
        if name == "unlock":
            held[0] = False
        (inside if held[0] else outside).add(name)

    def note_after(name: str, *_: Any) -> None:
        if name == "lock":
            held[0] = True

    queue = open_tapped(tap, path)
    queue.put(refs("warm"))
    queue.get(1)
    tap.before, tap.after = note, note_after
    queue.put(refs("a", "b"))
    assert "write" not in inside and "fsync" not in inside and "rename" in inside
    inside.clear()
    assert ids(queue.get(2)) == ["a", "b"]
    assert not inside & {"rename", "utime", "read", "open"}
    inside.clear()
    queue.ack(refs("a", "b"))
    assert inside == set(), "an ack needs no lock"


@pytest.mark.parametrize("how", ["deleted", "replaced", "moved away"])
def test_changed_lock_file_is_noticed(path: Path, how: str) -> None:
    """A handle whose lock file was deleted, replaced or moved away locks the new one, like everybody else."""
    a = FileSampleRefQueue(path, durable=False)
    a.put(refs("a"))
    order = path / "order.lock"
    if how == "deleted":
        order.unlink()
    elif how == "replaced":
        (path / "new").touch()
        (path / "new").replace(order)
    else:
        order.rename(path.parent / "old.lock")
        order.touch()
    a.put(refs("b"))
    assert "b" in stems_in(order.read_bytes())
    fd = locked_by_me(path)
    thread = InThread(lambda: a.put(refs("c")))
    time.sleep(0.02)
    assert names_in(path, "pending") == ["a.json", "b.json"], "and it is kept out by the new one"
    os.close(fd)
    thread.result()
    assert sorted(drain(a)) == ["a", "b", "c"]


@pytest.mark.parametrize("operation", ["lock", "fstat"])
def test_stale_descriptor_is_reopened(path: Path, operation: str) -> None:
    """ESTALE from the kept descriptor (another NFS client replaced the file) makes the handle open it anew."""
    tap = Tap()
    tap.ops.filesystem_type = lambda path: "nfs4"
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    stale = [int(fd) for fd in os.listdir("/proc/self/fd") if is_open_on(fd, path / "order.lock")]

    def estale(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == operation and args[0] in stale:
            raise OSError(errno.ESTALE, "injected")
        if name == "close" and args[0] in stale:
            stale.remove(args[0])

    tap.before = estale
    queue.put(refs("b"))
    assert ids(queue.get(2)) == ["a", "b"]
    assert stale == []


def is_open_on(fd: str, file: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(file)
    except FileNotFoundError:
        return False


def test_get_goes_on_without_the_lock(path: Path, impatient: None) -> None:
    """While another process sits on the lock, gets, acks, fails and releases work, and no ref comes twice."""
    a, b = FileSampleRefQueue(path, durable=False), FileSampleRefQueue(path, durable=False)
    a.put(numbered(20))
    with Child(hold_the_lock, path) as holder:
        holder.receive()
        first, second = a.get(5), b.get(15)
        assert sorted(ids(first) + ids(second)) == ids(numbered(20))
        assert a.release(first[:1]) == [] == a.fail(first[1:2], "x", retryable=True)
        assert a.ack(first[2:]) == [] == b.ack(second)
        assert sorted(ids(b.get(5, 5.0))) == sorted(ids(first[:2]))
        assert b.ack(first[:2]) == []
        assert b.get(1) == []
    assert tuple(a.counts()) == (0, 0, 20, 0)
    assert_clean(path)


def test_patience_is_lost_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Having waited for a stuck lock once, a handle only tries it for a while, and uses it again once it is free."""
    tap, slept = Tap(), [0.0]
    now = [0.0]
    tap.ops.monotonic = lambda: now[0]

    def sleep(seconds: SupportsIndex | float) -> None:
        slept[0] += float(seconds)
        now[0] += float(seconds)

    tap.ops.sleep = sleep
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(50))
    with Child(hold_the_lock, path) as holder:
        holder.receive()
        queue.get(1)
        assert lock.GET_PATIENCE_S <= slept[0] < 2 * lock.GET_PATIENCE_S
        waited = slept[0]
        for _ in range(20):
            assert len(queue.get(1)) == 1
        assert slept[0] == waited
    assert len(queue.get(50)) == 29
    assert slept[0] == waited


def test_partitioned_get_without_the_lock(path: Path, impatient: None) -> None:
    """A partitioned get keeps to its partition where it has to do without the lock."""
    from fsqueue import dp_partition

    queue = FileSampleRefQueue(path, durable=False)
    queue.put(numbered(30))
    with Child(hold_the_lock, path) as holder:
        holder.receive()
        found = ids(queue.get(30, partition=(1, 3)))
    assert sorted(found) == [i for i in ids(numbered(30)) if dp_partition(i, 3) == 1]


def test_put_replaces_a_lock_that_does_not_come_free(path: Path, impatient: None) -> None:
    """A put that cannot get the lock replaces its file, order included, warns, and all go on with the new one."""
    a, b = FileSampleRefQueue(path, durable=False), FileSampleRefQueue(path, durable=False)
    a.put(refs("first", "second"))
    with Child(hold_the_lock, path) as holder:
        inode = holder.receive()
        with pytest.warns(StaleLockWarning, match=r"order\.lock"):
            b.put(refs("third"))
        assert os.stat(path / "order.lock").st_ino != inode
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            a.put(refs("fourth"))
        assert ids(a.get(10)) == ["first", "second", "third", "fourth"]
        assert sorted(os.listdir(path)) == sorted(
            [
                RESERVE,
                *INODES,
                "fsqueue.json",
                "type.json",
                "order.lock",
                "owners",
                "tmp",
                "pending",
                "leased",
                "done",
                "failed",
            ]
        )
    a.ack(refs("first", "second", "third", "fourth"))
    assert_clean(path)


@pytest.mark.parametrize("fate", ["refused", "done, and denied"])
def test_a_replacement_that_the_filesystem_gets_wrong(path: Path, impatient: None, fate: str) -> None:
    """Refused, it leaves nothing behind; carried out and denied, as NFS does, it is one all the same."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))

    def fail(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "rename" and args[1] == "order.lock":
            code = errno.EDQUOT if fate == "refused" else errno.ENOENT
            raise OSError(code, os.strerror(code))

    with Child(hold_the_lock, path) as holder:
        holder.receive()
        if fate == "refused":
            tap.before = fail
            with pytest.raises(QueueIOError, match="EDQUOT"):
                queue.put(refs("b"))
        else:
            tap.after = fail
            with pytest.warns(StaleLockWarning):
                queue.put(refs("b"))
        assert [name for name in os.listdir(path) if name.startswith(".") and name not in INODES] == [RESERVE]
        tap.before = tap.after = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StaleLockWarning)
            queue.put(refs("b", "c"))
        assert ids(queue.get(9)) == ["a", "b", "c"]
    queue.ack(refs("a", "b", "c"))
    queue.close()
    assert_clean(path)


def test_warning_as_an_error_does_not_stop_the_replacement(path: Path, impatient: None) -> None:
    """With warnings as errors, a put past a stuck lock fails at most once."""
    queue = FileSampleRefQueue(path, durable=False)
    with Child(hold_the_lock, path) as holder, warnings.catch_warnings():
        holder.receive()
        warnings.simplefilter("error")
        try:
            queue.put(refs("a"))
        except StaleLockWarning:
            queue.put(refs("a"))
    assert drain(queue) == ["a"]
    assert names_in(path, "tmp") == []


def test_only_the_first_waiter_replaces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two puts that wait for a stuck lock, the second finds the file replaced and waits for that one afresh."""
    monkeypatch.setattr(lock, "PUT_TIMEOUT_S", 0.3)
    handles = [FileSampleRefQueue(path, durable=False) for _ in range(2)]
    with Child(hold_the_lock, path) as holder:
        inode = holder.receive()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            threads = [InThread(partial(handles[k].put, refs(f"by{k}"))) for k in range(2)]
            for thread in threads:
                thread.result()
        assert os.stat(path / "order.lock").st_ino != inode
    assert [w.category for w in caught] == [StaleLockWarning]
    assert sorted(drain(handles[0])) == ["by0", "by1"]
    assert_clean(path)


def test_second_waiter_sees_the_replacement(path: Path, impatient: None) -> None:
    """A waiter whose time is up looks whether the file has been replaced before it replaces it itself."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    with Child(hold_the_lock, path) as holder:
        holder.receive()
        replaced: list[int] = []

        def replace_first(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name == "lock" and not replaced:
                (path / "fresh").write_bytes((path / "order.lock").read_bytes())
                (path / "fresh").replace(path / "order.lock")
                replaced.append(os.stat(path / "order.lock").st_ino)

        tap.before = replace_first
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            queue.put(refs("b"))
        assert os.stat(path / "order.lock").st_ino == replaced[0]


def test_a_slow_put_in_this_process_is_waited_for(path: Path, impatient: None) -> None:
    """Another thread of the same handle that is slow inside its put is no dead node: nothing is replaced."""
    tap, inside, go_on = Tap(), threading.Event(), threading.Event()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    inode = os.stat(path / "order.lock").st_ino

    def slow(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and not inside.is_set():
            inside.set()
            assert go_on.wait(GUARD_S)

    tap.before = slow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = InThread(lambda: queue.put(refs("b")))
        assert inside.wait(GUARD_S)
        second = InThread(lambda: queue.put(refs("c")))
        second.thread.join(5 * lock.PUT_TIMEOUT_S)
        go_on.set()
        first.result()
        second.result()
    assert os.stat(path / "order.lock").st_ino == inode
    assert ids(queue.get(3)) == ["a", "b", "c"]


def test_killed_holder_frees_the_lock(path: Path) -> None:
    """The lock of a process that is killed comes free at once on a local disk: no warning, no waiting out."""
    queue = FileSampleRefQueue(path)
    with Child(hold_the_lock, path) as holder:
        holder.receive()
        thread = InThread(lambda: queue.put(refs("a")))
        holder.kill()
        thread.result()
    assert drain(queue) == ["a"]


def test_a_put_lets_others_in_between(path: Path) -> None:
    """A long put gives the lock back after each piece: whoever waits gets it, and finds all earlier refs in order."""
    tap, got = Tap(), list[str]()
    consumer = FileSampleRefQueue(path, durable=False)
    consumer.put(numbered(3, "a"))
    producer = open_tapped(tap, path, durable=False)
    elapsed = [0.0]
    tap.ops.monotonic = lambda: elapsed[0]

    def time_passes(name: str, *_: Any) -> None:
        elapsed[0] += 0.001 if name == "rename" else 0.0

    def let_in(pause_s: float) -> None:
        got.extend(ids(consumer.get(100)))

    tap.before, tap.ops.sleep = time_passes, let_in
    producer.put(numbered(200))
    got += drain(consumer)
    assert got == ids([*numbered(3, "a"), *numbered(200)])


def test_no_piece_of_a_put_outlasts_its_time(path: Path) -> None:
    """Where a rename takes a millisecond, no hold of the lock publishes more than what 16 of them allow."""
    tap, holds = Tap(), list[int]()
    producer = open_tapped(tap, path, durable=False)
    elapsed = [0.0]
    tap.ops.monotonic, tap.ops.sleep = lambda: elapsed[0], lambda pause_s: None

    def note(name: str, *_: Any) -> None:
        if name == "lock":
            holds.append(0)
        elif name == "rename":
            holds[-1] += 1
            elapsed[0] += 0.001

    tap.before = note
    producer.put(numbered(200))
    assert sum(holds) == 200 and max(holds) <= 16


@pytest.mark.parametrize("call", ["get", "put"])
def test_a_holder_that_moves_on_is_waited_for(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the locked file grows, nobody goes on without the lock or replaces it, however long that takes."""
    monkeypatch.setattr(lock, "GET_PATIENCE_S", 0.2)
    monkeypatch.setattr(lock, "PUT_TIMEOUT_S", 0.2)
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    fd, inode, elapsed = locked_by_me(path), (path / "order.lock").stat().st_ino, [0.0]
    tap.ops.monotonic = lambda: elapsed[0]

    def sleep(pause_s: float) -> None:
        nonlocal fd
        elapsed[0] += pause_s
        if fd < 0:
            return
        if elapsed[0] < 3.0:
            os.pwrite(fd, b"\n", os.fstat(fd).st_size)
        else:
            os.close(fd)
            fd = -1

    tap.ops.sleep = sleep
    tap.counts.clear()
    if call == "get":
        assert ids(queue.get(1)) == ["a"] and tap.counts["listdir"] <= 2, "it took its place in the order"
    else:
        queue.put(refs("b"))
    assert elapsed[0] >= 3.0 and (path / "order.lock").stat().st_ino == inode


def test_an_interrupted_hold_is_let_go(path: Path) -> None:
    """After a signal's exception in the midst of a hold, the same thread's next call does not wait for itself."""
    queue = FileSampleRefQueue(path, durable=False)
    file = queue.handle.order_file
    hold = file.surely
    assert hold.__enter__()  # and no __exit__, as where an exception comes before it is called
    queue.put(refs("a"))
    assert ids(queue.get(1)) == ["a"]
    hold = file.surely
    assert hold.__enter__()
    queue.close()
    os.close(locked_by_me(path))
