"""How often a waiter looks at the lock: a few times in what a turn at it takes, whatever that is."""

from __future__ import annotations

from fsqueue.engine.lock_pace import LockPace


def learned(turn_s: float, wait_s: float, turns: int = 100) -> LockPace:
    pace, now = LockPace(), 0.0
    for _ in range(turns):
        now += turn_s
        pace.taken(now, wait_s)
    return pace


def looks_in(pace: LockPace, wait_s: float) -> int:
    """Count the looks in a wait of so long."""
    waited_s, looks = 0.0, 0
    while waited_s < wait_s:
        waited_s += pace.pause_s(waited_s)
        looks += 1
    return looks


def test_a_handle_that_never_waited_looks_soon_and_ever_less_often() -> None:
    pace = LockPace()
    assert pace.pause_s(0.0) <= 0.0005
    assert looks_in(pace, 0.1) <= 20 and pace.pause_s(1e3) == pace.pause_s(1.0) <= 0.02


def test_who_waits_long_in_each_turn_looks_a_few_times() -> None:
    assert 2 <= looks_in(learned(0.04, 0.03), 0.03) <= 4


def test_all_who_share_turns_look_equally_often_whatever_they_waited() -> None:
    """A handle that was lucky is no more eager than one that was not: else it would stay so."""
    assert learned(0.03, 0.01).pause_s(0.0) == learned(0.03, 0.025).pause_s(0.0)


def test_a_few_that_take_short_turns_look_soon() -> None:
    """Four processes that put one ref after the other: a pause of half a turn would leave the lock free meanwhile."""
    assert learned(0.0014, 0.0008).pause_s(0.0) <= 0.0002


def test_short_waits_between_long_turns_stay_short() -> None:
    """A trainer that gets once a second, and waits for a put's piece then, looks within some milliseconds."""
    assert learned(1.0, 0.002).pause_s(0.0) <= 0.005


def test_a_lock_that_is_mostly_free_is_looked_at_soon() -> None:
    pace, now = learned(0.03, 0.02), 3.0
    for _ in range(50):
        pace.free += 20
        now += 0.1
        pace.taken(now, 0.001)
    assert pace.pause_s(0.0) < 0.001
