"""Stalls: whoever was stopped himself accuses nobody, beats first, and keeps what it holds."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import FileOps
from fsqueue.engine import awake
from fsqueue.engine.awake import Awake, Doubts, gap_s, grace_s
from tests.support import Queue, Tap, backdate, ids, names_in, open_tapped, refs

pytestmark = pytest.mark.usefixtures("noticing_stalls")


class Time:
    """The monotonic and the wall clock of a machine that a test stops and wakes."""

    def __init__(self, ops: FileOps) -> None:
        self.now = self.wall = 1_000.0
        self.slept: list[float] = []
        ops.monotonic = lambda: self.now
        ops.time = lambda: self.wall
        ops.sleep = self._sleep

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.stop(seconds)

    def stop(self, seconds: float) -> None:
        """Let time pass in which nothing runs."""
        self.now += seconds
        self.wall += seconds

    def run(self, watch: Awake, seconds: float) -> None:
        """Let time pass in which the heartbeat thread ticks."""
        ticks = math.ceil(2 * seconds)
        for _ in range(ticks):
            self.stop(seconds / ticks)
            watch.tick()


def watched(gap: float = 1.0) -> tuple[Awake, Time]:
    ops = FileOps()
    time = Time(ops)
    watch = Awake(ops, gap)
    time.stop(10.0)
    watch.tick()
    return watch, time


def test_a_gap_between_ticks_is_a_stall() -> None:
    """The time awake begins anew after it, and goes on over shorter pauses."""
    watch, time = watched()
    assert watch.for_s() == 0.0
    time.run(watch, 12.0)
    assert round(watch.for_s(), 6) == 12.0
    time.stop(1.1)
    assert watch.for_s() == 0.0 and watch.gaps == 2


def test_a_suspended_machine_shows_by_the_wall_clock() -> None:
    """Its monotonic clock may have stood still."""
    watch, time = watched()
    time.run(watch, 12.0)
    time.wall += 40.0
    assert watch.for_s() == 0.0


def test_a_clock_of_whole_seconds_tells_of_no_pause() -> None:
    """It steps ahead by one or two seconds at once; that of a machine that was paused is ahead by more."""
    watch, time = watched()
    time.run(watch, 12.0)
    awake_s = watch.for_s()
    watch.hear(5_000.0)
    watch.hear(5_002.0)
    assert watch.for_s() == awake_s
    watch.hear(5_006.0)
    assert watch.for_s() == 0.0


def test_a_paused_machine_shows_by_the_filesystems_clock() -> None:
    """All of its own clocks may have stood still."""
    watch, time = watched()
    watch.hear(5_000.0)
    time.run(watch, 12.0)
    watch.hear(5_012.0)
    assert round(watch.for_s(), 6) == 12.0
    watch.hear(5_052.0)
    assert watch.for_s() == 0.0


def test_one_threads_hang_counts_though_another_has_ticked() -> None:
    """A call that hung in the filesystem saw none of what went on meanwhile."""
    watch, time = watched()
    began_at = time.now
    time.run(watch, 12.0)
    watch.tick(began_at)
    assert watch.for_s() == 0.0


def test_doubts_end_with_time_awake_or_with_a_second_look() -> None:
    """A new sign of life begins them anew."""
    watch, time = watched()
    doubts = Doubts(watch)
    assert doubts.about("x", 7.0, 3.0) == 3.0 == doubts.left_s
    time.stop(2.0)
    assert doubts.about("x", 7.0, 3.0) == 1.0
    assert doubts.about("x", 8.0, 3.0) == 3.0
    time.stop(3.0)
    assert doubts.about("x", 8.0, 3.0) == 0.0
    assert doubts.about("y", 8.0, 3.0) == 3.0
    time.run(watch, 3.0)
    assert doubts.about("z", 8.0, 3.0) == 0.0


@pytest.mark.parametrize("heartbeat_s", [0.05, 0.5, 2.0, 15.0, 300.0])
def test_what_is_overlooked_lets_no_lease_expire(heartbeat_s: float) -> None:
    """A lease lasts two beats or more: one that has passed, and a stall that is too short to be noticed."""
    assert heartbeat_s + gap_s(heartbeat_s, 2 * heartbeat_s) < 2 * heartbeat_s or heartbeat_s <= 0.05
    assert grace_s(heartbeat_s, 2 * heartbeat_s) > heartbeat_s


def silent_other(path: Path, heartbeat_s: float | None, lease_timeout_s: float = 60.0) -> Queue:
    """A handle that holds "a", and that was last heard of long ago."""
    other = FileSampleRefQueue(path, lease_timeout_s=lease_timeout_s, heartbeat_s=heartbeat_s)
    other.put(refs("a"))
    other.get(1)
    grow_silent(path)
    return other


def grow_silent(path: Path) -> None:
    for state in ("leased", "owners"):
        for file in (path / state).iterdir():
            backdate(file, 100.0)


def stalled_handle(path: Path, tap: Tap | None = None, **arguments: Any) -> tuple[Queue, Time]:
    """A handle whose process wakes from a stall."""
    tap = tap or Tap()
    time = Time(tap.ops)
    queue = open_tapped(tap, path, **arguments)
    time.stop(40.0)
    return queue, time


@pytest.mark.parametrize(("heartbeat_s", "needs_s"), [(10.0, 15.5), (None, 1.0)])
def test_who_wakes_gives_the_others_time_to_show_up(path: Path, heartbeat_s: float | None, needs_s: float) -> None:
    """A lease that looks expired is left alone for one and a half of its owner's beats and half a second."""
    with silent_other(path, heartbeat_s) as other:
        queue, time = stalled_handle(path)
        assert queue.get(1) == []
        time.run(queue.handle.awake, needs_s - 0.1)
        assert queue.get(1) == []
        time.run(queue.handle.awake, 0.2)
        assert ids(queue.get(1)) == ["a"]
        assert other.ack(refs("a")) == ["a"]
        queue.close()


