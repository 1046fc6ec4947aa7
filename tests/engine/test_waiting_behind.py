"""The longest time to hold a ref begins with its work: what only waits for that has no part in a hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, SampleRef, TrainerView
from tests.support import Tap, assert_clean, content, ids, numbered, open_tapped, refs

HOLD_S = 1e6


class Limited:
    """A queue with a limit, and a handle whose time can be moved on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shift_s = 0.0
        FileSampleRefQueue(path, lease_timeout_s=600.0, max_hold_s=HOLD_S, durable=False).close()
        tap = Tap()
        tap.ops.monotonic = lambda: time.monotonic() + self.shift_s
        self.queue = open_tapped(tap, path, heartbeat_s=100.0, durable=False)

    def after(self, limits: float) -> None:
        """Let so many times the limit pass, and the thread look."""
        self.shift_s += limits * HOLD_S
        self.queue.engine.holding.look()

    def expiries(self) -> dict[str, int]:
        """Return how many deliveries of each pending ref were counted."""
        files = sorted((self.path / "pending").glob("*.json"))
        return {it.stem: content(it).get("_fsqueue", {}).get("expiries", 0) for it in files}


@pytest.fixture
def limited(path: Path) -> Iterator[Limited]:
    it = Limited(path)
    yield it
    it.queue.close()
    assert_clean(path)


class Meanwhile:
    """A stop event that is never set; once something is leased, it does something in the midst of the wait.

    The get that leases it is the first to ask.
    """

    def __init__(self, limited: Limited, act: Callable[[], Any]) -> None:
        self._limited = limited
        self._act = act
        self._asked = 0

    def is_set(self) -> bool:
        if self._limited.queue.in_flight():
            self._asked += 1
            if self._asked == 2:
                self._act()
        return False


def test_a_view_that_waits_for_its_batch_keeps_what_it_has(limited: Limited) -> None:
    """The time begins as the batch is handed out."""
    queue = limited.queue
    queue.put(refs("a"))

    def wait_for_long() -> None:
        limited.after(2.0)
        queue.progress()  # another thread's
        limited.after(2.0)
        assert queue.in_flight() == 1
        queue.put(refs("b"))

    with TrainerView(queue, batch=2) as view:
        assert ids(view.get(stop_event=Meanwhile(limited, wait_for_long))) == ["a", "b"]
        limited.after(0.9)
        assert queue.in_flight() == 2
        limited.after(0.2)
        assert limited.expiries() == {"a": 1, "b": 1}


def test_later_batches_of_a_window_wait_behind_the_one_that_is_out(limited: Limited) -> None:
    """Each batch begins their time anew; a hang gives them back too, and their deliveries do not count."""
    queue = limited.queue
    queue.put(numbered(3))
    with TrainerView(queue, batch=1, window=3) as view:
        assert view.ack(view.get()) == []
        limited.after(0.9)
        assert ids(view.get()) == ["s00001"]
        limited.after(0.9)
        assert queue.in_flight() == 2
        limited.after(0.2)
        assert limited.expiries() == {"s00001": 1, "s00002": 0}
        assert content(limited.path / "pending" / "s00002.json")["_fsqueue"]["history"][-1]["event"] == "released"


def test_the_refs_of_a_loop_wait_behind_each_other(limited: Limited) -> None:
    limited.queue.put(numbered(4))
    loop = limited.queue.consume(4, idle_s=0.0)
    for lease in loop:
        with lease:
            limited.after(0.9)
    assert (loop.acked, loop.lost) == (4, [])


@pytest.mark.parametrize("settled", [False, True])
def test_a_loop_that_hangs_gives_back_what_is_behind_uncounted_and_leaves_it_to_others(
    limited: Limited, settled: bool
) -> None:
    """Also where the ref that it hangs on has been settled."""
    limited.queue.put(numbered(3))
    loop = limited.queue.consume(3, idle_s=0.0)
    seen: list[str] = []
    with FileSampleRefQueue[SampleRef](limited.path, durable=False) as other:
        for lease in loop:
            with lease as ref:
                seen.append(ref.sample_id)
                assert not settled or lease.ack()
                limited.after(1.1)
                behind = {"s00001": 0, "s00002": 0}
                assert limited.expiries() == (behind if settled else {"s00000": 1} | behind)
                taken = other.get(3)
        assert seen == ["s00000"] and sorted(loop.lost) == ids(numbered(3))[settled:]
        assert other.ack(taken) == []
