"""A longest time to hold a ref: what hangs gives its refs back, also where its heartbeat goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fsqueue import FileSampleRefQueue, InvalidArgumentError, QueueConfigError, SampleRef
from fsqueue.cli.main import cli
from tests.support import (
    Child,
    Queue,
    Tap,
    assert_clean,
    content,
    ids,
    lease_name,
    numbered,
    open_tapped,
    refs,
    wait_until,
)

HOLD_S = 60.0


class Held:
    """A queue with a limit, and a handle in a time of its own that holds two of three refs."""

    def __init__(self, path: Path) -> None:
        self.now = 1_000.0
        with FileSampleRefQueue(path, lease_timeout_s=600.0, max_hold_s=HOLD_S, durable=False) as first:
            first.put(numbered(3))
        tap = Tap()
        tap.ops.monotonic = lambda: self.now
        self.queue = open_tapped(tap, path, heartbeat_s=100.0, durable=False)
        self.refs = self.queue.get(2)

    def after(self, seconds: float) -> None:
        """Let time pass, and the thread look."""
        self.now += seconds
        self.queue.engine.holding.look()


@pytest.fixture
def held(path: Path) -> Iterator[Held]:
    it = Held(path)
    yield it
    it.queue.close()


def test_what_is_held_for_too_long_goes_back_with_a_counted_delivery(
    path: Path, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """Its holder's late ack finds the lease lost; the others can have it."""
    held.after(HOLD_S)
    assert held.queue.in_flight() == 2
    with caplog.at_level(logging.WARNING, "fsqueue"):
        held.after(1.0)
    assert held.queue.counts() == (3, 0, 0, 0)
    assert any("s00000, s00001 were held for longer than max_hold_s, 60 s" in line for line in caplog.messages)
    event = content(path / "pending" / "s00000.json")["_fsqueue"]
    assert event["expiries"] == 1 and "max_hold_s" in event["history"][-1]["reason"]
    with FileSampleRefQueue(path, durable=False) as other:
        assert ids(other.get(3)) == ["s00002", "s00000", "s00001"]
        assert held.queue.ack(held.refs) == ids(held.refs)
        assert other.ack(numbered(3)) == []
    assert_clean(path)


def test_progress_begins_the_time_anew(held: Held) -> None:
    """For some refs, or for all of them."""
    held.after(HOLD_S - 1.0)
    held.queue.progress()
    held.after(HOLD_S - 1.0)
    held.queue.progress(held.refs[:1])
    held.after(2.0)
    assert held.queue.states(ids(held.refs)) == {"s00000": "leased", "s00001": "pending"}
    held.queue.progress(refs("unknown"))
    with pytest.raises(InvalidArgumentError, match="progress"):
        held.queue.progress(["s00000"])  # type: ignore[list-item]


def test_a_renewal_is_no_progress(held: Held) -> None:
    """It may come from a thread that knows nothing of the work."""
    held.after(HOLD_S - 1.0)
    assert held.queue.renew(held.refs) == []
    held.after(2.0)
    assert held.queue.in_flight() == 0


def test_what_kills_its_deliveries_is_buried(path: Path) -> None:
    held = Held(path)
    held.queue.close()
    with FileSampleRefQueue(path, heartbeat_s=100.0, max_deliveries=1, durable=False) as queue:
        (ref,) = queue.get(1)
        claim = queue.handle.held.find(ref.sample_id)
        assert claim is not None and claim.taken_at is not None
        claim.taken_at -= 2 * HOLD_S
        queue.engine.holding.look()
        assert queue.states([ref.sample_id]) == {ref.sample_id: "failed"}


def test_a_thread_that_reclaims_goes_first(held: Held) -> None:
    """The look waits for nobody's round; the next one does it."""
    from tests.support import InThread

    held.queue.handle.mutex.__enter__()
    InThread(lambda: held.after(2 * HOLD_S)).result()
    assert held.queue.in_flight() == 2
    held.queue.handle.mutex.release()
    held.after(0.0)
    assert held.queue.in_flight() == 0


