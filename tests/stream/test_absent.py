"""Members that are expected and never come are awaited for as long as the policy says, and then named."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, MemberMissingError, StreamStalledError, TrainerView
from tests.support import Queue, refs


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    with FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=60) as it:
        it.configure_stream(await_s=60)
        stream = it.stream()
        monkeypatch.setattr(stream, "_ops", Ticking(stream._ops, clock))
        yield it


class Ticking:
    """The operations of a stream, with a clock of its own."""

    def __init__(self, ops: object, clock: Clock) -> None:
        self._genuine = ops
        self.monotonic = clock.monotonic

    def __getattr__(self, name: str) -> object:
        return getattr(self._genuine, name)


def test_producers_that_never_came_are_awaited_and_then_named(queue: Queue, clock: Clock) -> None:
    """Counted from when nobody of them was at work any more: the second may begin when the first has ended."""
    stream = queue.stream()
    with queue.producer("rollout-0", expected=2):
        clock.now += 1000
        stream.raise_failures("producer")
    stream.raise_failures("producer")
    clock.now += 59
    stream.raise_failures("producer")
    clock.now += 2
    with pytest.raises(
        MemberMissingError, match=r"1 of 2 producers joined: producer 'rollout-0' .* is closed; 1 never"
    ):
        stream.raise_failures("producer")
    with queue.producer("rollout-1"):
        stream.raise_failures("producer")
    stream.raise_failures("producer")


def test_the_error_travels(queue: Queue) -> None:
    error = MemberMissingError("1 of 2 producers joined: p", "1 never came", 3.0, 1)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.absent) == (str(error), 1)


def test_where_nobody_has_come_nobody_is_missed(queue: Queue, clock: Clock) -> None:
    """A launcher may start the other pool much later."""
    queue.stream().raise_failures("producer")
    clock.now += 1e6
    queue.stream().raise_failures("producer")


def test_a_quorum_is_enough(queue: Queue, clock: Clock) -> None:
    queue.configure_stream(quorum=1)
    with queue.producer("rollout-0", expected=2):
        pass
    queue.stream().raise_failures("producer")
    clock.now += 1000
    queue.stream().raise_failures("producer")
    assert queue.drained()


def test_a_rank_that_never_came_is_named(tmp_path: Path) -> None:
    """Rank 0 is at work and cannot go on without it."""
    with FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=60) as queue:
        queue.configure_stream(await_s=0.2)
        queue.put(refs("s0", "s1"))
        with (
            queue.producer("rollout-0"),
            TrainerView(queue, partition=(0, 2)) as view,
            pytest.raises(MemberMissingError, match=r"1 of 2 consumers joined: consumer 'trainer-0'"),
        ):
            view.get()


def test_a_stall_says_who_never_came(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=60) as queue:
        with queue.producer("rollout-0", expected=2):
            pass
        with (
            TrainerView(queue, idle_timeout_s=0.1) as view,
            pytest.raises(StreamStalledError, match="1 of 2 producers joined: producer 'rollout-0'"),
        ):
            view.get()
