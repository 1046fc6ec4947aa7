"""Costs, counted in file operations: a constant a ref, whatever the backlog."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import (
    Queue,
    Tap,
    folder_of,
    ids,
    numbered,
    open_tapped,
    refs,
)

from fsqueue import (
    FileSampleRefQueue,
)

STATES = ("pending", "leased", "done", "failed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q"


def test_opening_a_handle_lists_nothing(tmp_path: Path) -> None:
    """Opening a handle on a queue with a backlog makes no listing, and as many calls as on an empty one."""
    calls = []
    for count in (0, 300):
        path = tmp_path / f"q{count}"
        with FileSampleRefQueue(path, durable=False) as queue:
            queue.put(numbered(count))
        tap = Tap()
        open_tapped(tap, path).close()
        calls.append(tap.counts)
    assert calls[0] == calls[1]
    assert calls[1]["listdir"] == 0


def test_put_get_ack_stay_within_the_budget(tmp_path: Path) -> None:
    """A ref costs 3 modifications to put, 2 and one read to get, 1 to ack, besides a constant a call."""
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "q", durable=False)
    queue.put(refs("warm up"))
    queue.ack(queue.get(1))
    spent = {}
    for batch in (10, 110):
        todo = numbered(batch)
        for name, work in (("put", lambda t=todo: queue.put(t)), ("get", lambda n=batch: queue.get(n)), ("ack", None)):
            tap.counts.clear()
            work() if work else queue.ack(todo)
            spent[name, batch] = tap.counts.copy()
    per_ref = {name: rates(spent[name, 110], spent[name, 10]) for name in ("put", "get", "ack")}
    assert per_ref["put"] == {"open": 1, "write": 1, "close": 1, "rename": 1, "look": 1}
    assert per_ref["get"] == {"utime": 1, "rename": 1, "open": 1, "read": 1, "close": 1}
    assert per_ref["ack"] == {"rename": 1}
    queue.close()


def rates(many: Counter[str], few: Counter[str]) -> dict[str, float]:
    """Calls a ref, from two batches that differ by 100 refs; asking whether a name exists counts as a look."""
    looks = {"stat": "look", "access": "look"}
    return {looks.get(op, op): count / 100 for op, count in (many - few).items()}


def test_listing_folders_by_descriptor(tmp_path: Path) -> None:
    """depth() and in_flight() cost one listing each, counts() one a state."""
    tap, listed = Tap(), []
    queue = open_tapped(tap, tmp_path / "q")
    tap.before = lambda name, args, _: listed.append(folder_of(args[0])) if name == "listdir" else None
    queue.depth()
    queue.in_flight()
    assert listed == ["pending", "leased"]
    listed.clear()
    queue.counts()
    assert sorted(listed) == sorted(STATES)
    queue.close()


def cycle(queue: Queue, tap: Tap, batch: int, partition: tuple[int, int] | None) -> dict[str, Counter[str]]:
    """What one put, one get and one ack of a batch cost, in file operations."""
    spent: dict[str, Counter[str]] = {}
    fresh = numbered(batch, prefix="fresh")
    taken: list[Any] = []
    for name, work in (
        ("put", lambda: queue.put(fresh)),
        ("get", lambda: taken.extend(queue.get(batch, partition=partition))),
        ("ack", lambda: queue.ack(taken)),
    ):
        tap.counts.clear()
        work()
        spent[name] = tap.counts.copy()
    assert len(taken) == batch
    return spent


@pytest.mark.parametrize("partition", [None, (0, 2)])
def test_cost_does_not_depend_on_the_backlog(path: Path, partition: tuple[int, int] | None) -> None:
    """put, get and ack of a batch make the same file operations with 40 and with 2,000 refs pending."""
    spent = []
    for backlog in (40, 2_000):
        tap = Tap()
        tap.ops.monotonic = lambda: 1_000.0  # rounds and sweeps happen once
        queue = open_tapped(tap, path / str(backlog), durable=False)
        queue.put(numbered(backlog))
        queue.ack(queue.get(1, partition=partition))
        spent.append(cycle(queue, tap, 10, partition))
        queue.close()
    assert spent[0] == spent[1]
    assert sum(spent[1]["get"].values()) < 10 * 6 + 20
    assert spent[1]["get"]["listdir"] == spent[1]["ack"]["listdir"] == 0


@pytest.mark.parametrize("partition", [None, (0, 2)])
def test_first_get_of_a_handle_does_not_list_the_backlog(path: Path, partition: tuple[int, int] | None) -> None:
    """A new handle's first get on a queue that was swept lately lists leased/ at most, never pending/."""
    with FileSampleRefQueue(path, durable=False) as first:
        first.put(numbered(500))
        first.get(1)
    tap, listed = Tap(), []
    queue = open_tapped(tap, path)
    tap.before = lambda name, args, _: listed.append(folder_of(args[0])) if name == "listdir" else None
    assert len(queue.get(10, partition=partition)) == 10
    assert "pending" not in listed
    queue.close()


def test_bytes_read_do_not_grow_with_the_backlog(path: Path) -> None:
    """A get reads a bounded piece of the hint, not all of it."""
    read: dict[int, int] = {}
    for backlog in (100, 5_000):
        tap = Tap()
        queue = open_tapped(tap, path / str(backlog), durable=False)
        queue.put(numbered(backlog))
        queue.get(1)
        wanted: list[int] = []
        tap.before = lambda name, args, _, wanted=wanted: wanted.append(args[1]) if name == "pread" else None
        queue.get(10)
        read[backlog] = sum(wanted)
        queue.close()
    assert read[5_000] <= max(read[100], 20_000)


@pytest.mark.parametrize("mount", ["tmpfs", "nfs4"])
def test_an_idle_consumer_makes_few_operations(path: Path, mount: str) -> None:
    """A get that has waited for a minute makes fewer than 25 file operations a second, on a shared mount too."""
    tap, now = Tap(), [1_000.0]
    tap.ops.filesystem_type = lambda path: mount
    tap.ops.monotonic = lambda: now[0]
    tap.ops.sleep = lambda pause_s: now.__setitem__(0, now[0] + pause_s)
    queue = open_tapped(tap, path, lease_timeout_s=60.0)
    made = Counter[int]()
    tap.before = lambda name, args, _: made.update([int(now[0]) // 60])
    assert queue.get(1, 300.0) == []
    assert 0 < made[1_180 // 60] < 25 * 60
    queue.close()


def test_a_waiting_get_notices_an_expired_lease_in_time(path: Path) -> None:
    """However long nothing has happened, a lease that was seen is reclaimed when its time has come."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = lambda: now[0]

    def sleep(pause_s: float) -> None:
        now[0] += pause_s
        for state in ("leased", "owners"):
            for file in (path / state).iterdir():
                os.utime(file, ns=(0, int(os.stat(file).st_mtime_ns - pause_s * 1e9)))

    tap.ops.sleep = sleep
    with FileSampleRefQueue(path, lease_timeout_s=60.0) as other:
        other.put(refs("a"))
        other.get(1)
        queue = open_tapped(tap, path)
        assert ids(queue.get(1, 300.0)) == ["a"]
        assert 1_060.0 <= now[0] < 1_061.5
        queue.close()
