"""Streams over a queue: membership, the end, watermarks, rewinding, and the trainer's view."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
import warnings
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fsqueue import (
    FileSampleRefQueue,
    LeasesHeldError,
    MemberFailedError,
    MemberMissingError,
    PartialWindowWarning,
    QueueClosedError,
    QueueConfigError,
    SampleRef,
    StreamEndedError,
    StreamStalledError,
    TrainerView,
    dp_partition,
)
from fsqueue.operate.check import check_queue
from tests.support import FakeClock, InThread, Tap, folder_of, open_tapped, wait_until

SPAWN = multiprocessing.get_context("spawn")
GUARD_S = 60.0


def refs(count: int, start: int = 0) -> list[SampleRef]:
    return [
        SampleRef(f"s{i:04d}", "run", None, "file:///f", {}, {}, "eagle3", estimated_bytes=100)
        for i in range(start, start + count)
    ]


def ids(found: list[SampleRef]) -> list[str]:
    return [ref.sample_id for ref in found]


def produce(path: str, name: str, count: int, start: int) -> None:
    with FileSampleRefQueue(path, durable=False) as mine, mine.producer(name, expected=2):
        for ref in refs(count, start):
            mine.put_when_below([ref], high=16, low=8)


def train(pipe: Connection, path: str, rank: int, world: int) -> None:
    got: list[str] = []
    warnings.simplefilter("ignore", PartialWindowWarning)
    with FileSampleRefQueue(path, durable=False) as mine, TrainerView(mine, partition=(rank, world), batch=3) as view:
        step = 0
        while batch := view.get():
            assert len(batch) == 3
            step += 1
            assert view.ack(batch, step=step) == []
            got += ids(batch)
    pipe.send(got)


def join_and_wait(pipe: Connection, path: str) -> None:
    mine = FileSampleRefQueue(path, durable=False)
    mine.producer("rollout-0")
    pipe.send("joined")
    signal.pause()


def reap(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.join(GUARD_S)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"{process} hung")
        assert process.exitcode == 0


def test_ranks_get_equal_numbers_of_batches_and_nothing_is_lost(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Two producers and three ranks in processes of their own: as many batches for every rank, the rest is pending."""
    pipes = [SPAWN.Pipe() for _ in range(3)]
    processes = [SPAWN.Process(target=produce, args=(queue.path, f"rollout-{k}", 40, 1000 * k)) for k in range(2)]
    processes += [SPAWN.Process(target=train, args=(pipes[r][1], queue.path, r, 3)) for r in range(3)]
    for process in processes:
        process.start()
    got = [pipe.recv() for pipe, _ in pipes if pipe.poll(GUARD_S)]
    reap(processes)
    assert len(got) == 3 and len({len(batch) for batch in got}) == 1
    trained = [sample_id for batch in got for sample_id in batch]
    assert len(set(trained)) == len(trained) == 72  # what is left is less than a batch for each of the three
    assert queue.counts() == (8, 0, 72, 0)
    assert check_queue(queue.path) == []


def test_ranks_share_a_skewed_stream_below_a_watermark(queue: FileSampleRefQueue[SampleRef]) -> None:
    """All refs belong to the partition of rank 0, and no more than four may be pending: rank 1 gets its half."""
    ours = [ref for ref in refs(80) if dp_partition(ref.sample_id, 2) == 0][:24]
    (_, zero), (_, one) = pipes = [SPAWN.Pipe() for _ in range(2)]
    processes = [SPAWN.Process(target=train, args=(end, queue.path, r, 2)) for r, end in enumerate((zero, one))]
    for process in processes:
        process.start()
    with queue.producer("rollout-0"):
        for ref in ours:
            queue.put_when_below([ref], high=4, low=2, timeout_s=GUARD_S)
    got = [pipe.recv() for pipe, _ in pipes if pipe.poll(GUARD_S)]
    reap(processes)
    assert [len(batch) for batch in got] == [12, 12]
    assert sorted(got[0] + got[1]) == ids(ours)
    assert check_queue(queue.path) == []


