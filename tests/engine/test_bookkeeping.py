"""Bookkeeping in a ref's file: attempts, history, reasons, and the price of a torn update."""

from __future__ import annotations

import os
import signal
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidRefError, SampleRef, UnreadableRefWarning
from fsqueue.disk import fileops
from fsqueue.format.codec import Codec
from fsqueue.operate.requeue import requeue
from tests.support import (
    Child,
    FakeClock,
    Tap,
    assert_clean,
    content,
    holders_in,
    ids,
    names_in,
    open_tapped,
    ref,
    refs,
    two_handles,
    wait_until,
)


def test_history_of_an_expiry(path: Path) -> None:
    """An expired lease is written down: event, time, whose it was; it is counted, and not as an attempt."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("a"))
    a.get(1)
    clock.now = 2_000.0
    b.reclaim()
    kept = content(path / "pending" / "a.json")["_fsqueue"]
    assert (kept["expiries"], "attempts" in kept) == (1, False)
    assert [(e["event"], e["at"], e["owner"]) for e in kept["history"]] == [("expired", 2_000.0, f"{a.owner}+1")]
    assert b.get(1) == refs("a")


def test_dead_letter_after_max_attempts(path: Path) -> None:
    """Retryable failures count whatever lease expired between them; at last the ref goes to failed/ with a reason."""
    clock = FakeClock()
    a, b = two_handles(path, clock, max_attempts=2)
    a.put(refs("a"))
    a.fail(a.get(1), "out of memory", retryable=True)
    a.get(1)
    clock.now += 61.0
    a.fail(b.get(1), "lost", retryable=True)
    b.fail(refs("a"), "out of memory", retryable=True)
    assert tuple(b.counts()) == (0, 0, 0, 1)
    kept = content(path / "failed" / "a.json")["_fsqueue"]
    assert (
        (kept["attempts"], kept["expiries"]) == (2, 1)
        and "2 attempts" in kept["reason"]
        and "out of memory" in kept["reason"]
    )
    assert [event["event"] for event in kept["history"]] == ["failed", "expired", "failed"]
    assert b.get(1) == []


def test_history_is_bounded(path: Path) -> None:
    """A ref that fails for ever keeps a bounded history, the true number of attempts, and its fields."""
    queue = FileSampleRefQueue(path, durable=False)
    queue.put(refs("a"))
    for number in range(40):
        queue.fail(queue.get(1, 1.0), f"failure {number}", retryable=True)
    kept = content(path / "pending" / "a.json")["_fsqueue"]
    assert kept["attempts"] == 40 and 0 < len(kept["history"]) < 40
    assert kept["history"][-1]["reason"] == "failure 39"
    assert queue.get(1) == refs("a")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("rest", ["nothing", "NULs", "bad bytes"])
def test_torn_bookkeeping_costs_history_not_the_ref(path: Path, keep: float, rest: str) -> None:
    """A file whose bookkeeping was cut short still decodes, is delivered, and takes new bookkeeping."""
    queue = FileSampleRefQueue(path)
    queue.put(refs("s"))
    queue.fail(queue.get(1), "first", retryable=True)
    file = path / "pending" / "s.json"
    data = file.read_bytes()
    mark = data.index(b'\n,"_fsqueue"')
    cut = mark + 1 + int((len(data) - mark - 1) * keep)
    tail = {"nothing": b"", "NULs": b"\0", "bad bytes": b"\xff"}[rest]
    file.write_bytes(data[:cut] + tail * (len(data) - cut))
    leased = queue.get(1)
    assert leased == refs("s")
    queue.fail(leased, "second", retryable=True)
    assert content(file)["_fsqueue"]["history"][-1]["reason"] == "second"
    assert queue.get(1, 1.0) == refs("s")


def die_between_write_and_truncation(pipe: Connection, path: Path) -> None:
    tap = Tap()
    queue = open_tapped(tap, path)
    leased = queue.get(1)

    def die(name: str, *_: Any) -> None:
        if name == "ftruncate":
            os.kill(os.getpid(), signal.SIGKILL)

    tap.before = die
    queue.fail(leased, "short", retryable=True)


def test_shrinking_bookkeeping_and_a_kill(path: Path) -> None:
    """A kill between the write of shorter bookkeeping and the truncation leaves a ref that is delivered again."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("s"))
        queue.fail(queue.get(1), "a long story " * 400, retryable=True)
        for _ in range(31):
            queue.fail(queue.get(1, 1.0), "short", retryable=True)
        with Child(die_between_write_and_truncation, path) as child:
            assert child.join() == -signal.SIGKILL
        wait_until(lambda: queue.get(1) == refs("s") or queue.counts().failed > 0, "the ref")
        assert names_in(path, "failed") == []
        queue.ack(refs("s"))
    assert_clean(path)


