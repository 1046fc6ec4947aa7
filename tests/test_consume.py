"""A worker's loop: what a block finished is acknowledged, what raised has failed, what was not begun goes back."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidArgumentError, SampleRef
from tests.support import (
    GUARD_S,
    Child,
    FakeClock,
    InThread,
    Queue,
    assert_clean,
    content,
    ids,
    lease_name,
    names_in,
    numbered,
    refs,
    two_handles,
    wait_until,
)


def states(path: Path) -> dict[str, list[str]]:
    """Return the ids in each state that holds some."""
    found = {
        state: [name.partition("@")[0].removesuffix(".json") for name in names_in(path, state)]
        for state in ("pending", "leased", "done", "failed")
    }
    return {state: sorted(stems) for state, stems in found.items() if stems}


def test_each_ref_ends_as_its_block_does(path: Path, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """One that raises fails with the traceback as its reason and in the log, and the next one comes."""
    queue.put(refs("good", "bad", "better"))
    loop = queue.consume(2, idle_s=0.0, retryable=False)
    with caplog.at_level(logging.WARNING, "fsqueue"):
        for lease in loop:
            with lease as ref:
                assert ref == lease.ref
                if ref.sample_id == "bad":
                    raise ZeroDivisionError("no such layer")
    assert states(path) == {"done": ["better", "good"], "failed": ["bad"]}
    reason = content(path / "failed" / "bad.json")["_fsqueue"]["reason"]
    assert reason.startswith("ZeroDivisionError: no such layer\n") and __file__ in reason
    assert "work on bad failed" in caplog.text and "ZeroDivisionError" in caplog.text
    assert (loop.acked, loop.failed, loop.released, loop.lost, loop.ended_by) == (2, 1, 0, [], "idle")
    assert_clean(path)


def test_what_raises_is_tried_again(path: Path) -> None:
    """As often as the queue's attempts say."""
    tries: list[str] = []
    with FileSampleRefQueue(path, durable=False, max_attempts=3) as queue:
        queue.put(refs("a", "b"))
        for lease in queue.consume(idle_s=0.0):
            with lease as ref:
                tries.append(ref.sample_id)
                assert ref.sample_id != "a", "always"
    assert tries == ["a", "b", "a", "a"] and states(path) == {"done": ["b"], "failed": ["a"]}


def test_an_error_that_ends_the_loop(path: Path, queue: Queue) -> None:
    """on_error="raise": the ref has failed, the others go back uncounted, and the exception goes on."""
    queue.put(refs("a", "b", "c"))
    loop = queue.consume(3, on_error="raise", retryable=False)
    with pytest.raises(ZeroDivisionError):
        for lease in loop:
            with lease:
                1 / 0  # noqa: B018
    assert states(path) == {"failed": ["a"], "pending": ["b", "c"]} and loop.released == 2
    assert "attempts" not in content(path / "pending" / "b.json").get("_fsqueue", {})


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_failure_of_the_ref(path: Path, queue: Queue, error: type[BaseException]) -> None:
    """Ctrl-C, and whatever else ends a program, gives all back without a counted attempt."""
    queue.put(refs("a", "b"))
    with pytest.raises(error):
        for lease in queue.consume(2):
            with lease:
                raise error
    assert states(path) == {"pending": ["a", "b"]} and queue.get(2) == refs("a", "b")
    assert all(
        "attempts" not in content(path / "leased" / name).get("_fsqueue", {}) for name in names_in(path, "leased")
    )


def test_a_break_gives_back_what_was_not_begun(path: Path, queue: Queue) -> None:
    queue.put(numbered(5))
    for lease in queue.consume(4):
        with lease:
            pass
        break
    assert states(path) == {"done": ["s00000"], "pending": ["s00001", "s00002", "s00003", "s00004"]}


def test_what_a_block_settles_itself_stays_so(path: Path, queue: Queue) -> None:
    """A ref acknowledged at a step, failed, or given back by the block is not settled again as it ends."""
    queue.put(refs("acked", "failed", "released"))
    for lease in queue.consume(3):
        with lease as ref:
            assert not lease.settled
            if ref.sample_id == "acked":
                assert lease.ack(step=7)
            elif ref.sample_id == "failed":
                assert lease.fail("too short", retryable=False)
            else:
                assert lease.release()
            assert lease.settled
            if ref.sample_id == "released":
                break
    assert states(path) == {"done": ["acked"], "failed": ["failed"], "pending": ["released"]}
    assert names_in(path, "done") == ["acked@7.json"]
    assert content(path / "failed" / "failed.json")["_fsqueue"]["reason"] == "too short"


