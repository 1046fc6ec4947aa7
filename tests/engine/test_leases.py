"""Leases: when they expire, who may end them, and what is written down about it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.engine.clock import FilesystemClock
from tests.support import (
    FakeClock,
    Queue,
    Tap,
    assert_clean,
    backdate,
    drain,
    folder_of,
    holders_in,
    ids,
    lease_name,
    names_in,
    numbered,
    open_tapped,
    ref,
    refs,
    two_handles,
)


def leased_file(path: Path, stem: str, queue: Queue) -> Path:
    return path / "leased" / lease_name(path, stem, queue.owner)


def test_expiry_by_stamped_mtime(path: Path) -> None:
    """A lease whose file was stamped longer ago than the timeout is delivered again, another is not."""
    a, b = FileSampleRefQueue(path, lease_timeout_s=60.0), FileSampleRefQueue(path)
    a.put(refs("old", "young"))
    a.get(2)
    backdate(leased_file(path, "old", a), 61.0)
    backdate(leased_file(path, "young", a), 30.0)
    assert ids(b.get(10)) == ["old"]
    assert holders_in(path) == sorted([f"old@{b.owner}", f"young@{a.owner}"])


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
            seen.append((name, folder_of(kwargs["src_dir_fd"] if name == "rename" else kwargs["dir_fd"])))

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
        tap.ops.time = partial(lambda skew_s: time.time() + skew_s, skew_s)
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


def test_release_does_not_count(path: Path) -> None:
    """A released ref is pending again at the tail, its file as it was before."""
    queue = FileSampleRefQueue(path, max_attempts=1)
    queue.put(refs("a", "b"))
    before = (path / "pending" / "a.json").read_bytes()
    assert queue.release(queue.get(1)) == []
    assert (path / "pending" / "a.json").read_bytes() == before
    assert ids(queue.get(2)) == ["b", "a"]


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
    """A lost lease stays with its new owner, whatever the former one calls, and the loss is reported."""
    a, b = lost_lease(path, FakeClock(), held_by_b=True)
    before = leased_file(path, "s", b).read_bytes()
    assert finish(a, end) == ["s"]
    assert finish(a, end) == ["s"], "it stays lost"
    assert holders_in(path) == [f"s@{b.owner}"]
    assert leased_file(path, "s", b).read_bytes() == before
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
    assert holders_in(path) == ([f"s@{b.owner}"] if held_by_b else [])
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
    assert holders_in(path) == [f"s@{b.owner}"]


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
    """An acknowledgement after a restart settles a ref that is back in pending/ already, and none that is new there."""
    clock = FakeClock()
    a, b = lost_lease(path, clock, held_by_b=False)
    a.put(refs("new"))
    with FileSampleRefQueue(path, clock=clock) as restarted:
        assert restarted.ack(refs("s", "new", "unknown")) == []
    assert tuple(b.counts()) == (1, 0, 1, 0)
    assert ids(b.get(2)) == ["new"]


def test_acking_twice_and_unknown_ids(path: Path) -> None:
    """Acking an id again, or one that was never put, changes nothing and loses nothing."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("a", "b"))
    (leased,) = queue.get(1)
    assert queue.ack([leased, leased]) == [] == queue.ack([leased]) == queue.ack(refs("never"))
    assert queue.fail(refs("a", "never"), "x", retryable=True) == []
    assert tuple(queue.counts()) == (1, 0, 1, 0)


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
        if name == "rename" and args[0].startswith(f"s@{a.owner}") and not renewed:
            renewed.append(a.renew(leased))

    tap.before = renew_first
    assert b.reclaim() == 0
    assert renewed == [[]]
    assert holders_in(path) == [f"s@{a.owner}"]
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
        if name == "rename" and args[0].startswith(f"s@{a.owner}") and not renewed:
            renewed.append(a.renew(leased))

    tap.after = renew_late
    assert b.reclaim() == 1
    assert renewed == [["s"]] == [a.ack(leased)]


def test_drained_by_the_survivor(path: Path) -> None:
    """Draining finds each ref exactly once, whatever mix of ends two handles gave to them."""
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


def test_the_time_is_the_filesystem_s(tmp_path: Path) -> None:
    """An order file that is deleted while the time is read is made again, or another one; no host's clock steps in."""
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "q", lease_timeout_s=60.0)
    deletions: Iterator[bool] = iter([True])
    clock = FilesystemClock(tap.ops, queue.handle.layout.root)

    def delete(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name in ("utime", "close") and next(deletions, False):
            (tmp_path / "q" / "order.lock").unlink(missing_ok=True)

    tap.after = delete
    tap.ops.time = lambda: 1e6
    assert abs(clock.now() - (tmp_path / "q" / "order.lock").stat().st_mtime) < 1e-6
    deletions = itertools.repeat(True)
    before = time.time()
    assert before - 1.0 < clock.now() < before + 1.0
    tap.after = None
    assert not list((tmp_path / "q").glob(".order*"))
    queue.close()


@pytest.mark.parametrize(("others", "rounds"), [(3, 20), (32, 5)])
def test_many_who_find_refs_look_at_the_leases_by_turns(path: Path, others: int, rounds: int) -> None:
    """Each lists leased/ as seldom as there are many: together they look as often."""
    tap, now = Tap(), 1e6
    tap.ops.monotonic = lambda: now
    queue = open_tapped(tap, path, lease_timeout_s=3600.0, durable=False)
    handles = [FileSampleRefQueue(path, durable=False) for _ in range(others)]
    queue.put(numbered(others + 1000))
    for other in handles:
        other.get(1)
    looked = 0
    round_of = queue.engine.reclaimer.round

    def count(*args: Any, **kwargs: Any) -> int:
        nonlocal looked
        looked += 1
        return round_of(*args, **kwargs)

    queue.engine.reclaimer.round = count  # type: ignore[method-assign]
    queue.get(1)
    for _ in range(200):
        now += 0.1
        assert len(queue.get(1)) == 1
    assert abs(looked - rounds) <= 1
    for other in [queue, *handles]:
        other.close()