@pytest.mark.parametrize("heartbeat_s", [10.0, None])
def test_who_shows_up_in_time_keeps_its_leases(path: Path, heartbeat_s: float | None) -> None:
    """Nobody failed in a stall of everybody: no lease is lost, and no attempt is counted."""
    with silent_other(path, heartbeat_s) as other:
        queue, time = stalled_handle(path, max_attempts=1)
        assert queue.get(1) == []
        other.handle.presence.beat() if heartbeat_s else other.renew(refs("a"))
        time.run(queue.handle.awake, 30.0)
        assert queue.get(1) == []
        assert other.ack(refs("a")) == []
        queue.close()
    assert names_in(path, "failed") == []


def test_a_new_process_has_not_been_awake(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who has just begun to run, after a stall of all the others, gives them time."""
    tap = Tap()
    time = Time(tap.ops)
    with silent_other(path, None):
        monkeypatch.setattr(awake, "process_age_s", lambda: 0.25)
        queue = open_tapped(tap, path)
        assert queue.get(1) == []
        time.run(queue.handle.awake, 1.0)
        assert ids(queue.get(1)) == ["a"]
        queue.close()


def test_reclaiming_waits_until_it_can_tell(path: Path) -> None:
    """`reclaim` brings back all that has expired, also as the first call of a process."""
    with silent_other(path, 10.0):
        queue, time = stalled_handle(path)
        assert queue.reclaim() == 1
        assert [round(slept, 6) for slept in time.slept] == [15.5]
        assert queue.reclaim() == 0
        queue.close()


def test_a_waiting_get_comes_back_to_its_doubts(path: Path) -> None:
    """It leases what expired once it may, and not a whole lease timeout later."""
    with silent_other(path, 10.0):
        queue, time = stalled_handle(path)
        woke = time.now
        assert ids(queue.get(1, 60.0)) == ["a"]
        assert 15.5 <= time.now - woke < 18.0
        queue.close()


def test_who_wakes_beats_first_and_keeps_what_it_holds(path: Path) -> None:
    """A handle with a heartbeat takes no lease from itself, though nobody could beat for longer than the timeout."""
    tap = Tap()
    time = Time(tap.ops)
    queue = open_tapped(tap, path, lease_timeout_s=6_000.0, heartbeat_s=3_000.0, max_attempts=1)
    queue.put(refs("a", "b"))
    held = queue.get(1)
    for state in ("leased", "owners"):
        for file in (path / state).iterdir():
            backdate(file, 9_000.0)
    record = path / "owners" / f"{queue.owner}.json"
    before = os.stat(record).st_mtime
    time.stop(9_000.0)
    first: list[str] = []
    tap.before = lambda name, args, _: first.append(name) if name in ("utime", "listdir") else None
    assert ids(queue.get(5)) == ["b"]
    assert first[0] == "utime", "it beats before it looks at anybody's lease"
    assert os.stat(record).st_mtime > before + 8_000.0
    assert queue.reclaim() == 0 and time.slept == []
    assert queue.ack(held) == []
    queue.close()
    assert names_in(path, "failed") == []


def test_a_stall_between_look_and_take_over_gives_the_lease_back(path: Path) -> None:
    """An operation that hung for long, in the middle of a reclaim, leaves the owner its lease."""
    with silent_other(path, 10.0) as other:
        tap = Tap()
        queue, time = stalled_handle(path, tap)
        assert queue.get(1) == []
        time.run(queue.handle.awake, 20.0)

        def hang(name: str, *_: Any) -> None:
            if name == "rename":
                tap.before = None
                time.stop(40.0)

        tap.before = hang
        assert queue.get(1) == [] and tap.before is None
        assert other.ack(refs("a")) == []
        queue.close()