def test_a_lease_that_was_lost_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The loop says whose, in its list and in the log; the one who has it by now keeps it."""
    clock = FakeClock()
    mine, other = two_handles(path, clock)
    mine.put(refs("a", "b"))
    loop = mine.consume(idle_s=0.0)
    for lease in loop:
        with lease as ref:
            if ref.sample_id == "a":
                clock.advance(100.0)
                assert ids(other.get(1)) in (["a"], ["b"])
                held = ids([each for each in (*refs("a"), *refs("b")) if lease_names(path, each)])
                assert "a" in held or other.get(1)
    assert loop.lost == ["a"] and caplog.text.count("the leases of a were lost") == 1
    assert other.ack(refs("a")) == [] and loop.acked + len(states(path)["done"]) >= 1


def test_a_lease_that_is_known_to_be_lost_is_not_handed_out(path: Path) -> None:
    """Another one works on that ref."""
    clock = FakeClock()
    mine, other = two_handles(path, clock)
    mine.put(refs("a", "b"))
    loop = mine.consume(2, idle_s=0.0)
    begun = []
    for lease in loop:
        with lease as ref:
            begun.append(ref.sample_id)
            if ref.sample_id == "a":
                clock.advance(100.0)
                assert ids(other.get(2)) == ["a", "b"] and mine.renew(refs("a", "b")) == ["a", "b"]
    assert begun == ["a"] and loop.lost == ["a", "b"]


def lease_names(path: Path, ref: SampleRef) -> list[str]:
    return [name for name in names_in(path, "leased") if name.startswith(f"{ref.sample_id}@")]


def test_it_ends_on_the_stop_event_after_the_ref_at_hand(path: Path, queue: Queue) -> None:
    stop = threading.Event()
    queue.put(numbered(4))
    loop = queue.consume(3, stop_event=stop)
    for lease in loop:
        with lease:
            stop.set()
    assert loop.ended_by == "stop" and loop.acked == 1 and loop.released == 2
    assert states(path) == {"done": ["s00000"], "pending": ["s00001", "s00002", "s00003"]}


def test_a_queue_without_producers_is_never_drained(path: Path, queue: Queue) -> None:
    """A worker that finds nothing asks nobody to wait for it, and leaves no trace."""
    assert list(queue.consume(idle_s=0.1)) == [] and not queue.drained()
    assert not (path / "stream").exists()


def test_it_waits_until_the_stream_is_drained(path: Path, queue: Queue) -> None:
    """Without a ref it goes on, until every producer has closed and nothing is left."""

    def work() -> Any:
        loop = queue.consume(2)
        for lease in loop:
            with lease:
                pass
        return loop.acked, loop.ended_by

    with FileSampleRefQueue(path, durable=False) as other, other.producer("p"):
        other.put(refs("a"))
        thread = InThread(work)
        wait_until(lambda: names_in(path, "done") == ["a.json"], "the first ref")
        other.put(refs("b", "c"))
    assert thread.result() == (3, "drained")


def work_slowly(pipe: Connection, path: Path, own_handler: bool) -> None:
    """A worker that says what it works on, and goes on with it when it is told."""
    heard: list[int] = []
    if own_handler:
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    before = signal.getsignal(signal.SIGTERM)
    with FileSampleRefQueue(path, durable=False) as queue:
        loop = queue.consume(3)
        for lease in loop:
            with lease as ref:
                pipe.send(ref.sample_id)
                pipe.recv()
    pipe.send((loop.ended_by, loop.acked, loop.released, heard, signal.getsignal(signal.SIGTERM) is before))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("own_handler", [False, True])
def test_sigterm_ends_it_after_the_ref_at_hand(path: Path, queue: Queue, own_handler: bool, times: int) -> None:
    """The work on a ref comes to its end, whether one signal comes or two; a handler of the program's own is called."""
    queue.put(numbered(3))
    with Child(work_slowly, path, own_handler) as child:
        assert child.receive() == "s00000"
        for _ in range(times):
            child.signal(signal.SIGTERM)
        wait_until(lambda: _pending_signals(child.pid) == 0, "the signal")
        child.send("go on")
        ended_by, acked, released, heard, restored = child.receive()
        assert child.join() == 0
    assert (ended_by, acked, released, restored) == ("sigterm", 1, 2, True)
    assert set(heard) == ({signal.SIGTERM} if own_handler else set())
    assert states(path) == {"done": ["s00000"], "pending": ["s00001", "s00002"]}


