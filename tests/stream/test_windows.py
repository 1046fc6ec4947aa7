"""Windows of a `TrainerView`: ranks agree on whole optimizer windows, and what is left at the end is settled."""

from __future__ import annotations

import gc
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import (
    FileSampleRefQueue,
    InvalidArgumentError,
    MemberFailedError,
    PartialWindowWarning,
    QueueConfigError,
    SampleRef,
    StreamStalledError,
    TrainerView,
)
from tests.support import (
    FakeClock,
    InThread,
    Queue,
    assert_clean,
    content,
    ids,
    names_in,
    numbered,
    wait_until,
)
from tests.support.ranks import Group


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    with FileSampleRefQueue(path, durable=False) as it:
        yield it
    assert_clean(path)


def closed_after(queue: Queue, count: int) -> None:
    """Let the stream hold so many refs, and have its producer close."""
    with queue.producer("rollout"):
        queue.put(numbered(count))


def steps_in(path: Path) -> Counter[str]:
    """How many refs were acknowledged at each step."""
    return Counter(name.removesuffix(".json").rpartition("@")[2] for name in names_in(path, "done"))


def train(pipe: Connection, path: Path, rank: int, world: int, step: int) -> None:
    """One rank: tell each batch, go on when told to, and acknowledge by ids after two of them, as a trainer does."""
    warnings.simplefilter("ignore", PartialWindowWarning)
    with (
        FileSampleRefQueue(path, durable=False, heartbeat_s=0.2) as queue,
        TrainerView(queue, partition=(rank, world), batch=2, window=2, session="run") as view,
    ):
        window: list[str] = []
        while batch := view.get():
            window += ids(batch)
            pipe.send(ids(batch))
            pipe.recv()
            if len(window) == 4:
                view.step = step = step + 1
                assert view.ack_ids(window) == []
                window = []
        assert window == []
    pipe.send("ended")


def test_no_stream_ends_inside_a_window(queue: Queue, path: Path) -> None:
    """20 samples on 2 ranks, batch 2, accumulation 2: two whole steps, where single batches would end in the third."""
    closed_after(queue, 20)
    group = Group(train, path, 2, 0)
    try:
        rounds = [group.batches() for _ in range(4)]
        assert group.batches() == ["ended", "ended"]
    finally:
        group.end()
    assert all(len(batch) == 2 for said in rounds for batch in said)
    assert steps_in(path) == {"1": 8, "2": 8}
    assert queue.counts() == (4, 0, 16, 0)


def test_a_window_opens_only_when_all_of_it_is_secured(queue: Queue) -> None:
    """A batch is there, and another one is not: the first is not handed out, and goes back when the wait is stopped."""
    queue.put(numbered(3))
    stop = threading.Event()
    with queue.producer("rollout"), TrainerView(queue, batch=2, window=2) as view:
        waiting = InThread(lambda: view.get(stop_event=stop))
        wait_until(lambda: queue.in_flight() == 3, "the view has leased what there is")
        stop.set()
        assert waiting.result() == [] and queue.in_flight() == 0
        waiting = InThread(view.get)
        queue.put(numbered(1, "late"))
        assert len(waiting.result()) == 2 and queue.in_flight() == 4
        assert len(view.get()) == 2


def test_what_a_closed_view_had_secured_is_pending(queue: Queue) -> None:
    """Both the batch that was handed out and the one that was not."""
    queue.put(numbered(4))
    with TrainerView(queue, batch=2, window=2) as view:
        view.get()
        assert queue.in_flight() == 4
    assert queue.counts() == (4, 0, 0, 0)


def test_all_batches_of_a_window_have_one_size(queue: Queue) -> None:
    """Else the last of them would be short, and this rank out of step with the others."""
    queue.put(numbered(6))
    with TrainerView(queue, batch=2, window=2) as view:
        assert len(view.get(3)) == 3
        with pytest.raises(InvalidArgumentError, match="expected 3, as for the first of the 2 batches"):
            view.get()
        assert len(view.get(3)) == 3


def test_ranks_that_want_different_windows_are_told(queue: Queue, path: Path) -> None:
    """They would train different numbers of samples a step; nothing is handed out, and all of them stop."""
    queue.put(numbered(9))
    with FileSampleRefQueue(path, durable=False) as other, TrainerView(other, partition=(1, 2), window=3) as one:
        waiting = InThread(one.get)
        zero = TrainerView(queue, partition=(0, 2), window=2)
        with pytest.raises(QueueConfigError, match=r"\(rank 0 2, rank 1 3\): give all of them the same batch="), zero:
            zero.get()
        with pytest.raises(MemberFailedError, match="different numbers of refs"):
            waiting.result()
    assert queue.counts() == (9, 0, 0, 0)


