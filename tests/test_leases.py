"""Leases: when they expire, who may end them, and what is written down about it."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support import (
    GUARD_S,
    Child,
    FakeClock,
    Queue,
    Tap,
    assert_clean,
    content,
    drain,
    folder_of,
    ids,
    lease_and_obey,
    names_in,
    numbered,
    open_tapped,
    ref,
    refs,
    wait_until,
)

from fsqueue import FileSampleRefQueue, QueueIOError, owners
from fsqueue.owners import OwnerRecord


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q"


def backdate(file: Path, by_s: float) -> None:
    """Set a file's mtime into the past, as if it had been stamped then."""
    stamped = os.stat(file).st_mtime - by_s
    os.utime(file, (stamped, stamped))


def leased_file(path: Path, stem: str, queue: Queue) -> Path:
    return path / "leased" / f"{stem}@{queue.owner}.json"


def two_handles(path: Path, clock: FakeClock, **arguments: Any) -> tuple[Queue, Queue]:
    """Two handles as of two processes, under one clock."""
    arguments = {"lease_timeout_s": 60.0, "clock": clock, "durable": False} | arguments
    return FileSampleRefQueue(path, **arguments), FileSampleRefQueue(path, **arguments)


# --- expiry -----------------------------------------------------------------------------------------------


def test_expiry_by_stamped_mtime(path: Path) -> None:
    """A lease whose file was stamped longer ago than the timeout is delivered again, another is not."""
    a, b = FileSampleRefQueue(path, lease_timeout_s=60.0), FileSampleRefQueue(path)
    a.put(refs("old", "young"))
    a.get(2)
    backdate(leased_file(path, "old", a), 61.0)
    backdate(leased_file(path, "young", a), 30.0)
    assert ids(b.get(10)) == ["old"]
    assert names_in(path, "leased") == sorted([f"old@{b.owner}.json", f"young@{a.owner}.json"])


def test_expiry_to_the_second(path: Path) -> None:
    """Under an injected clock a lease holds until its timeout and is gone at that instant, on the same handle."""
    clock = FakeClock()
    queue = FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock)
    queue.put(refs("a"))
    queue.get(1)
    clock.now += 59.9
    assert queue.get(1) == []
    clock.now += 0.1
    assert ids(queue.get(1)) == ["a"]


def test_waiting_in_pending_does_not_age_a_lease(path: Path) -> None:
    """A ref that waited for an hour has a fresh lease when it is handed out: it is stamped before the rename."""
    tap, seen = Tap(), []
    a = open_tapped(tap, path, lease_timeout_s=60.0)
    a.put(refs("a"))
    backdate(path / "pending" / "a.json", 3600.0)

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and args[0] == "a.json" and name in ("utime", "rename"):
            seen.append((name, folder_of(kwargs.get("dir_fd", kwargs.get("src_dir_fd")))))

    tap.before = note
    a.get(1)
    assert seen == [("utime", "pending"), ("rename", "pending")]
    with FileSampleRefQueue(path) as b:
        assert b.reclaim() == 0


def test_expiry_needs_no_wall_clock(path: Path) -> None:
    """Expiry compares two stamps of the filesystem: a host whose own clock is days off reclaims nothing."""
    a = FileSampleRefQueue(path, lease_timeout_s=60.0)
    a.put(refs("a"))
    a.get(1)
    for skew_s in (-200_000.0, 200_000.0):
        tap = Tap()
        tap.ops.time = lambda skew_s=skew_s: time.time() + skew_s  # type: ignore[method-assign]
        with open_tapped(tap, path) as b:
            assert b.reclaim() == 0
    a.close()


def test_no_timeout_no_expiry(path: Path) -> None:
    """Without a lease timeout a living owner's lease lasts, however old its stamp is."""
    a, b = FileSampleRefQueue(path), FileSampleRefQueue(path)
    a.put(refs("a"))
    a.get(1)
    backdate(leased_file(path, "a", a), 1e6)
    assert b.get(1) == [] and b.reclaim() == 0


