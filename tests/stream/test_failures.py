"""One process of a stream raises or is killed: every other one stops with an error that names it and its reason."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, MemberFailedError, PartialWindowWarning, QueueIOError, TrainerView
from tests.support import GUARD_S, Child, Tap, open_tapped, ref

SILENCE_S = 6.0  # so that a busy machine is not taken for one that stalls


def produce(pipe: Connection, path: Path, name: str) -> None:
    """Put for ever, as fast as the watermark allows; raise when told to."""
    try:
        with FileSampleRefQueue(path, durable=False) as queue, queue.producer(name, expected=2, required=True):
            for number in itertools.count():
                queue.put_when_below([ref(f"{name}-{number}")], high=8, low=4)
                if pipe.poll():
                    raise ValueError(pipe.recv())
                if number == 4:
                    pipe.send("at work")
    except MemberFailedError as error:
        pipe.send((error.member, str(error)))


def train(pipe: Connection, path: Path, rank: int) -> None:
    """One of two ranks; raise when told to."""
    warnings.simplefilter("ignore", PartialWindowWarning)
    try:
        with (
            FileSampleRefQueue(path, durable=False) as queue,
            TrainerView(queue, partition=(rank, 2), batch=2, required=True) as view,
        ):
            for step in itertools.count(1):
                view.ack(view.get(), step=step)
                if pipe.poll():
                    raise ValueError(pipe.recv())
                if step == 4:
                    pipe.send("at work")
    except MemberFailedError as error:
        pipe.send((error.member, str(error)))


def consume(pipe: Connection, path: Path) -> None:
    """Be a consumer until killed."""
    with FileSampleRefQueue(path, durable=False) as queue, queue.consumer("trainer-0", required=True):
        pipe.send("joined")
        pipe.recv()


def produce_when_told(pipe: Connection, path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue, queue.producer("rollout-0", required=True):
        pipe.send("joined")
        for number in itertools.count():
            told = pipe.recv()
            queue.put_when_below([ref(f"s{number}")], high=100)
            pipe.send(told)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[dict[str, Child]]:
    """Two producers and two ranks, all of them at work."""
    with FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=60) as queue:
        queue.configure_stream(silence_s=SILENCE_S)
    with ExitStack() as stack:
        started = {f"trainer-{k}": stack.enter_context(Child(train, tmp_path / "q", k)) for k in range(2)}
        for name in ("rollout-0", "rollout-1"):
            started[name] = stack.enter_context(Child(produce, tmp_path / "q", name))
        for child in started.values():
            assert child.receive() == "at work"
        yield started


@pytest.mark.parametrize("how", ["raises", "is killed"])
@pytest.mark.parametrize("culprit", ["rollout-0", "trainer-1"])
def test_every_other_process_stops_and_names_the_culprit(crew: dict[str, Child], culprit: str, how: str) -> None:
    """Directly, or through the one that it stopped: the text holds the culprit's name and its own words."""
    began = time.monotonic()
    if how == "raises":
        crew[culprit].send("out of memory")
        reason = "ValueError: out of memory"
    else:
        crew[culprit].signal(signal.SIGKILL)
        reason = "gone or silent"
    for name, child in crew.items():
        if name != culprit:
            member, text = child.receive()
            assert repr(culprit) in text and reason in text, f"{name}: {text}"
            assert repr(name) not in member
            assert child.join() == 0
    assert time.monotonic() - began < GUARD_S


