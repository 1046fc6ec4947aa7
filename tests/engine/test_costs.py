"""Costs, counted in file operations: a constant a ref, whatever the backlog."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fsqueue
from fsqueue import FileSampleRefQueue, operate
from fsqueue.engine.expire import LOOKS_A_ROUND
from fsqueue.engine.owners import OwnerRecord
from tests.support import (
    Queue,
    Tap,
    backdate,
    folder_of,
    ids,
    numbered,
    open_tapped,
    refs,
)

MODIFYING = {"write", "pwrite", "rename", "utime", "unlink", "ftruncate"}
STATES = ("pending", "leased", "done", "failed")


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


def stated(begin: str, cells: int, rows: int) -> list[tuple[str, ...]]:
    """Read a table of FORMAT.md: what its rows begin with, and their cells with two numbers each."""
    text = (Path(fsqueue.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    found = re.findall(rf"^\| {begin}" + cells * r" \| (\d+) \((\d+)\)" + r" \|$", text, flags=re.MULTILINE)
    assert len(found) == rows, "every row of the table is read"
    return found


BUDGET = stated(r"(put|get|ack) \| ([A-Za-z, ]+)", cells=4, rows=6)


@pytest.mark.parametrize("durable", [False, True], ids=["", "durable"])
@pytest.mark.parametrize("row", BUDGET, ids=lambda row: " ".join(row[:2]))
def test_the_budget_is_what_format_says(path: Path, row: tuple[str, ...], durable: bool) -> None:
    """A ref and a call cost what the table in FORMAT.md states, by two batches that differ by 100 refs."""
    call, mount, *numbers = row
    few, many = (spent_on(call, mount, path / str(batch), batch, durable) for batch in (10, 110))
    expected = [int(number) for number in (numbers[4:] if durable else numbers[:4])]
    per_ref = [(b - a) / 100 for a, b in zip(few, many, strict=True)]
    per_call = [a - 10 * each for a, each in zip(few, per_ref, strict=True)]
    assert [per_ref[0], per_ref[1], per_call[0], per_call[1]] == expected


def put_on_nfs(tap: Tap) -> None:
    """Let the directory pass for one on NFS, which takes O_DIRECT as the test's own may not."""
    real = tap.ops.open
    tap.ops.filesystem_type = lambda path: "nfs4"
    tap.ops.open = lambda path, flags, *rest, **named: real(path, flags & ~os.O_DIRECT, *rest, **named)


def spent_on(call: str, mount: str, path: Path, batch: int, durable: bool) -> tuple[int, int]:
    """Count the file operations that a call makes, and those of them that modify something."""
    tap = Tap()
    if "NFS" in mount:
        put_on_nfs(tap)
    tap.ops.monotonic = lambda: 1_000.0  # rounds and sweeps happen once
    with FileSampleRefQueue(path, durable=False) as other:
        other.put(numbered(20 * batch if "long" in mount else batch, prefix="old"))
    queue = open_tapped(tap, path, durable=durable, io_threads=1)
    queue.put(refs("x", "y", "z"))
    queue.ack(queue.get(1))
    todo = numbered(batch)
    taken = queue.get(batch) if call == "ack" else []
    made: list[bool] = []
    tap.before = lambda name, args, _: made.append(name in MODIFYING or (name == "open" and bool(args[1] & os.O_TRUNC)))
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: queue.put(todo),
        "get": lambda: queue.get(batch),
        "ack": lambda: queue.ack(taken),
    }
    calls[call]()
    tap.before = None
    queue.close()
    return len(made), sum(made)


OPERATORS = stated("(rewind|rewind, packed|pack|requeue)", cells=2, rows=4)


@pytest.mark.parametrize("durable", [False, True], ids=["", "durable"])
@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row[0])
def test_operators_work_costs_what_format_says(path: Path, row: tuple[str, ...], durable: bool) -> None:
    """A ref costs what the table in FORMAT.md states, by two queues that differ by 100 refs."""
    call, *numbers = row
    few, many = (spent_by_operators(call, path / str(count), count, durable) for count in (10, 110))
    per_ref = [(b - a) / 100 for a, b in zip(few, many, strict=True)]
    assert per_ref == [int(number) for number in (numbers[2:] if durable else numbers[:2])]