def test_late_bookkeeping_hits_no_other_owner(path: Path) -> None:
    """A fail that is stopped in the middle for longer than its lease takes nothing away from the new owner."""
    clock, tap = FakeClock(), Tap()
    a = open_tapped(tap, path, lease_timeout_s=60.0, clock=clock)
    b = FileSampleRefQueue(path, clock=clock)
    a.put(refs("s"))
    leased = a.get(1)
    taken: list[str] = []

    def overtaken(name: str, *_: Any) -> None:
        if name == "pwrite" and not taken:
            clock.now += 61.0
            taken.extend(ids(b.get(1)))

    tap.before = overtaken
    assert a.fail(leased, "slow", retryable=True) == ["s"]
    assert taken == ["s"]
    assert holders_in(path) == [f"s@{b.owner}"]
    assert names_in(path, "pending") == []
    assert b.ack(refs("s")) == []


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ref may have 4 kB, its file 8 kB."""
    monkeypatch.setattr(fileops, "_CHUNK", 1 << 10)
    monkeypatch.setattr(fileops, "REF_LIMIT_BYTES", 1 << 12)
    monkeypatch.setattr(fileops, "FILE_LIMIT_BYTES", 1 << 13)


def long_ref(size: int) -> SampleRef:
    """A ref whose file has this size."""
    missing = size - len(Codec(SampleRef).encode(ref("big", metadata={"x": ""})))
    return ref("big", metadata={"x": "y" * missing})


@pytest.mark.usefixtures("short_files")
def test_history_never_makes_a_ref_too_long_to_read(path: Path) -> None:
    """A ref as long as put takes it is failed and delivered until it has no room for history, and kept then."""
    big = long_ref(fileops.REF_LIMIT_BYTES)
    with FileSampleRefQueue(path, durable=False) as queue:
        with pytest.raises(InvalidRefError, match="4097 bytes encoded, at most 4096"):
            queue.put([long_ref(fileops.REF_LIMIT_BYTES + 1)])
        queue.put([big])
        delivered = 0
        while got := queue.get(1):
            assert got == [big]
            delivered += 1
            queue.fail(got, "x" * 1_000, retryable=True)
        assert delivered > 3
        file = path / "failed" / "big.json"
        assert file.stat().st_size <= fileops.FILE_LIMIT_BYTES
        assert file.read_bytes().startswith(Codec(SampleRef).encode(big)[:-2])
        assert [outcome.moved for outcome in requeue(str(path), ["big"])] == [True]
        assert queue.get(1, 1.0) == [big]
        assert queue.ack([big]) == []


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize("start", [b'{"sample_id":"hand","blob":"', b"no ref "], ids=["a ref", "no ref"])
@pytest.mark.parametrize("size", [5_000, 8_000, 9_000])
def test_bytes_that_were_not_read_stay(path: Path, start: bytes, size: int) -> None:
    """A file that is too long, put by hand, is buried as it is; one that just can be read keeps its bytes too."""
    data = start.ljust(size, b"\xff")[:-2] + b'"}'
    with FileSampleRefQueue(path, durable=False) as queue, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableRefWarning)
        (path / "pending" / "hand.json").write_bytes(data)
        for _ in range(4):
            assert queue.get(1, 0.05) == []
        assert tuple(queue.counts()) == (0, 0, 0, 1)
    found = (path / "failed" / "hand.json").read_bytes()
    assert found.startswith(data[:-1]) or content(path / "failed" / "hand.json")["_fsqueue"]["raw"].count("xff") > 1_000
    if size > fileops.FILE_LIMIT_BYTES:
        assert found == data