def test_a_producer_below_its_watermark_learns_of_a_failed_consumer_by_its_next_call(tmp_path: Path) -> None:
    """And puts nothing, however often it tries, until that consumer was started again."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        for number in range(3):
            queue.put_when_below([ref(f"s{number}")], high=100)
        with pytest.raises(ValueError), queue.consumer("trainer-0"):
            raise ValueError("out of memory")
        for _ in range(2):
            with pytest.raises(MemberFailedError, match=r"trainer-0.*ValueError: out of memory"):
                queue.put_when_below([ref("late")], high=100)
        assert queue.depth() == 3
        with queue.consumer("trainer-0"):
            queue.put_when_below([ref("late")], high=100)
        assert queue.depth() == 4


def test_watching_the_consumers_costs_one_look_while_nobody_comes_or_goes(tmp_path: Path) -> None:
    """A consumer that falls silent leaves the directory as it is; it is looked for as often as hearts beat."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    with open_tapped(tap, tmp_path / "q", durable=False) as queue, Child(consume, tmp_path / "q") as child:
        child.receive()
        for _ in range(3):
            queue.stream().watch("consumer")
            now[0] += 1.1
        tap.counts.clear()
        queue.stream().watch("consumer")
        assert tap.counts == {"open": 1, "fstat": 1, "close": 1}
        child.kill()
        (file,) = (tmp_path / "q" / "stream").iterdir()
        past = file.stat().st_mtime - 31.0
        os.utime(file, (past, past))
        now[0] += 32.0
        with pytest.raises(MemberFailedError, match="gone or silent"):
            queue.put_when_below([ref("late")], high=100)


def test_whoever_is_killed_soon_after_another_came_is_missed(tmp_path: Path) -> None:
    """A put shows those who have joined since the last heartbeat that the producer was alive in their time."""
    tap, shift_s = Tap(), [0.0]
    tap.ops.monotonic = lambda: time.monotonic() + shift_s[0]
    with Child(produce_when_told, tmp_path / "q") as child:
        assert child.receive() == "joined"
        with open_tapped(tap, tmp_path / "q", durable=False) as queue, queue.consumer("trainer-0"):
            child.send("put")
            assert child.receive() == "put"
            child.kill()
            (file,) = (tmp_path / "q" / "stream").glob("producer@*")
            past = file.stat().st_mtime - 31.0
            os.utime(file, (past, past))
            shift_s[0] = 31.0
            with pytest.raises(MemberFailedError, match="gone or silent"):
                queue.stream().raise_failures("producer")


def test_watching_reads_no_member_because_ranks_agree_on_windows(tmp_path: Path) -> None:
    """A rank's file in stream/ at every step costs the producers a listing each, whoever takes part."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    with open_tapped(tap, tmp_path / "q", durable=False) as queue, Child(consume, tmp_path / "q") as child:
        child.receive()
        queue.stream().watch("consumer")
        tap.counts.clear()
        for number in range(3):
            (tmp_path / "q" / "stream" / f"post-{number}").touch()
            queue.stream().watch("consumer")
        assert tap.counts["listdir"] == 3
        assert tap.counts["read"] == tap.counts["utime"] == 0, tap.counts
        child.kill()


@pytest.mark.parametrize("role", ["producer", "consumer"])
@pytest.mark.parametrize("first", [QueueIOError, SystemExit, KeyboardInterrupt])
def test_on_a_disk_that_has_become_read_only_the_first_error_is_raised_and_the_second_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str, first: type[BaseException]
) -> None:
    """What ended the block tells what is wrong; that the others could not be told follows from it."""
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "q", durable=False)

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in ("rename", "unlink", "mkdir", "utime") or (name == "open" and args[1] & os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(first) as caught, getattr(queue, role)("m"):
        tap.before = refuse
        if first is QueueIOError:
            queue.put([ref("a")])
        raise first
    tap.before = None
    if first is QueueIOError:
        assert str(caught.value).startswith("putting refs into ")
    told = [record.getMessage() for record in caplog.records if "could not say how it ended" in record.getMessage()]
    assert len(told) == 1 and f"{role} 'm'" in told[0] and "EROFS" in told[0]
    if sys.version_info >= (3, 11):
        assert any("could not say how it ended" in note for note in caught.value.__notes__)


def test_a_block_that_ends_well_on_such_a_disk_raises_what_closing_says(tmp_path: Path) -> None:
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "q", durable=False)

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(QueueIOError, match="leaving"), queue.producer("m"):
        tap.before = refuse
    tap.before = None