@pytest.mark.parametrize(("rest", "counts"), [("release", (3, 0, 4, 0)), ("ack", (0, 0, 7, 0)), ("fail", (0, 0, 4, 3))])
def test_the_rest_is_settled_as_the_view_was_told(queue: Queue, path: Path, rest: Any, counts: Any) -> None:
    """Given back with a warning, acknowledged at the current step, or failed with a reason that says what it is."""
    closed_after(queue, 7)
    with TrainerView(queue, batch=2, window=2, rest=rest) as view, warnings.catch_warnings():
        warnings.simplefilter("error" if rest != "release" else "ignore")
        view.step = 1
        while batch := view.get():
            view.ack(batch)
        assert view.get() == []
        assert queue.counts() == counts
    assert steps_in(path) == {"1": counts[2]}
    for name in names_in(path, "failed"):
        reason = content(path / "failed" / name)["_fsqueue"]["reason"]
        assert reason.endswith("3 refs of this rank, too little for 2 batches of 2 for each of 1 ranks")


def test_a_hook_settles_the_rest(queue: Queue) -> None:
    """It is given the view and the refs; what it does not settle is pending again."""
    closed_after(queue, 7)
    seen: list[str] = []

    def settle(view: TrainerView[Any], refs: list[Any]) -> None:
        seen.extend(ids(refs))
        view.ack_ids([refs[0].sample_id], step=9)
        view.fail([refs[1]], "odd", retryable=False)

    with TrainerView(queue, partition=(0, 1), batch=2, window=2, rest=settle) as view:
        while batch := view.get():
            view.ack(batch)
        assert seen == ["s00004", "s00005", "s00006"]
        assert queue.counts() == (1, 0, 5, 1)


def test_an_error_of_the_hook_leaves_nothing_leased(queue: Queue) -> None:
    """It ends the get, and the rest is pending."""
    closed_after(queue, 1)

    def refuse(view: TrainerView[Any], refs: list[Any]) -> None:
        raise ValueError("no")

    with TrainerView(queue, batch=2, rest=refuse) as view:
        with pytest.raises(ValueError, match="no"):
            view.get()
        assert queue.counts() == (1, 0, 0, 0)


def test_the_rest_can_be_returned(queue: Queue) -> None:
    """To a loader that settles a short batch itself."""
    closed_after(queue, 7)
    with TrainerView(queue, batch=2, window=2, rest="return") as view:
        batches = [ids(batch) for batch in iter(view.get, [])]
        assert list(map(len, batches)) == [2, 2, 2, 1]
        assert view.fail(numbered(7)[6:], "short", retryable=False) == []
        assert view.ack_ids(f"s{number:05d}" for number in range(6)) == []
    assert queue.counts() == (0, 0, 6, 1)