def _pending_signals(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd")))


def test_a_worker_that_is_killed_loses_nothing(path: Path, queue: Queue) -> None:
    """SIGKILL in a block: another worker's loop has every ref, once, as soon as it looks."""
    queue.put(numbered(5))
    with Child(work_slowly, path, False) as child:
        assert child.receive() == "s00000"
        child.kill()
    found = []
    for lease in queue.consume(2, idle_s=0.0):
        with lease as ref:
            found.append(ref.sample_id)
    assert sorted(found) == ids(numbered(5)) and len(states(path)["done"]) == 5


@pytest.mark.parametrize("form", ["consume", "leased"])
def test_what_is_worked_on_is_renewed(path: Path, form: str) -> None:
    """Without a heartbeat of the handle, a thread renews all that is leased, also what waits for its turn."""
    with FileSampleRefQueue(path, durable=False, lease_timeout_s=2.0) as queue:
        queue.put(refs("a", "b"))
        if form == "leased":
            with queue.leased(2):
                _await_renewals(path)
        else:
            for lease in queue.consume(2, idle_s=0.0):
                with lease as ref:
                    if ref.sample_id == "a":
                        _await_renewals(path)
    assert states(path) == {"done": ["a", "b"]}
    assert all(thread.name != "fsqueue-renew" for thread in threading.enumerate())


def _await_renewals(path: Path) -> None:
    for stem in ("a", "b"):
        file = path / "leased" / lease_name(path, stem)
        for _ in range(2):
            stamped = os.stat(file).st_mtime_ns
            wait_until(lambda file=file, stamped=stamped: os.stat(file).st_mtime_ns > stamped, "a renewal")  # type: ignore[misc]


def test_several_threads_share_the_work(path: Path, queue: Queue) -> None:
    """Each with a loop of its own over one handle; every ref once."""
    queue.put(numbered(60))
    done: list[str] = []

    def work() -> None:
        for lease in queue.consume(4, idle_s=0.0):
            with lease as ref:
                done.append(ref.sample_id)

    for thread in [InThread(work) for _ in range(4)]:
        thread.result()
    assert sorted(done) == ids(numbered(60)) and len(states(path)["done"]) == 60


def test_slips(queue: Queue) -> None:
    """A lease that nobody enters is told at once, rather than delivered again for ever."""
    queue.put(refs("a"))
    with pytest.raises(InvalidArgumentError, match="with lease as ref"):
        for _ in queue.consume():
            pass
    assert queue.depth() == 1
    slips: list[dict[str, Any]] = [
        {"batch": 0}, {"batch": "3"}, {"idle_s": "x"}, {"stop_event": 3}, {"on_error": "skip"},
    ]  # fmt: skip
    for slip in slips:
        with pytest.raises(InvalidArgumentError, match="consume"):
            queue.consume(**slip)


def test_a_leased_batch(path: Path, queue: Queue) -> None:
    """Acknowledged as the block ends, but for what it has settled itself."""
    queue.put(refs("a", "b", "c"))
    with queue.leased(3) as batch:
        assert ids(batch) == ["a", "b", "c"]
        queue.fail(batch[:1], "bad", False)
        queue.release(batch[1:2])
    assert states(path) == {"failed": ["a"], "pending": ["b"], "done": ["c"]}
    with queue.leased(2) as batch:
        pass
    with queue.leased(2) as batch:
        assert batch == []
    assert states(path) == {"failed": ["a"], "done": ["b", "c"]}


def test_a_leased_batch_whose_acknowledgement_fails(path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was wrong with the work: no attempt is counted, and the refs go back with the handle's next call."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "the disk")

    queue.put(refs("a"))
    with monkeypatch.context() as patched:
        patched.setattr(queue, "ack", refuse)
        with pytest.raises(OSError, match="the disk"), queue.leased(1):
            pass
    queue.reclaim()
    assert states(path) == {"pending": ["a"]}
    assert "attempts" not in content(path / "pending" / "a.json").get("_fsqueue", {})


@pytest.mark.parametrize(("error", "left"), [(ZeroDivisionError, 1), (KeyboardInterrupt, 0)])
def test_a_leased_batch_whose_block_raises(path: Path, queue: Queue, error: type[BaseException], left: int) -> None:
    """An exception of the work counts an attempt of all, one that ends the program does not; both go on."""
    queue.put(refs("a", "b"))
    with pytest.raises(error), queue.leased(2, GUARD_S):
        raise error("as it happens")
    assert states(path) == {"pending": ["a", "b"]}
    for name in names_in(path, "pending"):
        assert content(path / "pending" / name).get("_fsqueue", {}).get("attempts", 0) == left