def spent_by_operators(call: str, path: Path, count: int, durable: bool) -> tuple[int, int]:
    """Count the file operations that it takes to bring all refs of a queue back, or to pack them."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=durable, io_threads=1)
    queue.put(numbered(count))
    if call == "requeue":
        queue.fail(queue.get(count), "no good", retryable=False)
    else:
        queue.ack(queue.get(count), step=1)
    if call == "rewind, packed":
        queue.pack(older_than_s=0.0)
    made: list[bool] = []
    tap.before = lambda name, args, _: made.append(name in MODIFYING or (name == "open" and bool(args[1] & os.O_TRUNC)))
    with tap.here():
        if call == "requeue":
            operate.requeue_failed(path)
        elif call == "pack":
            queue.pack(older_than_s=0.0)
        else:
            queue.rewind(after_step=0)
    tap.before = None
    queue.close()
    return len(made), sum(made)


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
    """Count the file operations of one put, one get and one ack of a batch."""
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


def test_gets_that_wait_one_after_the_other_make_few_operations(path: Path) -> None:
    """Each goes on at the pace of the one before, also beside an owner whose old leases live by its heartbeat."""
    with FileSampleRefQueue(path, lease_timeout_s=10.0, heartbeat_s=5.0, durable=False) as trainer:
        trainer.put(numbered(500))
        trainer.get(500)
        for file in (path / "leased").iterdir():
            backdate(file, 3600.0)
        tap, now = Tap(), [1_000.0]
        tap.ops.monotonic = lambda: now[0]
        tap.ops.sleep = lambda pause_s: now.__setitem__(0, now[0] + pause_s)
        queue = open_tapped(tap, path)
        made = Counter[int]()
        tap.before = lambda name, args, _: made.update([int(now[0]) // 60])
        while now[0] < 1_300.0:
            assert queue.get(1, 5.0) == []
        queue.close()
    assert 0 < made[1_180 // 60] < 28 * 60


def spend_on_gets(path: Path, seconds: float, **arguments: Any) -> tuple[int, int]:
    """Let a new handle get, once a second, where nothing is pending; return the most operations and the last."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    queue, spent = open_tapped(tap, path, **arguments), []
    while now[0] < 1_000.0 + seconds:
        tap.counts.clear()
        assert queue.get(1) == []
        spent.append(sum(tap.counts.values()))
        now[0] += 1.0
    queue.close()
    return max(spent), spent[-1]


def test_other_nodes_owners_cost_a_bounded_number_of_reads(path: Path) -> None:
    """A get makes fewer than 100 operations, whether 100 or 1,000 owners on other nodes have left their records."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0):
        pass
    most = []
    for count in (100, 1_000):
        for number in range(count):
            owner = f"pod-{number}.7.{number:06x}"
            record = OwnerRecord(owner, f"pod-{number}", "another boot", "pid:[1]", 7, "1", 0.0)
            (path / "owners" / f"{owner}.json").write_bytes(msgspec.json.encode(record))
        most.append(spend_on_gets(path, 30.0)[0])
    assert max(most) < 100


def test_one_look_at_an_owner_covers_all_of_its_leases(path: Path) -> None:
    """An owner that beats costs the others the same with 10 and with 500 leases that are older than the timeout."""
    cost = []
    for count in (10, 500):
        there = path / str(count)
        with FileSampleRefQueue(there, lease_timeout_s=10.0, heartbeat_s=5.0, durable=False) as trainer:
            trainer.put(numbered(count))
            trainer.get(count)
            for file in (there / "leased").iterdir():
                backdate(file, 3600.0)
            cost.append(spend_on_gets(there, 30.0)[0])  # what the last one makes depends on when the owner beats
    assert cost[0] == cost[1] < 50


def test_a_new_handle_looks_at_a_bounded_number_of_leases_a_get(path: Path) -> None:
    """The first gets of a handle share the first look at 500 leases of other owners."""
    with FileSampleRefQueue(path, lease_timeout_s=600.0, durable=False) as trainer:
        trainer.put(numbered(500))
        trainer.get(500)
        most, last = spend_on_gets(path, 8.0)
    assert most < 3 * LOOKS_A_ROUND + 100
    assert last < 30


def test_a_waiting_get_notices_an_expired_lease_in_time(path: Path) -> None:
    """A lease that was seen is reclaimed when its time has come, however long nothing has happened."""
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