@pytest.mark.parametrize("options", [{"heartbeat_s": 0.05}, {}], ids=["heartbeat", "no-heartbeat"])
def test_a_main_thread_that_hangs_gives_its_refs_back(path: Path, options: dict[str, Any]) -> None:
    """In real time: it waits here for others to get what it holds."""
    with FileSampleRefQueue(path, lease_timeout_s=None, max_hold_s=0.2, durable=False, **options) as hung:
        hung.put(refs("a"))
        assert ids(hung.get(1)) == ["a"]
        with FileSampleRefQueue[SampleRef](path, durable=False) as other:
            found = other.get(1, 60.0)
            assert ids(found) == ["a"] and other.ack(found) == []


def hang_in_a_loop(pipe: Any, path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        for lease in queue.consume():
            with lease as ref:
                pipe.send(ref.sample_id)
                pipe.recv()


def test_a_loop_that_hangs_gives_its_ref_back_though_its_thread_renews(path: Path) -> None:
    with FileSampleRefQueue(path, lease_timeout_s=1.0, max_hold_s=0.5, durable=False) as queue:
        queue.put(refs("a"))
        with Child(hang_in_a_loop, path) as child:
            assert child.receive() == "a"
            found = queue.get(1, 60.0)
            assert ids(found) == ["a"]
            assert "held for longer" in str(content(path / "leased" / lease_name(path, "a")))


def test_a_limit_that_is_set_later_holds_for_who_is_at_work(path: Path) -> None:
    """A heartbeat's thread takes it up, though the main thread does nothing more."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0, heartbeat_s=20.0, durable=False) as queue:
        queue.put(refs("a"))
        queue.get(1)
        with FileSampleRefQueue(path, durable=False) as other:
            other.configure(max_hold_s=0.1)
        queue.engine.holding.look()  # within half a minute, by its thread
        wait_until(lambda: queue.depth() == 1, "the ref to go back")
        assert queue.settings.max_hold_s == 0.1
        queue.configure(max_hold_s=None)
        assert queue.settings.max_hold_s is None


def test_who_never_leases_starts_no_thread(path: Path) -> None:
    with FileSampleRefQueue(path, max_hold_s=1.0, durable=False) as queue:
        queue.put(refs("a"))
        assert queue.engine.holding._interval_s == 0.0
        queue.get(1)
        assert queue.engine.holding._interval_s == 0.25
    with FileSampleRefQueue[SampleRef](path.with_name("plain"), durable=False) as plain:
        plain.get(1)
        assert plain.engine.holding._interval_s == 0.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), "60"])
def test_what_cannot_be_meant_is_refused(path: Path, value: Any) -> None:
    with pytest.raises((QueueConfigError, InvalidArgumentError), match="max_hold_s"):
        FileSampleRefQueue(path, max_hold_s=value)
    with FileSampleRefQueue(path) as queue, pytest.raises((QueueConfigError, InvalidArgumentError), match="max_hold_s"):
        queue.configure(max_hold_s=value)


def test_all_handles_agree_on_it(path: Path, queue: Queue) -> None:
    queue.configure(max_hold_s=5.0)
    with pytest.raises(QueueConfigError, match=r"max_hold_s=5\.0"):
        FileSampleRefQueue(path, max_hold_s=6.0)
    FileSampleRefQueue(path, max_hold_s=5.0).close()


def test_the_command_shows_and_changes_it(path: Path, queue: Queue) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["config", str(path), *arguments])
        assert result.exit_code == 0
        return result.stdout

    assert "max hold" not in run()
    assert "max hold       1.0 h\n" in run("--max-hold", "1h")
    assert content(path / "fsqueue.json")["max_hold_s"] == 3600.0
    assert '"max_hold_s": null' in run("--max-hold", "never", "--json")