def test_reclaimed_refs_go_to_the_tail(path: Path) -> None:
    """Expired refs come after what was waiting already, whatever their order among themselves."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("a", "b", "c", "d"))
    a.get(2)
    clock.now += 61.0
    found = ids(b.get(4))
    assert found[:2] == ["c", "d"] and sorted(found[2:]) == ["a", "b"]


def test_history_of_an_expiry(path: Path) -> None:
    """An expired lease is written down: event, time, whose it was; attempts count it."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("a"))
    a.get(1)
    clock.now = 2_000.0
    b.reclaim()
    kept = content(path / "pending" / "a.json")["_fsqueue"]
    assert kept["attempts"] == 1
    assert [(e["event"], e["at"], e["owner"]) for e in kept["history"]] == [("expired", 2_000.0, a.owner)]
    assert b.get(1) == refs("a")


def test_dead_letter_after_max_attempts(path: Path) -> None:
    """Expired leases and retryable failures count together; at max_attempts the ref goes to failed/ with a reason."""
    clock = FakeClock()
    a, b = two_handles(path, clock, max_attempts=3)
    a.put(refs("a"))
    a.fail(a.get(1), "out of memory", retryable=True)
    a.get(1)
    clock.now += 61.0
    a.fail(b.get(1), "lost", retryable=True)
    b.fail(refs("a"), "out of memory", retryable=True)
    assert tuple(b.counts()) == (0, 0, 0, 1)
    kept = content(path / "failed" / "a.json")["_fsqueue"]
    assert kept["attempts"] == 3 and "3" in kept["reason"] and "out of memory" in kept["reason"]
    assert [event["event"] for event in kept["history"]] == ["failed", "expired", "failed"]
    assert b.get(1) == []


def test_release_does_not_count(path: Path) -> None:
    """A released ref is pending again at the tail, its file as it was before."""
    queue = FileSampleRefQueue(path, max_attempts=1)
    queue.put(refs("a", "b"))
    before = (path / "pending" / "a.json").read_bytes()
    assert queue.release(queue.get(1)) == []
    assert (path / "pending" / "a.json").read_bytes() == before
    assert ids(queue.get(2)) == ["b", "a"]


def test_history_is_bounded(path: Path) -> None:
    """A ref that fails for ever keeps a bounded history, the true number of attempts, and its fields."""
    queue = FileSampleRefQueue(path, durable=False)
    queue.put(refs("a"))
    for number in range(40):
        queue.fail(queue.get(1, 1.0), f"failure {number}", retryable=True)
    kept = content(path / "pending" / "a.json")["_fsqueue"]
    assert kept["attempts"] == 40 and 0 < len(kept["history"]) < 40
    assert kept["history"][-1]["reason"] == "failure 39"
    assert queue.get(1) == refs("a")


# --- fencing ----------------------------------------------------------------------------------------------


def lost_lease(path: Path, clock: FakeClock, *, held_by_b: bool) -> tuple[Queue, Queue]:
    """A has lost its lease on s, which is back in pending/ or held by B."""
    a, b = two_handles(path, clock)
    a.put(refs("s"))
    assert ids(a.get(1)) == ["s"]
    clock.now += 61.0
    assert b.reclaim() == 1
    if held_by_b:
        assert ids(b.get(1)) == ["s"]
    return a, b


@pytest.mark.parametrize("end", ["ack", "fail", "fail for good", "release", "renew"])
def test_late_end_does_not_touch_another_owner(path: Path, end: str) -> None:
    """Whatever an owner does about a lease it has lost, the new owner keeps it, and the loss is reported."""
    a, b = lost_lease(path, FakeClock(), held_by_b=True)
    before = (path / "leased" / f"s@{b.owner}.json").read_bytes()
    assert finish(a, end) == ["s"]
    assert finish(a, end) == ["s"], "it stays lost"
    assert names_in(path, "leased") == [f"s@{b.owner}.json"]
    assert (path / "leased" / f"s@{b.owner}.json").read_bytes() == before
    assert b.ack(refs("s")) == []
    assert tuple(b.counts()) == (0, 0, 1, 0)


def finish(queue: Queue, end: str) -> list[str]:
    if end.startswith("fail"):
        return queue.fail(refs("s"), "late", retryable=end == "fail")
    return list(getattr(queue, end)(refs("s")))


def test_late_ack_of_a_pending_ref(path: Path) -> None:
    """A late ack of a ref that is back in pending/ moves it to done/, since its work is done, and reports it."""
    a, _ = lost_lease(path, FakeClock(), held_by_b=False)
    assert a.ack(refs("s"), step=3) == ["s"]
    assert names_in(path, "done") == ["s@3.json"] and names_in(path, "pending") == []


