"""SIGTERM while a member waits for its place, and the handler's whole life."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueConfigError, TrainerView
from fsqueue.engine.owners import OwnerRecord
from tests.support import Queue


@pytest.fixture
def before() -> Iterator[Any]:
    """The handler that the process has: the default one, as a job has that nobody told otherwise."""
    kept = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield signal.SIG_DFL
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """A queue with a producer and a trainer of whom nobody can tell whether they live."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, durable=False, lease_timeout_s=60) as it, FileSampleRefQueue(path) as other:
        other.producer("m")
        other.consumer("trainer-0")
        monkeypatch.setattr(OwnerRecord, "liveness", lambda record: "unknown")
        yield it


def joins(queue: Queue, kind: str) -> object:
    return TrainerView(queue, on_sigterm="withdraw") if kind == "view" else queue.producer("m", on_sigterm="withdraw")


@pytest.mark.parametrize("kind", ["producer", "view"])
def test_one_that_waits_for_its_namesake_leaves_on_sigterm(
    queue: Queue, before: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It has not joined, and is gone, as from its block."""
    monkeypatch.setattr(queue.handle.ops, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        joins(queue, kind)
    assert ended.value.code == 143
    assert len(queue.stream().members()) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_handler_of_before_is_run_there_too(queue: Queue, before: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it lets the process go on, the wait ends all the same: there is no block yet that could be left."""
    called: list[int] = []

    def mine(number: int, frame: object) -> None:
        called.append(number)

    signal.signal(signal.SIGTERM, mine)
    monkeypatch.setattr(queue.handle.ops, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        joins(queue, "producer")
    assert called == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_join_that_is_refused_leaves_the_handler_as_it_was(
    queue: Queue, before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnerRecord, "liveness", lambda record: "alive")
    with pytest.raises(QueueConfigError):
        joins(queue, "producer")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("end", ["close", "withdraw", "vanish"])
def test_a_member_without_a_block_has_the_handler_until_it_leaves(queue: Queue, before: Any, end: str) -> None:
    member = queue.producer("another", on_sigterm="withdraw")
    assert signal.getsignal(signal.SIGTERM) is not before
    getattr(member, end)()
    assert signal.getsignal(signal.SIGTERM) is before
