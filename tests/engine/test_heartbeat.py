"""The heartbeat threads: one a mount, none of them mortal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import FileOps
from fsqueue.engine import heartbeat
from fsqueue.engine.awake import Awake
from fsqueue.engine.heartbeat import Heartbeats
from tests.support import GUARD_S, refs, wait_until

BEAT_S = 0.01


class Patient:
    """Something with a heart; what it does at a beat is the test's."""

    def __init__(self) -> None:
        self.beats = 0
        self.error: BaseException | None = None
        self.hang: threading.Event | None = None

    def beat(self) -> None:
        self.beats += 1
        if self.hang is not None:
            assert self.hang.wait(GUARD_S)
        if self.error is not None:
            raise self.error

    def beats_on(self) -> None:
        before = self.beats
        wait_until(lambda: self.beats > before + 1, "two more beats")


@pytest.fixture
def hearts() -> Iterator[Heartbeats]:
    it = Heartbeats()
    yield it
    for key in range(1, it.new_key()):
        it.unregister(key)
    wait_until(lambda: not it._threads, "the threads' end")


def join(hearts: Heartbeats, mount: int) -> Patient:
    patient = Patient()
    hearts.register(hearts.new_key(), patient.beat, BEAT_S, Awake(FileOps(), 1.0), mount)
    return patient


def test_a_hung_mount_stops_its_own_hearts_only(hearts: Heartbeats) -> None:
    """A beat that does not return keeps no heart on another mount from beating."""
    hung, other = join(hearts, 1), join(hearts, 2)
    hung.hang = threading.Event()
    seen = hung.beats
    wait_until(lambda: hung.beats > seen, "the beat that hangs")
    other.beats_on()
    hung.hang.set()
    hung.beats_on()


@pytest.mark.parametrize("error", [OSError("gone"), KeyError("bug"), SystemExit(), KeyboardInterrupt(), MemoryError()])
def test_no_error_ends_a_heart(hearts: Heartbeats, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next beat comes, for this heart and its neighbours."""
    patient, neighbour = join(hearts, 1), join(hearts, 1)
    patient.error = error
    patient.beats_on()
    neighbour.beats_on()
    patient.error = None
    patient.beats_on()
    assert any(
        "next one is due" in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    )


def test_an_error_in_the_thread_itself_does_not_end_it(hearts: Heartbeats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one in telling the time."""
    monkeypatch.setattr(heartbeat, "_AFTER_AN_ERROR_S", BEAT_S)
    failed, ops = threading.Event(), FileOps()
    monotonic = ops.monotonic

    def fail_once() -> float:
        if threading.current_thread().name == "fsqueue-heartbeat" and not failed.is_set():
            failed.set()
            raise MemoryError
        return monotonic()

    ops.monotonic = fail_once
    patient = Patient()
    hearts.register(hearts.new_key(), patient.beat, BEAT_S, Awake(ops, 1.0), 1)
    patient.beats_on()
    assert failed.is_set()


def test_a_thread_that_could_not_start_is_started_by_the_next_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process at its limit of threads leases nothing without a heartbeat, and beats once it may."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with FileSampleRefQueue(path, lease_timeout_s=60.0, heartbeat_s=BEAT_S) as queue:
        queue.put(refs("a"))
        monkeypatch.setattr(heartbeat, "heartbeats", Heartbeats())
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            queue.get(1)
        assert queue.in_flight() == 0
        monkeypatch.setattr(threading.Thread, "start", start)
        queue.ack(queue.get(1))
        record = path / "owners" / f"{queue.owner}.json"
        record.unlink()
        wait_until(record.exists, "a beat")