@pytest.mark.parametrize("end", ["fail", "fail for good", "release"])
def test_late_fail_of_a_pending_ref(path: Path, end: str) -> None:
    """A late fail or release leaves a ref that is back in pending/ where it is, once, and reports it."""
    a, b = lost_lease(path, FakeClock(), held_by_b=False)
    assert finish(a, end) == ["s"]
    assert names_in(path, "pending") == ["s.json"]
    assert ids(b.get(10)) == ["s"]


@pytest.mark.parametrize("held_by_b", [False, True])
def test_late_ack_in_a_second_life(path: Path, held_by_b: bool) -> None:
    """A done file from an earlier life of the id does not make a late ack look like a success."""
    clock = FakeClock()
    with FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock) as first:
        first.put(refs("s"))
        first.ack(first.get(1))
    a, b = lost_lease(path, clock, held_by_b=held_by_b)
    assert a.ack(refs("s")) == ["s"]
    assert names_in(path, "leased") == ([f"s@{b.owner}.json"] if held_by_b else [])
    assert names_in(path, "pending") == []


def test_lost_leases_are_remembered(path: Path) -> None:
    """A lease whose loss was noticed long ago is still fenced off after thousands of other leases have ended."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("s"))
    a.get(1)
    clock.now += 61.0
    assert a.reclaim() == 1
    assert ids(b.get(1)) == ["s"]
    a.put(numbered(4_500))
    while batch := a.get(500):
        a.ack(batch)
    assert a.ack(refs("s")) == ["s"]
    assert names_in(path, "leased") == [f"s@{b.owner}.json"]


@pytest.mark.parametrize("end", ["ack", "fail", "release"])
def test_a_stranger_settles_by_id(path: Path, end: str) -> None:
    """A handle that never leased a ref settles it by id, with a ref built afresh, whoever holds it."""
    a, b = two_handles(path, FakeClock())
    a.put(refs("s"))
    a.get(1)
    assert finish(b, end) == []
    state = "done" if end == "ack" else "pending"
    assert names_in(path, state) == ["s.json"] and names_in(path, "leased") == []
    a.ack(refs("s"))
    assert tuple(a.counts()) == (0, 0, 1, 0), "and the former owner's ack finds it, wherever it is"


def test_a_stranger_acks_a_pending_ref(path: Path) -> None:
    """An acknowledgement after a restart settles a ref that is back in pending/ already."""
    a, b = two_handles(path, FakeClock())
    a.put(refs("s"))
    assert b.ack(refs("s", "unknown")) == []
    assert tuple(b.counts()) == (0, 0, 1, 0)


def test_acking_twice_and_unknown_ids(path: Path) -> None:
    """Acking an id again, or one that was never put, changes nothing and loses nothing."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("a", "b"))
    (leased,) = queue.get(1)
    assert queue.ack([leased, leased]) == [] == queue.ack([leased]) == queue.ack(refs("never"))
    assert queue.fail(refs("a", "never"), "x", retryable=True) == []
    assert tuple(queue.counts()) == (1, 0, 1, 0)


# --- renewing ---------------------------------------------------------------------------------------------