def test_an_unknown_way_to_settle_the_rest_is_refused(queue: Queue) -> None:
    with pytest.raises(InvalidArgumentError, match="'release', 'ack', 'fail', 'return'"):
        TrainerView(queue, rest="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="window"):
        TrainerView(queue, window=0)


def test_an_ack_by_ids_takes_the_step_that_the_view_was_told(queue: Queue, path: Path) -> None:
    """So a rewind finds it; a step that is given counts for more."""
    queue.put(numbered(6))
    with TrainerView(queue, batch=2) as view:
        for step in (None, 4, 5):
            view.step = step
            view.ack_ids(ids(view.get()), step=3 if step == 5 else None)
        assert steps_in(path) == {"s00000": 1, "s00001": 1, "4": 2, "3": 2}
        assert queue.rewind(after_step=3) == ["s00002", "s00003"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_inside_a_window_comes_back_at_the_next(queue: Queue, path: Path, killed: int) -> None:
    """The other one finishes its own share; what the killed one had, handed out or not, is trained in later windows."""
    closed_after(queue, 32)
    group = Group(train, path, 2, 0)
    try:
        for _ in range(3):
            group.batches()
        group.kill(killed)
        other = group.ranks[1 - killed]
        assert len(other.receive()) == 2  # its share was secured
        group.restart(killed)
        other.send("go on")
        while "ended" not in (said := group.batches()):
            assert list(map(len, said)) == [2, 2]
    finally:
        group.end()
    assert said == ["ended", "ended"]
    assert queue.counts() == (4, 0, 28, 0)  # the fourth window has only a share of it left


@pytest.mark.parametrize("world", [1, 3])
def test_ranks_that_died_inside_a_window_come_back_in_another_number(queue: Queue, path: Path, world: int) -> None:
    """From the checkpoint of step 1, the producer alive: every sample is acknowledged once, in whole steps."""
    producer = queue.producer("rollout")
    queue.put(numbered(32))
    group = Group(train, path, 2, 0)
    try:
        for _ in range(3):
            group.batches()
        group.kill(1)
        assert len(group.ranks[0].receive()) == 2
        group.ranks[0].send("go on")  # it acknowledges step 2, and the checkpoint is that of step 1
        wait_until(lambda: steps_in(path)["2"] == 4, "rank 0 acknowledges its share")
        group.kill(0)
        assert len(queue.rewind(after_step=1, force=True)) == 4
        group = Group(train, path, world, 1)
        group.batches()
        producer.close()
        while "ended" not in (said := group.batches()):
            assert {len(batch) for batch in said} == {2}
    finally:
        group.end()
    assert said == ["ended"] * world
    assert steps_in(path) == {"1": 8} | {str(step): 4 * world for step in range(2, 2 + 24 // (4 * world))}
    assert queue.counts() == (0, 0, 32, 0)


class Stopped:
    """A view whose rank was stopped between two batches of a window, until its leases had expired."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.queue: Queue = FileSampleRefQueue(path, durable=False, lease_timeout_s=60, clock=self.clock)
        self.other: Queue = FileSampleRefQueue(path, durable=False, clock=self.clock)
        self.producer = self.other.producer("rollout")
        self.other.put(numbered(4))
        self.view = TrainerView(self.queue, batch=2, window=2)
        assert ids(self.view.get()) == ["s00000", "s00001"]
        self.clock.advance(61)
        self.lost = self.other.get(4)
        self.view._share._looked_at -= 10  # it has not looked at anything for as long

    def close(self) -> None:
        self.view.close()
        self.producer.close()
        self.queue.close()
        self.other.close()


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Stopped]:
    it = Stopped(tmp_path / "q")
    yield it
    it.close()
    assert_clean(tmp_path / "q")


def test_what_was_lost_of_a_window_is_replaced(stopped: Stopped) -> None:
    """No ref is handed out that another owner leases, and the window stays whole."""
    assert len(stopped.lost) == 4
    stopped.other.put(numbered(2, "n"))
    assert ids(stopped.view.get()) == ["n00000", "n00001"]
    assert stopped.view.ack_ids(["n00000", "n00001", "s00000"]) == ["s00000"]


def test_a_window_stays_whole_where_replacing_what_was_lost_is_cut_short(stopped: Stopped) -> None:
    """By a stop event, or an error: the next get goes on with the same window, of as many refs."""
    stop = threading.Event()
    stop.set()
    assert stopped.view.get(stop_event=stop) == []
    stopped.other.put(numbered(2, "n"))
    window = stopped.view._rendezvous.window
    assert ids(stopped.view.get()) == ["n00000", "n00001"]
    assert stopped.view._rendezvous.window == window, "no further one was opened"


def test_a_window_that_cannot_be_made_whole_again_is_an_error(stopped: Stopped) -> None:
    """The stream is over: the others would wait for a batch that never comes."""
    stopped.other.ack(stopped.lost)
    stopped.producer.close()
    with pytest.raises(StreamStalledError, match="start all ranks again from the last checkpoint"):
        stopped.view.get()


def test_a_failure_is_noticed_inside_a_window(queue: Queue) -> None:
    """Also where every batch is there already, and nothing has to be waited for."""
    queue.put(numbered(4))
    with TrainerView(queue, batch=1, window=4) as view:
        view.get()
        with pytest.raises(ValueError), queue.producer("rollout"):
            raise ValueError("NaN")
        view._share._looked_at -= 10
        with pytest.raises(MemberFailedError, match="NaN"):
            view.get()
    assert queue.counts() == (4, 0, 0, 0)


def test_what_is_secured_is_renewed(tmp_path: Path) -> None:
    """The last batch of a window may wait for longer than the lease timeout."""
    with FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=0.4) as queue:
        queue.put(numbered(2))
        with TrainerView(queue, batch=1, window=2) as view:
            view.get()
            files = list((tmp_path / "q" / "leased").iterdir())
            assert len(files) == 2
            before = [file.stat().st_mtime_ns for file in files]
            for file, stamp in zip(files, before, strict=True):
                wait_until(lambda f=file, s=stamp: f.stat().st_mtime_ns > s, "renewal")  # type: ignore[misc]
            assert view.ack(view.get()) == []


def view_and_drop(queue: Queue, count: int, window: int) -> list[str]:
    """Take a batch, and return from the only frame that knows the view."""
    return ids(TrainerView(queue, batch=count, window=window).get())


def test_a_view_that_is_dropped_with_its_queue_object_gives_back_what_it_leases(path: Path, queue: Queue) -> None:
    """Its thread that renews keeps neither of them; no lease times out here."""
    queue.put(numbered(3))
    assert view_and_drop(FileSampleRefQueue(path, durable=False), 2, 1) == ["s00000", "s00001"]
    gc.collect()
    wait_until(lambda: queue.counts() == (3, 0, 0, 0), "the refs to come back")


def test_a_view_that_is_dropped_alone_renews_nothing_more(tmp_path: Path) -> None:
    """What it had not handed out goes back with the next call, uncounted; the rest ends by its time."""
    path = tmp_path / "short"
    with FileSampleRefQueue(path, lease_timeout_s=2.0, durable=False) as queue:
        queue.put(numbered(2))
        out = view_and_drop(queue, 1, 2)
        gc.collect()
        again = queue.get(1, 60.0)
        assert ids(again) == ["s00001"] and queue.ack(again) == []
        assert "_fsqueue" not in content(path / "done" / names_in(path, "done")[0])
        with FileSampleRefQueue[SampleRef](path, durable=False) as other:
            assert ids(other.get(1, 60.0)) == out == ["s00000"]
