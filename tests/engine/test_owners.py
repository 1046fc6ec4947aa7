"""Owners: which are dead, which beat, and what a reclaim leaves behind that is stopped half-way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fsqueue import FileSampleRefQueue, QueueConfigError, QueueIOError
from fsqueue.engine import owners
from fsqueue.engine.owners import OwnerRecord
from tests.support import (
    GUARD_S,
    Child,
    Tap,
    assert_clean,
    backdate,
    content,
    folder_of,
    ids,
    lease_and_obey,
    lease_name,
    names_in,
    numbered,
    open_tapped,
    refs,
    wait_until,
)


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
        held = content(path / "leased" / lease_name(path, "a", queue.owner))["_fsqueue"]
        assert held["history"][0]["owner"].startswith(f"{owner}+") and held["expiries"] == 1
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
    """A living process of another user, hidden by /proc (hidepid), is not taken for a dead one."""
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
        elsewhere: list[dict[str, Any]] = [
            {"boot_id": "other"},
            {"pid_namespace": "pid:[1]"},
            {"time_namespace": "time:[1]"},
            {"time_namespace": None, "boot_id": None},
            {"host": "clone"},
            {"pid_start_time": None},
        ]
        for change in elsewhere:
            gone = {"pid": 2**22 + 1} if change != {"pid_start_time": None} else {}
            assert replace(record, **(gone | change)).liveness() == "unknown", change
        assert replace(record, pid_start_time="1").liveness() == "dead", "the pid is somebody else's by now"


def test_a_foreign_proc_proves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc shows this process under another pid, it names no start time, and calls nobody dead."""
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        queue.get(1)
        record = OwnerRecord(**content(path / "owners" / f"{queue.owner}.json"))
        gone = replace(record, pid_start_time="1")
        assert gone.liveness() == "dead"
        monkeypatch.setattr(owners, "sees_itself", lambda: False)
        assert (record.liveness(), gone.liveness()) == ("unknown", "unknown")
        assert owners.describe_self("x.1.aaaaaa", 0.0, None).pid_start_time is None


def test_an_inner_pid_namespace_with_an_outer_proc_records_no_start(path: Path) -> None:
    """The number in the inner namespace is another process's in the outer one, whose end would say nothing."""
    code = "from fsqueue.engine.owners import *; print(describe_self('x.1.aaaaaa', 0.0, None).pid_start_time)"
    inside = ["unshare", "--pid", "--fork", sys.executable, "-c", code]
    try:
        done = subprocess.run(inside, capture_output=True, text=True, timeout=GUARD_S)
    except FileNotFoundError:
        pytest.skip("there is no unshare command here")
    if "unshare" in done.stderr:
        pytest.skip(f"a pid namespace needs root: {done.stderr.strip()}")
    assert done.stdout.strip() == "None", done.stderr


def elsewhere(path: Path, owner: str, silent_s: float) -> Path:
    """The record of an owner on another host that was last seen so long ago."""
    file = path / "owners" / f"{owner}.json"
    file.write_bytes(msgspec.json.encode(OwnerRecord(owner, "node9", "other boot", "pid:[9]", 7, "1", 0.0)))
    backdate(file, silent_s)
    return file


def test_records_of_hosts_that_never_come_back_go_after_a_day(path: Path) -> None:
    """Unless they lease something, and not before the lease timeout has passed as well."""
    with FileSampleRefQueue(path, lease_timeout_s=3600.0) as queue:
        queue.put(refs("a"))
        old, recent, holding = (
            elsewhere(path, owner, silent_s)
            for owner, silent_s in (("x.7.aaaaaa", 91_000.0), ("y.7.bbbbbb", 89_000.0), ("z.7.cccccc", 91_000.0))
        )
        (path / "pending" / "a.json").rename(path / "leased" / "a@z.7.cccccc.json")
        os.utime(path / "leased" / "a@z.7.cccccc.json")
        queue.reclaim()
        assert [file.exists() for file in (old, recent, holding)] == [False, True, True]


def test_an_owner_that_shows_up_is_not_abandoned(path: Path) -> None:
    """Once an hour a round touches the handle's own record, or writes it anew before it leases again."""
    tap = Tap()
    queue = open_tapped(tap, path)
    queue.put(refs("a", "b"))
    queue.get(1)
    record = path / "owners" / f"{queue.owner}.json"
    backdate(record, 90_000.0)
    before = record.stat().st_mtime
    now = tap.ops.monotonic() + 3601.0
    tap.ops.monotonic = lambda: now
    queue.reclaim()
    assert record.stat().st_mtime > before + 89_000.0
    record.unlink()
    now += 3601.0
    queue.get(1)
    assert record.exists()
    queue.close()


def test_heartbeat_keeps_leases_and_ends_with_the_process(path: Path) -> None:
    """A heartbeat prolongs leases beyond their timeout; when the process stops, they expire."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0) as queue:
        queue.put(refs("a"))
        with Child(lease_and_obey, path, 1, {"heartbeat_s": 0.05}) as child:
            owner, leased = child.receive()
            assert leased == ["a"]
            file, record = path / "leased" / lease_name(path, "a", owner), path / "owners" / f"{owner}.json"
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


def test_error_in_the_middle_of_a_reclaim_and_no_get(path: Path) -> None:
    """A handle that reclaims and never gets, as a controller's does, completes it at the next reclaim."""
    tap = Tap()
    queue = open_tapped(tap, path)
    queue.put(refs("s"))
    with Child(lease_and_obey, path, 1, {}) as child:
        assert child.receive()[1] == ["s"]
        child.kill()

    def full(name: str, *_: Any) -> None:
        if name == "pwrite":
            raise OSError(errno.ENOSPC, "injected")

    tap.before = full
    with pytest.raises(QueueIOError):
        queue.reclaim()
    tap.before = None
    queue.reclaim()
    assert names_in(path, "pending") == ["s.json"]
    queue.close()


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


@pytest.mark.parametrize("owner", ["node12", "../x.1.aaaaaa", "node12.7.abcdef"])
def test_leases_are_handed_over_to_known_owners_only(path: Path, owner: str) -> None:
    """A name that is no owner's would hide the ref from everybody; the lease stays where it is."""
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        leased = queue.get(1)
        with pytest.raises(QueueConfigError, match="knows no owner"):
            queue.hand_over(leased, owner)
        assert queue.in_flight() == 1 and queue.ack(leased) == []


def test_a_lease_in_a_handle_s_name_that_it_knows_nothing_of(path: Path) -> None:
    """After a claim that was reported as failed, and handed back: it ends by its stamp, though its owner beats."""
    with FileSampleRefQueue(path, lease_timeout_s=1.0, heartbeat_s=0.05, durable=False) as queue:
        queue.put(numbered(2))
        (held,) = queue.get(1)
        stray = path / "leased" / f"s00001@{queue.owner}+7f.json"
        os.rename(path / "pending" / "s00001.json", stray)
        backdate(stray, 40.0)
        wait_until(lambda: queue.reclaim() == 1, "the end of the lease")
        assert names_in(path, "pending") == ["s00001.json"] and queue.ack([held]) == []
