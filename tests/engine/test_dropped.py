"""A queue object that is dropped without a close gives back what it leases, and leaves everybody else's alone."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, SampleRef
from tests.support import (
    Child,
    InThread,
    Queue,
    assert_clean,
    content,
    ids,
    in_fork,
    names_in,
    numbered,
    open_descriptors,
    refs,
)


def lease_and_drop(path: Path, count: int = 1, **options: Any) -> list[str]:
    """Lease some refs, and return from the only frame that knows the queue object."""
    return ids(FileSampleRefQueue[SampleRef](path, **options).get(count))


@pytest.mark.parametrize("options", [{}, {"heartbeat_s": 0.05}, {"durable": False}])
def test_what_a_dropped_object_leases_goes_back(
    path: Path, queue: Queue, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With a counted delivery, a line in the log, and no owner's record, heartbeat or descriptor left."""
    queue.put(numbered(3))
    assert queue.get(1)
    before = open_descriptors()
    with caplog.at_level(logging.WARNING, "fsqueue"):
        assert lease_and_drop(path, 2, **options) == ["s00001", "s00002"]
    gc.collect()
    assert queue.counts() == (2, 1, 0, 0) and open_descriptors() <= before
    assert names_in(path, "owners") == [f"{queue.owner}.json"]
    assert any("took back 2 leases" in line for line in caplog.messages)
    event = content(path / "pending" / "s00001.json")["_fsqueue"]
    assert event["expiries"] == 1 and "dropped" in event["history"][-1]["reason"]
    assert sorted(ids(queue.get(5, 60.0))) == ["s00001", "s00002"]
    assert_clean(path)


def test_a_ref_whose_workers_drop_it_again_and_again_is_buried(path: Path, queue: Queue) -> None:
    """An exception that ends its worker each time is no way round max_deliveries."""
    queue.put(refs("poison"))
    for _ in range(3):
        lease_and_drop(path, max_deliveries=3)
        gc.collect()
    assert queue.states(["poison"]) == {"poison": "failed"}


def test_an_object_in_a_cycle_is_one_too(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    holder: dict[str, Any] = {"queue": FileSampleRefQueue(path, durable=False)}
    holder["self"] = holder
    assert holder["queue"].get(1)
    del holder
    assert gc.collect() and queue.depth() == 1


def test_after_a_watermark_it_can_be_dropped(path: Path, queue: Queue) -> None:
    """What an object keeps open does not keep the object."""
    dropped = FileSampleRefQueue[SampleRef](path, durable=False)
    dropped.put_when_below(refs("a"), high=5)
    assert dropped.get(1) and not dropped.drained()
    del dropped
    gc.collect()
    assert queue.depth() == 1


def test_what_came_from_a_dropped_object_goes_on(path: Path, queue: Queue) -> None:
    """A stream, and a member, of an object that nobody else knows."""
    with FileSampleRefQueue[SampleRef](path, durable=False).producer("p"):
        gc.collect()
        members = FileSampleRefQueue[SampleRef](path, durable=False).stream().members()
        assert [member.standing for member in members] == ["joined"]
    assert queue.drained()


def test_a_closed_object_gives_nothing_back(path: Path, queue: Queue) -> None:
    """Closing keeps its meaning: leases stay."""
    queue.put(refs("a"))
    with FileSampleRefQueue[SampleRef](path, durable=False) as other:
        other.get(1)
    del other
    gc.collect()
    assert queue.counts() == (0, 1, 0, 0)


def test_what_was_settled_stays_settled(path: Path, queue: Queue) -> None:
    queue.put(refs("a", "b", "c"))
    other = FileSampleRefQueue[SampleRef](path, durable=False)
    a, b, c = other.get(3)
    other.ack([a])
    other.fail([b], "broken", retryable=False)
    other.hand_over([c], _announced(queue))
    del other
    gc.collect()
    assert queue.counts() == (0, 1, 1, 1)


def _announced(queue: Queue) -> str:
    queue.get(1)
    return queue.owner


def test_a_forked_child_that_drops_it_takes_nothing_from_its_parent(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    mine = [FileSampleRefQueue[SampleRef](path, durable=False)]
    assert mine[0].get(1)

    def drop() -> None:
        mine.clear()
        gc.collect()

    in_fork(drop)
    assert queue.counts() == (0, 1, 0, 0) and mine[0].ack(refs("a")) == []
    mine[0].close()


def test_a_child_s_own_leases_go_back(path: Path, queue: Queue) -> None:
    """An object that was used after the fork is the child's."""
    queue.put(refs("a", "b"))
    mine = [FileSampleRefQueue[SampleRef](path, durable=False)]
    assert ids(mine[0].get(1)) == ["a"]

    def lease_and_drop_mine() -> None:
        assert ids(mine[0].get(1)) == ["b"]
        mine.clear()
        gc.collect()

    in_fork(lease_and_drop_mine)
    assert queue.counts() == (1, 1, 0, 0)
    mine[0].close()


def test_it_may_be_dropped_in_any_thread_while_others_work(path: Path, queue: Queue) -> None:
    """Objects go away in the midst of other objects' calls; nothing is lost, doubled, or hangs."""
    queue.put(numbered(200))
    done: list[str] = []
    stop = threading.Event()

    def drop_some() -> None:
        while not stop.is_set():
            lease_and_drop(path, 2, durable=False, max_deliveries=None)
            gc.collect()

    def work() -> None:
        with FileSampleRefQueue[SampleRef](path, durable=False) as mine:
            while len(done) < 200:
                found = mine.get(5, 0.2)
                assert mine.ack(found) == []
                done.extend(ids(found))

    dropper, worker = InThread(drop_some), InThread(work)
    worker.thread.join(120.0)
    stop.set()
    worker.result()
    dropper.result()
    assert sorted(done) == [f"s{number:05d}" for number in range(200)]
    assert_clean(path)


def test_at_the_interpreter_s_exit_the_process_s_death_ends_its_leases(path: Path, queue: Queue) -> None:
    """Neither an error, nor a hang: others find the process gone."""
    queue.put(refs("a"))
    program = (
        "import sys; from fsqueue import FileSampleRefQueue\n"
        "queue = FileSampleRefQueue(sys.argv[1]); queue.get(1); print(len(queue.get(1)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert ids(queue.get(1, 60.0)) == ["a"]
    history = content(next((path / "leased").iterdir()))["_fsqueue"]["history"]
    assert history[-1]["reason"] == "the owner's process is gone"


def test_a_queue_that_is_gone_is_dropped_in_silence(path: Path) -> None:
    import shutil

    queue = FileSampleRefQueue[SampleRef](path, durable=False)
    queue.put(refs("a"))
    queue.get(1)
    shutil.rmtree(path)
    del queue
    gc.collect()
    assert not os.path.lexists(path)


def lease_drop_and_wait(pipe: Any, path: Path) -> None:
    pipe.send(lease_and_drop(path))
    gc.collect()
    pipe.send(True)
    pipe.recv()


def test_other_processes_can_have_it_though_that_process_lives(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    with Child(lease_drop_and_wait, path) as child:
        assert child.receive() == ["a"] and child.receive()
        assert ids(queue.get(1, 60.0)) == ["a"]
        child.send("end")