def test_what_a_killed_run_agreed_on_does_not_bind_the_next(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Rank 1 starts before rank 0 and finds the posts and the verdict of an earlier run of the same session."""
    with queue.producer("rollout-0"):
        queue.put(refs(6))
    left = Path(queue.path) / "stream"
    (left / "verdict@default.t.1.aaaaaa@0.end.json").write_text('{"owners":["t.1.aaaaaa","t.2.bbbbbb"]}')
    for rank, owner in enumerate(("t.1.aaaaaa", "t.2.bbbbbb")):
        (left / f"rank@default.{rank}.2.{owner}@0.starved.json").write_text(
            f'{{"owner":"{owner}","leader":"t.1.aaaaaa"}}'
        )
    pipes = [SPAWN.Pipe() for _ in range(2)]
    processes = [SPAWN.Process(target=train, args=(pipes[r][1], queue.path, r, 2)) for r in range(2)]
    processes[1].start()
    while queue.in_flight() < 3:
        assert not pipes[1][0].poll(0.01)
    processes[0].start()
    got = [pipe.recv() for pipe, _ in pipes if pipe.poll(GUARD_S)]
    reap(processes)
    assert [len(batch) for batch in got] == [3, 3]
    assert check_queue(queue.path) == []


def test_drained_means_closed_and_nothing_pending_or_leased(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Neither an empty queue nor a closed producer is the end by itself."""
    assert not queue.drained()
    with queue.producer("rollout-0"):
        queue.put(refs(1))
        assert not queue.drained()
    assert not queue.drained()
    leased = queue.get(1)
    assert not queue.drained()
    queue.ack(leased)
    assert queue.drained()


def round_stamps(tap: Tap, grain_ns: int) -> None:
    """Let a file's times be as a filesystem keeps them that knows no finer ones."""
    fstat = tap.ops.fstat

    def rounded(fd: int) -> Any:
        found = fstat(fd)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**fields | {"st_mtime_ns": found.st_mtime_ns // grain_ns * grain_ns})

    tap.ops.fstat = rounded


def test_the_end_is_not_believed_while_a_change_could_leave_the_stamps_alone(tmp_path: Path) -> None:
    """A ref hops to pending/ after that was listed, and away before it is listed again, within one second."""
    tap = Tap()
    round_stamps(tap, 10**9)
    other = FileSampleRefQueue(tmp_path / "q", durable=False)
    with other, open_tapped(tap, tmp_path / "q", durable=False) as queue:
        with other.producer("rollout-0"):
            other.put(refs(1))
        wait_until(lambda: time.time() % 1 < 0.5, "the first half of a second")
        leased = other.get(1)
        listings = iter(("pending", "leased"))

        def hop(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
            listed = folder_of(args[0]) if name == "listdir" else None
            if listed in ("pending", "leased") and (turn := next(listings, None)) is not None:
                assert listed == turn
                if turn == "pending":
                    other.fail(leased, "again", True)
                else:
                    leased.extend(other.get(1))

        tap.after = hop
        assert not queue.drained()
        other.ack(leased[1:])
        assert queue.drained()


@pytest.mark.parametrize(("grain_ns", "at_least_s", "at_most_s"), [(10**9, 2.0, 3.0), (1, 0.01, 0.5)])
def test_the_end_takes_longer_only_where_stamps_are_coarse(
    tmp_path: Path, grain_ns: int, at_least_s: float, at_most_s: float
) -> None:
    """Where they have no part of a second it takes more than two, once; asking again takes no time."""
    tap, slept = Tap(), [0.0]
    round_stamps(tap, grain_ns)
    with open_tapped(tap, tmp_path / "q", durable=False) as queue:
        with queue.producer("rollout-0"):
            pass
        for state in ("pending", "leased"):
            os.utime(tmp_path / "q" / state, ns=(1, 10**18 + 1))
        tap.ops.monotonic = lambda: slept[0]
        tap.ops.sleep = lambda pause_s: slept.__setitem__(0, slept[0] + pause_s)
        assert queue.drained()
        assert at_least_s < slept[0] < at_most_s
        before = slept[0]
        assert queue.drained() and slept[0] == before


def test_the_stream_waits_for_the_expected_number_of_producers(queue: FileSampleRefQueue[SampleRef]) -> None:
    """One producer that comes and goes early, or twice, does not end a stream of two."""
    for _ in range(2):
        with queue.producer("rollout-0", expected=2):
            pass
        assert not queue.drained()
    with queue.producer("rollout-1", expected=2):
        pass
    assert queue.drained()


def test_a_producer_s_exception_reaches_the_consumers(queue: FileSampleRefQueue[SampleRef]) -> None:
    """An exception inside the block marks the producer failed, with reason and traceback, whatever its text."""
    with pytest.raises(ValueError), queue.producer("rollout-0"):
        raise ValueError("bad \ud800 prompt")
    with pytest.raises(MemberFailedError, match=r"rollout-0.*bad .* prompt") as caught:
        queue.stream().raise_failures("producer")
    assert "Traceback" in (caught.value.traceback or "")


def test_a_restarted_producer_takes_its_failed_namesake_s_place(queue: FileSampleRefQueue[SampleRef]) -> None:
    """After a failure, a producer of the same name makes the stream whole again; a live namesake is refused."""
    with pytest.raises(RuntimeError), queue.producer("rollout-0"):
        raise RuntimeError("out of memory")
    with queue.producer("rollout-0"):
        queue.stream().raise_failures("producer")
        with pytest.raises(QueueConfigError, match="another name"):
            queue.producer("rollout-0")
    assert queue.drained()


def test_a_killed_producer_is_noticed(queue: FileSampleRefQueue[SampleRef], monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that was killed fails the stream once it was awaited for as long as the run has said."""
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=join_and_wait, args=(theirs, queue.path))
    child.start()
    try:
        assert ours.poll(GUARD_S) and ours.recv() == "joined"
        queue.stream().raise_failures("producer")
    finally:
        child.kill()
        child.join()
    queue.configure_stream(await_s=100.0)
    (file,) = (Path(queue.path) / "stream").glob("producer@*")
    past = file.stat().st_mtime - 99.0
    os.utime(file, (past, past))
    queue.stream().opened_at -= 200.0
    queue.stream().raise_failures("producer")
    os.utime(file, (past - 2.0, past - 2.0))
    with pytest.raises(MemberMissingError, match=r"rollout-0.*gone or silent.*awaited for 10\d s.*await_s"):
        queue.stream().raise_failures("producer")


def test_watermarks_pause_a_producer(queue: FileSampleRefQueue[SampleRef]) -> None:
    """At the high watermark a put waits, and gives up with an error that says who consumes; below it does not."""
    queue.put_when_below(refs(4), high=4, low=2)
    with pytest.raises(StreamStalledError, match="no consumer has joined"):
        queue.put_when_below(refs(1, 10), high=4, low=2, timeout_s=0.05)
    assert queue.depth() == 4
    queue.ack(queue.get(3))
    queue.put_when_below(refs(1, 10), high=4, low=2, timeout_s=0.05)
    assert queue.depth() == 2


def test_a_watermark_in_bytes_leaves_room_for_a_quantum(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Refs of 100 bytes wait at 250 bytes for room, but never below what the consumers take at a time."""
    queue.put_when_below(refs(2), high=100, high_bytes=250)
    with pytest.raises(StreamStalledError):
        queue.put_when_below(refs(1, 10), high=100, high_bytes=250, timeout_s=0.02)
    queue.publish_quantum(dp_size=2, batch_size=2)
    queue.put_when_below(refs(2, 10), high=100, high_bytes=250, timeout_s=0.02)
    with pytest.raises(StreamStalledError):
        queue.put_when_below(refs(1, 20), high=100, high_bytes=250, timeout_s=0.02)
    assert queue.depth() == 4


def test_a_producer_at_the_watermark_stops_when_the_consumers_have_left(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Consumers that left, or failed, end the wait with an error of their own."""
    queue.put(refs(4))
    with queue.consumer("trainer-0"):
        pass
    with pytest.raises(StreamEndedError):
        queue.put_when_below(refs(1, 10), high=4)
    with pytest.raises(RuntimeError), queue.consumer("trainer-0"):
        raise RuntimeError("loss is nan")
    with pytest.raises(MemberFailedError, match="loss is nan"):
        queue.put_when_below(refs(1, 10), high=4)


def test_a_high_watermark_below_the_quantum_is_refused(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Consumers that take 16 at a time would starve below a watermark of 8."""
    queue.publish_quantum(dp_size=4, batch_size=2, accumulation_steps=2)
    with pytest.raises(QueueConfigError, match="use 16 or more"):
        queue.put_when_below(refs(1), high=8)


def test_rewind_puts_back_what_was_acked_after_the_checkpoint(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Exactly the refs of later steps come again, in order, without an attempt counted; twice changes nothing."""
    queue.put(refs(6))
    for step in (1, 2, 3):
        queue.ack(queue.get(2), step=step)
    assert queue.rewind(after_step=1) == ["s0002", "s0003", "s0004", "s0005"]
    assert queue.rewind(after_step=1) == []
    assert ids(queue.get(6)) == ["s0002", "s0003", "s0004", "s0005"]
    assert queue.counts().done == 2
    assert check_queue(queue.path) == []


def test_rewind_is_refused_while_another_owner_holds_leases(queue: FileSampleRefQueue[SampleRef]) -> None:
    """A running trainer's acks would carry steps of the run that crashed; force overrides."""
    queue.put(refs(2))
    queue.ack(queue.get(1), step=5)
    with FileSampleRefQueue(queue.path, durable=False) as other:
        leased = other.get(1)
        with pytest.raises(LeasesHeldError, match="release --owner"):
            queue.rewind(after_step=1)
        assert queue.rewind(after_step=1, force=True) == ["s0000"]
        assert other.ack(leased, step=6) == []


def test_a_single_rank_gives_a_partial_batch_back(queue: FileSampleRefQueue[SampleRef]) -> None:
    """The end of a drained stream is an empty list; what was too little for a batch is pending, and said so."""
    with queue.producer("rollout-0"):
        queue.put(refs(5))
    with TrainerView(queue, batch=2) as view:
        assert ids(view.get()) == ["s0000", "s0001"]
        assert ids(view.get()) == ["s0002", "s0003"]
        assert view.ack_ids(["s0000", "s0001", "s0002", "unknown"], step=1) == []
        with pytest.warns(PartialWindowWarning, match="1 refs"):
            assert view.get() == []
        assert queue.in_flight() == 1
    assert (queue.depth(), queue.in_flight()) == (2, 0)


def test_an_idle_view_says_who_was_last_seen(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Nothing for too long is an error that names the producers, not the end of the data."""
    view = TrainerView(queue, batch=1, idle_timeout_s=0.01)
    with queue.producer("rollout-0"), view, pytest.raises(StreamStalledError, match=r"rollout-0.*last seen"):
        view.get()


class Stopped:
    def is_set(self) -> bool:
        return True


def test_an_interrupted_view_gives_back_what_it_has(queue: FileSampleRefQueue[SampleRef]) -> None:
    """A stop event ends the wait; the view can go on afterwards."""
    queue.put(refs(1))
    with TrainerView(queue, batch=1) as view:
        assert view.get_interruptible(1, stop_event=Stopped()) == []
        assert ids(view.get()) == ["s0000"]


def test_a_get_of_a_view_is_stopped_as_one_of_a_queue_is(queue: FileSampleRefQueue[SampleRef]) -> None:
    """`get(stop_event=)` ends the wait and gives back what it has; it is not swallowed with the loaders' arguments."""
    queue.put(refs(1))
    with TrainerView(queue, batch=2) as view:
        assert view.get(stop_event=Stopped()) == []
        stop = threading.Event()
        waiting = InThread(lambda: view.get(stop_event=stop))
        stop.set()
        assert waiting.result() == [] and queue.in_flight() == 0


def test_a_closed_view_takes_no_more(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Its refs would be renewed by nobody: a get of it, and one that waits in another thread, is an error."""
    queue.put(refs(1))
    view = TrainerView(queue, batch=2)
    waiting = InThread(view.get)
    wait_until(lambda: queue.in_flight() == 1, "the view has leased what there is")
    view.close()
    view.close()
    for get in (waiting.result, view.get):
        with pytest.raises(QueueClosedError, match="view"):
            get()
    assert (queue.depth(), queue.in_flight()) == (1, 0)


def test_a_view_that_is_closed_on_top_of_a_call_waits_for_no_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler closes it while this thread holds the lock that a renewal of the view is waiting for."""
    renewing = threading.Event()
    with FileSampleRefQueue[SampleRef](tmp_path / "q", durable=False, lease_timeout_s=0.2) as queue:
        renew = queue.renew
        queue.put(refs(1))
        view = TrainerView(queue, batch=1)
        assert len(view.get()) == 1

        def renew_soon(refs: Any) -> list[str]:
            renewing.set()
            return renew(refs)

        with queue.handle.mutex:
            monkeypatch.setattr(queue, "renew", renew_soon)
            assert renewing.wait(GUARD_S)
            view.close()


@pytest.mark.parametrize("body", ["ends", "raises"])
def test_a_member_leaves_though_its_queue_was_closed_before(queue: FileSampleRefQueue[SampleRef], body: str) -> None:
    """As where a handler of SIGTERM closes the queue in the midst of a block: the others learn how it ended."""
    error: type[BaseException] = ValueError
    with FileSampleRefQueue(queue.path, durable=False) as other:
        try:
            with other.producer("p") as member:
                other.close()
                member.beat()
                if body == "raises":
                    raise error("the run was stopped")
        except error:
            pass
        (found,) = queue.stream().members()
        assert (found.state, found.record.reason) == (
            ("closed", None) if body == "ends" else ("failed", "ValueError: the run was stopped")
        )
    assert sorted(os.listdir(Path(queue.path) / "stream")) == [
        f"producer@p-{found.record.process.owner}@{found.state}.json"
    ]


def test_a_run_that_starts_again_leaves_earlier_failures_aside(queue: FileSampleRefQueue[SampleRef]) -> None:
    """A handle holds against nobody what happened before it was opened: it waits as for one that withdrew."""
    with pytest.raises(RuntimeError), queue.producer("rollout-0"):
        raise RuntimeError("out of memory")
    failed = next((Path(queue.path) / "stream").glob("producer@*@failed.json"))
    os.utime(failed, (failed.stat().st_mtime - 5,) * 2)
    with FileSampleRefQueue(queue.path, durable=False) as again:
        again.stream().raise_failures("producer")
        os.utime(failed, (failed.stat().st_mtime - 3_000,) * 2)
        again.stream().opened_at -= 1_700.0
        again.stream().raise_failures("producer")
        again.stream().opened_at -= 200.0
        with pytest.raises(MemberMissingError, match=r"out of memory.*awaited for 1900 s"):
            again.stream().raise_failures("producer")


def test_a_rank_whose_peer_has_left_does_not_wait_for_ever(queue: FileSampleRefQueue[SampleRef]) -> None:
    """A rank that leaves its loop early ends the others' wait with an error that names it."""
    queue.put(refs(4))
    with queue.producer("rollout-0"), TrainerView(queue, partition=(0, 2), batch=2) as view:
        with queue.consumer("trainer-1"):
            pass
        with pytest.raises(StreamStalledError, match=r"trainer-1.*has left"):
            view.get()


def test_rewind_leaves_a_ref_alone_that_this_handle_leases_anew(queue: FileSampleRefQueue[SampleRef]) -> None:
    """Its new life is what counts: it stays leased, with its own content, and can be acknowledged."""
    queue.put(refs(1))
    queue.ack(queue.get(1), step=9)
    queue.put(refs(1))
    again = queue.get(1)
    assert queue.rewind(after_step=5) == []
    assert queue.counts() == (0, 1, 1, 0)
    assert queue.ack(again, step=6) == []


def test_a_view_renews_what_is_out_also_after_an_error(tmp_path: Path) -> None:
    """A batch may take longer than the lease timeout; a renewal that the filesystem refuses is made again."""
    tap, refused = Tap(), threading.Event()
    with open_tapped(tap, tmp_path / "q", durable=False, lease_timeout_s=0.4) as queue:
        queue.put(refs(2))
        with TrainerView(queue, batch=2) as view:
            batch = view.get()

            def refuse(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
                if name == "utime" and not refused.is_set() and threading.current_thread().name == "fsqueue-renew":
                    refused.set()
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

            tap.before = refuse
            files = list((tmp_path / "q" / "leased").iterdir())
            assert refused.wait(GUARD_S)
            before = [file.stat().st_mtime_ns for file in files]
            for file, stamp in zip(files, before, strict=True):
                wait_until(lambda f=file, s=stamp: f.stat().st_mtime_ns > s, "renewal")  # type: ignore[misc]
            assert view.ack(batch) == []


def test_a_rank_that_was_stopped_for_longer_than_its_lease_has_no_ref_twice(tmp_path: Path) -> None:
    """A view that leases again what it held already counts it once, and waits for the rest of its batch."""
    clock, tap, naps = FakeClock(), Tap(), iter(range(1_000))
    queue = open_tapped(tap, tmp_path / "q", durable=False, lease_timeout_s=60, clock=clock)
    with queue, FileSampleRefQueue(tmp_path / "q", durable=False, clock=clock) as other, other.producer("p"):
        other.put(refs(2))
        really_sleep = tap.ops.sleep

        def sleep(seconds: float) -> None:
            nap = next(naps)
            if nap == 3:
                clock.now += 61.0
            if nap == 40:
                other.put(refs(2, 2))
            really_sleep(min(seconds, 0.01))

        tap.ops.sleep = sleep
        with TrainerView(queue, batch=4) as view:
            batch = view.get()
            assert sorted(ids(batch)) == ids(refs(4))
            assert view.ack(batch) == []
        assert queue.counts() == (0, 0, 4, 0)
