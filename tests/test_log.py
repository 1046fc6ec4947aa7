"""What an operator reads in the log: with ids, at the level it deserves, and not a line a ref."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, log
from fsqueue.operate.check import repair
from tests.support import FakeClock, Queue, numbered, refs, two_handles


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """All that is logged, from nothing on."""
    monkeypatch.setattr(log, "_next", {})
    caplog.set_level(logging.INFO, "fsqueue")
    return caplog


def lines(told: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in told.records if record.levelno == level]


def test_leases_that_were_taken_back_and_lost(path: Path, told: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    queue, other = two_handles(path, clock, owner="ann")
    queue.put(numbered(7))
    batch = queue.get(7)
    clock.advance(100.0)
    assert other.reclaim() == 7
    (line,) = lines(told, logging.INFO)
    assert line.startswith(f"queue {path}: took back 7 leases of ann.") and "the lease timed out: s00000" in line
    assert line.endswith(" and 2 more")
    other.get(7)
    queue.ack(batch)
    (line,) = lines(told, logging.WARNING)
    assert "the leases of s00000, s00001" in line and "and 2 more were lost" in line


def test_dead_letters(path: Path, queue: Queue, told: pytest.LogCaptureFixture) -> None:
    """By failure, and after the last attempt; of many in a moment one, and then how many there were."""
    queue.put(refs("bad", *(f"n{number}" for number in range(20))))
    queue.fail(queue.get(1), "no features\nTraceback", retryable=False)
    assert lines(told, logging.WARNING) == [f"queue {path}: bad is a dead letter: no features"]
    queue.fail(queue.get(20), "worse", retryable=False)
    assert len(lines(told, logging.WARNING)) == 1
    for kind, (_, left_out) in list(log._next.items()):
        log._next[kind] = 0.0, left_out
    with FileSampleRefQueue(path, max_attempts=1, durable=False) as other:
        other.put(refs("last"))
        other.fail(other.get(1), "again", retryable=True)
    assert lines(told, logging.WARNING)[1].startswith(f"queue {path}: last is a dead letter: 1 attempts")
    assert lines(told, logging.WARNING)[1].endswith(" (20 more lines like this were left out)")


def test_members_and_repairs(path: Path, queue: Queue, told: pytest.LogCaptureFixture) -> None:
    with queue.producer("p0"):
        pass
    with pytest.raises(ZeroDivisionError), queue.consumer("c0"):
        raise ZeroDivisionError("no data")
    (path / "pending" / "bad.json").write_bytes(b"{")
    repair(path)
    found = lines(told, logging.INFO)
    assert [line.split(": ", 1)[1] for line in found[:3]] == [
        "producer p0 joined",
        "producer p0 closed",
        "consumer c0 joined",
    ]
    assert "consumer c0 failed: ZeroDivisionError: no data" in found[3] and "repair of " in found[4]


def test_nothing_is_logged_of_a_run_that_is_well(path: Path, queue: Queue, told: pytest.LogCaptureFixture) -> None:
    queue.put(numbered(5))
    while batch := queue.get(2):
        queue.ack(batch)
    assert told.records == []


def test_the_library_is_imported_when_there_is_something_to_log() -> None:
    code = "import sys, fsqueue; print('logging' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_a_queue_whose_directory_is_gone_closes_quietly(tmp_path: Path) -> None:
    path = tmp_path / "q"
    queue: Queue = FileSampleRefQueue(path, heartbeat_s=5.0, lease_timeout_s=60.0, durable=False)
    queue.put(refs("a"))
    queue.get(1)
    shutil.rmtree(path)
    queue.close()