def test_renew(path: Path) -> None:
    """A renewed lease lasts its timeout from then on; the ids of refs that are not leased come back as lost."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("a", "b"))
    leased = a.get(1)
    clock.now += 59.0
    assert a.renew([*leased, ref("b"), ref("never")]) == ["b", "never"]
    clock.now += 59.0
    assert b.reclaim() == 0
    clock.now += 1.0
    assert b.reclaim() == 1
    assert a.renew(leased) == ["a"]


def test_renew_wins_against_a_reclaim_that_has_looked(path: Path) -> None:
    """A lease that is renewed between a reclaimer's look and its take-over stays its owner's."""
    clock, tap = FakeClock(), Tap()
    a = FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock)
    b = open_tapped(tap, path, clock=clock)
    a.put(refs("s"))
    leased = a.get(1)
    clock.now += 61.0
    renewed: list[list[str]] = []

    def renew_first(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "rename" and args[0] == f"s@{a.owner}.json" and not renewed:
            renewed.append(a.renew(leased))

    tap.before = renew_first
    assert b.reclaim() == 0
    assert renewed == [[]]
    assert names_in(path, "leased") == [f"s@{a.owner}.json"]
    assert a.ack(leased) == []


def test_renew_after_a_take_over_is_told(path: Path) -> None:
    """A lease that is renewed after a reclaimer's take-over is reported as lost by renew and by ack."""
    clock, tap = FakeClock(), Tap()
    a = FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock)
    b = open_tapped(tap, path, clock=clock)
    a.put(refs("s"))
    leased = a.get(1)
    clock.now += 61.0
    renewed: list[list[str]] = []

    def renew_late(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "rename" and args[0] == f"s@{a.owner}.json" and not renewed:
            renewed.append(a.renew(leased))

    tap.after = renew_late
    assert b.reclaim() == 1
    assert renewed == [["s"]] == [a.ack(leased)]


# --- dead and living owners -------------------------------------------------------------------------------


def test_dead_process_is_noticed_at_once(path: Path) -> None:
    """The leases of a killed process on this host come back at once, though the queue has no lease timeout."""
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a", "b", "c"))
        with Child(lease_and_obey, path, 2, {}) as child:
            owner, leased = child.receive()
            assert leased == ["a", "b"]
            assert queue.reclaim() == 0, "while it lives they are its own"
            child.kill()
        assert ids(queue.get(10, GUARD_S)) == ["c"]
        assert ids(queue.get(10, GUARD_S)) == ["a", "b"]
        held = content(path / "leased" / f"a@{queue.owner}.json")["_fsqueue"]
        assert held["history"][0]["owner"] == owner and held["attempts"] == 1
        queue.ack(refs("a", "b", "c"))
    assert_clean(path)


def test_stopped_process_is_not_dead(path: Path) -> None:
    """A process that is merely stopped keeps its leases until they time out."""
    with FileSampleRefQueue(path) as queue, Child(lease_and_obey, path, 1, {}) as child:
        child.receive()
        queue.put(refs("a"))
        child.send("get")
        assert child.receive() == ["a"]
        child.signal(signal.SIGSTOP)
        assert queue.reclaim() == 0
        child.signal(signal.SIGCONT)
        child.send("ack")
        assert child.receive() == []
        child.send("end")
        assert child.join() == 0
    assert_clean(path)


def test_another_users_hidden_process_is_not_dead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc hides other users' processes (hidepid), a living process is not taken for a dead one."""
    with Child(lease_and_obey, path, 1, {}) as child:
        owner, _ = child.receive()
        record = json.loads((path / "owners" / f"{owner}.json").read_bytes())
        hidden = f"/proc/{child.pid}"

        def hiding(name: Any, *args: Any, **kwargs: Any) -> Any:
            if str(name).startswith(hidden):
                raise FileNotFoundError(errno.ENOENT, "hidden", name)
            return open(name, *args, **kwargs)

        monkeypatch.setattr(owners, "open", hiding, raising=False)
        assert OwnerRecord(**record).liveness() != "dead"
        child.kill()
        assert OwnerRecord(**record).liveness() == "dead"


def test_other_hosts_owners_are_unknown(path: Path) -> None:
    """A process of another boot or pid namespace is neither alive nor dead for this host."""
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        queue.get(1)
        record = OwnerRecord(**content(path / "owners" / f"{queue.owner}.json"))
        assert record.liveness() == "alive"
        for change in ({"boot_id": "other"}, {"pid_namespace": "pid:[1]"}, {"pid_start_time": None}):
            assert OwnerRecord(**({f: getattr(record, f) for f in record.__struct_fields__} | change)).liveness() == "unknown"
        reused = {f: getattr(record, f) for f in record.__struct_fields__} | {"pid_start_time": "1"}
        assert OwnerRecord(**reused).liveness() == "dead", "the pid is somebody else's by now"


def test_heartbeat_keeps_leases_and_ends_with_the_process(path: Path) -> None:
    """A heartbeat prolongs leases beyond their timeout; when the process stops, they expire."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0) as queue:
        queue.put(refs("a"))
        with Child(lease_and_obey, path, 1, {"heartbeat_s": 0.05}) as child:
            owner, leased = child.receive()
            assert leased == ["a"]
            file, record = path / "leased" / f"a@{owner}.json", path / "owners" / f"{owner}.json"
            backdate(file, 3600.0)
            backdate(record, 3600.0)
            wait_until(lambda: os.stat(record).st_mtime > os.stat(file).st_mtime + 3500, "a beat")
            with FileSampleRefQueue(path) as other:
                assert other.reclaim() == 0
            child.signal(signal.SIGSTOP)
            backdate(record, 3600.0)
            with FileSampleRefQueue(path) as other:
                assert other.reclaim() == 1
            child.signal(signal.SIGCONT)
            child.send("ack")
            assert child.receive() == ["a"], "it is told that it lost the lease"
            child.send("end")
            assert child.join() == 0
    assert names_in(path, "done") == ["a.json"]
    assert_clean(path)


def test_heartbeat_writes_a_deleted_record_anew(path: Path) -> None:
    """An owner record that somebody deleted comes back with the next beat."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0, heartbeat_s=0.02) as queue:
        queue.put(refs("a"))
        queue.get(1)
        record = path / "owners" / f"{queue.owner}.json"
        record.unlink()
        wait_until(record.exists, "the record")
        queue.ack(refs("a"))
    assert names_in(path, "owners") == []


def test_garbage_in_owners_is_survived(path: Path) -> None:
    """Owner records that cannot be read make their owners unknown, and stop nobody."""
    a, b = FileSampleRefQueue(path, lease_timeout_s=60.0), FileSampleRefQueue(path)
    a.put(refs("x", "y"))
    a.get(1)
    for damage in (b"", b"\0" * 300, b'{"owner":"\xff\xfe"}', b"[" * 5000, b"[]"):
        (path / "owners" / f"{a.owner}.json").write_bytes(damage)
        (path / "owners" / "dead.1.0123ab.json").write_bytes(damage)
        assert b.reclaim() == 0
    assert ids(b.get(5)) == ["y"]


def test_owner_that_dies_after_the_listing_keeps_its_record(path: Path) -> None:
    """An owner that leases and dies while a reclaim round is under way loses neither its record nor the ref."""
    tap = Tap()
    queue = open_tapped(tap, path)
    with Child(lease_and_obey, path, 1, {}) as child:
        child.receive()
        queue.put(refs("a"))

        def lease_and_die(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
            if name == "listdir" and folder_of(args[0]) == "leased":
                tap.after = None
                child.send("get")
                assert child.receive() == ["a"]
                child.kill()

        tap.after = lease_and_die
        queue.reclaim()
        assert tap.after is None
    wait_until(lambda: ids(queue.get(1)) == ["a"], "the dead owner's lease")
    queue.close()


def die_after_take_over(pipe: Connection, path: Path, first_get: bool) -> None:
    """A child that is killed in the middle of reclaiming, just after it has taken a lease over."""
    tap = Tap()

    def die(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "rename" and str(args[0]).startswith("s@"):
            os.kill(os.getpid(), signal.SIGKILL)

    tap.after = die
    queue = open_tapped(tap, path)
    pipe.send("open")
    queue.get(1) if first_get else queue.reclaim()


@pytest.mark.parametrize("first_get", [False, True])
def test_reclaimer_killed_after_take_over(path: Path, first_get: bool) -> None:
    """A reclaimer that is killed right after its take-over left a lease that others notice, without any timeout."""
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("s"))
        with Child(lease_and_obey, path, 1, {}) as child:
            assert child.receive()[1] == ["s"]
            child.kill()
        with Child(die_after_take_over, path, first_get) as reclaimer:
            reclaimer.receive()
            assert reclaimer.join() == -signal.SIGKILL
        assert len(names_in(path, "leased")) == 1
        wait_until(lambda: ids(queue.get(1)) == ["s"], "the dead reclaimer's lease")
        queue.ack(refs("s"))
    assert_clean(path)


@pytest.mark.parametrize("operation", ["pwrite", "rename"])
def test_error_in_the_middle_of_a_reclaim(path: Path, operation: str) -> None:
    """An error after the take-over leaves no lease behind that would last as long as this process."""
    tap = Tap()
    queue = open_tapped(tap, path)
    queue.put(refs("s"))
    with Child(lease_and_obey, path, 1, {}) as child:
        assert child.receive()[1] == ["s"]
        child.kill()

    def full(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        back = name == "rename" and folder_of(kwargs["dst_dir_fd"]) == "pending"
        if name == operation and (name != "rename" or back):
            raise OSError(errno.ENOSPC, "injected")

    tap.before = full
    with pytest.raises(QueueIOError):
        queue.reclaim()
    tap.before = None
    wait_until(lambda: ids(queue.get(1)) == ["s"], "the ref")
    queue.ack(refs("s"))
    queue.close()
    assert_clean(path)


def test_error_in_the_middle_of_settling_by_id(path: Path) -> None:
    """A stranger's fail that an error ended after the take-over is completed by calling it again."""
    tap = Tap()
    a, b = FileSampleRefQueue(path), open_tapped(tap, path)
    a.put(refs("s"))
    a.get(1)

    def full(name: str, *_: Any) -> None:
        if name == "pwrite":
            raise OSError(errno.ENOSPC, "injected")

    tap.before = full
    with pytest.raises(QueueIOError):
        b.fail(refs("s"), "broken", retryable=True)
    tap.before = None
    b.fail(refs("s"), "broken", retryable=True)
    assert ids(a.get(1, 1.0)) == ["s"]


# --- bookkeeping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("rest", ["nothing", "NULs", "bad bytes"])
def test_torn_bookkeeping_costs_history_not_the_ref(path: Path, keep: float, rest: str) -> None:
    """A file whose bookkeeping was cut short still decodes, is delivered, and takes new bookkeeping."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("s"))
    queue.fail(queue.get(1), "first", retryable=True)
    file = path / "pending" / "s.json"
    data = file.read_bytes()
    mark = data.index(b'\n,"_fsqueue"')
    cut = mark + 1 + int((len(data) - mark - 1) * keep)
    tail = {"nothing": b"", "NULs": b"\0", "bad bytes": b"\xff"}[rest]
    file.write_bytes(data[:cut] + tail * (len(data) - cut))
    leased = queue.get(1)
    assert leased == refs("s")
    queue.fail(leased, "second", retryable=True)
    assert content(file)["_fsqueue"]["history"][-1]["reason"] == "second"
    assert queue.get(1, 1.0) == refs("s")


def die_between_write_and_truncation(pipe: Connection, path: Path) -> None:
    tap = Tap()
    queue = open_tapped(tap, path)
    leased = queue.get(1)

    def die(name: str, *_: Any) -> None:
        if name == "ftruncate":
            os.kill(os.getpid(), signal.SIGKILL)

    tap.before = die
    queue.fail(leased, "short", retryable=True)


def test_shrinking_bookkeeping_and_a_kill(path: Path) -> None:
    """A kill between the write of shorter bookkeeping and the truncation leaves a ref that is delivered again."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("s"))
        queue.fail(queue.get(1), "a long story " * 400, retryable=True)
        for _ in range(31):
            queue.fail(queue.get(1, 1.0), "short", retryable=True)
        with Child(die_between_write_and_truncation, path) as child:
            assert child.join() == -signal.SIGKILL
        wait_until(lambda: queue.get(1) == refs("s") or queue.counts().failed > 0, "the ref")
        assert names_in(path, "failed") == []
        queue.ack(refs("s"))
    assert_clean(path)


def test_late_bookkeeping_hits_no_other_owner(path: Path) -> None:
    """A fail that is stopped in the middle for longer than its lease neither takes the new owner's lease nor its ref."""
    clock, tap = FakeClock(), Tap()
    a = open_tapped(tap, path, lease_timeout_s=60.0, clock=clock)
    b = FileSampleRefQueue(path, clock=clock)
    a.put(refs("s"))
    leased = a.get(1)
    taken: list[str] = []

    def overtaken(name: str, *_: Any) -> None:
        if name == "pwrite" and not taken:
            clock.now += 61.0
            taken.extend(ids(b.get(1)))

    tap.before = overtaken
    assert a.fail(leased, "slow", retryable=True) == ["s"]
    assert taken == ["s"]
    assert names_in(path, "leased") == [f"s@{b.owner}.json"]
    assert names_in(path, "pending") == []
    assert b.ack(refs("s")) == []


def test_drained_by_the_survivor(path: Path) -> None:
    """Whatever mix of ends two handles gave to their refs, draining finds each of them exactly once."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(numbered(40))
    first = a.get(20)
    a.ack(first[:5])
    a.fail(first[5:10], "x", retryable=True)
    a.release(first[10:15])
    clock.now += 61.0
    found = drain(b)
    assert sorted(found) == sorted(ids(numbered(40))[5:])
    assert sorted(a.ack(first[15:])) == ids(first[15:])
    assert tuple(b.counts()) == (0, 0, 40, 0)
    assert_clean(path)
