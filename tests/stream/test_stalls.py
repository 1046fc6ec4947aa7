"""A stream's members after a stall of everybody: silence is held against nobody before there was time to show up."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from fsqueue import FileSampleRefQueue, MemberFailedError, MemberReplacedError, QueueConfigError
from fsqueue.engine import owners
from fsqueue.stream.membership import Membership
from fsqueue.stream.policy import BEAT_S
from tests.support import Queue, Tap, backdate, open_tapped

pytestmark = pytest.mark.usefixtures("noticing_stalls")
NEEDS_S = 1.5 * BEAT_S + 0.5


class Woken:
    """A handle that wakes from a stall, beside a producer on another host that has been silent for as long."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.wall = 1_000.0
        self.slept: list[float] = []
        tap = Tap()
        tap.ops.monotonic = lambda: self.now
        tap.ops.time = lambda: self.wall
        tap.ops.sleep = self._sleep
        self.while_asleep: Callable[[], object] = lambda: None
        self.queue: Queue = open_tapped(tap, path)
        self.other = FileSampleRefQueue(path)
        described = owners.describe_self
        monkeypatch.setattr(owners, "describe_self", lambda *given: replace(described(*given), host="elsewhere"))
        self.producer: Membership = self.other.producer("rollout-0", required=True)
        monkeypatch.undo()
        (self.file,) = (path / "stream").glob("producer@*")
        backdate(self.file, 40.0)
        self.queue.stream()
        self.pass_time(40.0)
        self.queue.stream().opened_at -= 60.0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pass_time(seconds)
        self.while_asleep()

    def end(self) -> None:
        with suppress(MemberReplacedError):
            self.producer.close()
        self.other.close()
        self.queue.close()


@pytest.fixture
def woken(path: Path, monkeypatch: pytest.MonkeyPatch, noticing_stalls: None) -> Woken:
    with pytest.MonkeyPatch.context() as patch:
        return Woken(path, patch)


def test_a_silent_member_has_time_to_show_up(woken: Woken) -> None:
    """And fails the stream if it does not."""
    stream = woken.queue.stream()
    stream.raise_failures("producer")
    woken.pass_time(NEEDS_S - 0.1)
    stream.raise_failures("producer")
    woken.pass_time(0.2)
    with pytest.raises(MemberFailedError, match="gone or silent"):
        stream.raise_failures("producer")
    woken.end()


def test_a_member_that_shows_up_has_not_failed(woken: Woken) -> None:
    """Its next beat clears it."""
    stream = woken.queue.stream()
    stream.raise_failures("producer")
    os.utime(woken.file)
    woken.pass_time(NEEDS_S + 1.0)
    stream.raise_failures("producer")
    woken.end()


def test_who_joins_gives_a_silent_namesake_time(woken: Woken) -> None:
    """One that shows up meanwhile keeps its name; one that does not is replaced."""
    woken.while_asleep = lambda: os.utime(woken.file)
    with pytest.raises(QueueConfigError, match="has a producer"):
        woken.queue.producer("rollout-0")
    assert len(woken.slept) == 1
    backdate(woken.file, 40.0)
    woken.slept.clear()
    woken.while_asleep = lambda: None
    with woken.queue.producer("rollout-0"):
        assert not woken.file.exists()
    assert NEEDS_S - 1.0 <= sum(woken.slept) <= NEEDS_S + 0.1
    woken.end()
