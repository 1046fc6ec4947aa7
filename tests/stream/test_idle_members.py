"""Members of a stream that wait on a shared mount look at it, and at each other, ever less often."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, MemberFailedError, QueueClosedError, SampleRef, StreamStalledError, TrainerView
from tests.support import ids, numbered, refs
from tests.support.shared import Shared


def test_a_view_that_waits_makes_few_operations(nowhere: Path) -> None:
    """Fewer than two a second, once it has waited for ten; a put is seen within the poll interval all the same."""
    shared = Shared(nowhere, "nfs4")
    with (
        FileSampleRefQueue[SampleRef](nowhere, durable=False) as other,
        other.producer("p"),
        TrainerView(shared.queue, batch=1, rest="release") as view,
    ):
        put_at = shared.after(130.0, lambda: other.put(refs("a")))
        assert ids(view.get()) == ["a"]
        assert put_at <= shared.now <= put_at + shared.queue.handle.poll_interval_s
        assert 0 < shared.a_second(130.0) < 2
    shared.queue.close()


def test_a_close_ends_a_put_that_waits_for_room(nowhere: Path) -> None:
    """By an error that says so, and not by one of a descriptor that is closed."""
    shared = Shared(nowhere, "nfs4", durable=False)
    shared.queue.put(numbered(8))
    shared.after(60.0, shared.queue.close)
    with pytest.raises(QueueClosedError):
        shared.queue.put_when_below(refs("a"), high=4)


def test_a_failure_is_heard_of_after_a_fifth_of_the_time_that_was_waited(nowhere: Path) -> None:
    """And after 15 s at most."""
    shared = Shared(nowhere, "nfs4")
    with FileSampleRefQueue[SampleRef](nowhere, durable=False) as other:
        producer = other.producer("p")
        with TrainerView(shared.queue, batch=1) as view:
            failed_at = shared.after(60.0, lambda: producer.fail("a test"))
            with pytest.raises(MemberFailedError):
                view.get()
            assert failed_at <= shared.now <= failed_at + 15.0 + shared.queue.handle.poll_interval_s
    shared.queue.close()


def test_a_stop_ends_the_wait_of_a_view_at_once(nowhere: Path) -> None:
    """However long its pauses are by then."""
    shared, stop = Shared(nowhere, "nfs4"), threading.Event()
    with (
        FileSampleRefQueue[SampleRef](nowhere, durable=False) as other,
        other.producer("p"),
        TrainerView(shared.queue, batch=1) as view,
    ):
        set_at = shared.after(100.0, stop.set)
        assert view.get(stop_event=stop) == []
        assert shared.now <= set_at + 0.2
    shared.queue.close()


def test_a_producer_that_waits_for_room_makes_few_operations(nowhere: Path) -> None:
    """Fewer than two a second, once it has waited for ten; its timeout ends when it is to."""
    shared = Shared(nowhere, "nfs4")
    with FileSampleRefQueue[SampleRef](nowhere, durable=False) as other, other.consumer("c"):
        shared.queue.put(numbered(8))
        with pytest.raises(StreamStalledError):
            shared.queue.put_when_below(refs("late"), high=8, low=4, timeout_s=130.0)
        assert shared.now == pytest.approx(shared.began + 130.0, abs=0.01)
        assert 0 < shared.a_second(130.0) < 2
    shared.queue.close()
