"""What a handle that waits on a shared mount asks about the members of its stream, and what it hears of them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsqueue import FileSampleRefQueue, MemberMissingError, SampleRef, TrainerView
from fsqueue.engine.owners import OwnerRecord
from fsqueue.stream.members import Record, Role, member_file
from tests.support import refs
from tests.support.shared import Shared

LOOK_S = 15.0


class Elsewhere:
    """A member on another host, which beats in the time of a test.

    Attributes:
        ends_s: when its last beat is, seconds after the wait began.
    """

    def __init__(self, shared: Shared, role: Role, name: str, ends_s: float = 1e9, **facts: Any) -> None:
        self._shared = shared
        self.ends_s = ends_s
        process = OwnerRecord(f"{name}.7.abcdef", "other", "another boot", None, 7, None, 0.0, 5.0)
        record = Record(name=name, process=process, **facts)
        self.file = Path(shared.queue.path, "stream", member_file(role, record, "open"))
        self.file.write_bytes(msgspec.json.encode(record))
        self._beat()

    def _beat(self) -> None:
        waited_s = self._shared.now - self._shared.began
        if waited_s <= self.ends_s and self.file.exists():
            os.utime(self.file, (BASE + waited_s, BASE + waited_s))
            self._shared.after(waited_s + 5.0, self._beat)


BASE = time.time()


@pytest.fixture
def shared(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """A handle whose filesystem's clock goes as its own."""
    found = Shared(nowhere, "nfs4", lease_timeout_s=60.0)
    with FileSampleRefQueue[SampleRef](nowhere, durable=False) as other:
        other.put(refs("first"))
    found.queue.ack(found.queue.get(1))
    found.queue.stream()
    real = found.queue.handle.clock.now

    def now() -> float:
        real()
        return BASE + found.now - found.began

    monkeypatch.setattr(found.queue.handle.clock, "now", now)
    return found


def test_a_view_beside_five_members_of_other_hosts_makes_two_operations_a_second(shared: Shared) -> None:
    """And hears of no one that is missing, since they beat."""
    stop = threading.Event()
    for number in range(2):
        Elsewhere(shared, "producer", f"p{number}", required=True)
    for number in range(3):
        Elsewhere(shared, "consumer", f"c{number}", required=True)
    with TrainerView(shared.queue, batch=1) as view:
        shared.made.clear()
        shared.after(250.0, stop.set)
        assert view.get(stop_event=stop) == []
    assert 0 < shared.a_second(250.0) < 2, shared.a_second(250.0)
    shared.queue.close()


def test_one_that_falls_silent_is_missed_in_time(shared: Shared) -> None:
    """Its last beat, within five seconds of its end, the policy's silence, and a look."""
    gone = Elsewhere(shared, "producer", "p", 100.0, required=True)
    with TrainerView(shared.queue, batch=1) as view:
        with pytest.raises(MemberMissingError, match="'p'"):
            view.get()
        heard_s = shared.now - shared.began
    assert gone.ends_s + 30.0 - 6.0 < heard_s < gone.ends_s + 30.0 + LOOK_S + 3 * shared.queue.handle.poll_interval_s
    shared.queue.close()


def test_a_policy_that_changes_is_heard_of(shared: Shared) -> None:
    """A shorter silence counts for members that were there before, too."""
    Elsewhere(shared, "producer", "p", 100.0, required=True)
    shared.queue.configure_stream(silence_s=600.0)
    shared.after(200.0, lambda: (Path(shared.queue.path, "stream", "policy.json")).write_text('{"silence_s": 10.0}'))
    with TrainerView(shared.queue, batch=1) as view:
        with pytest.raises(MemberMissingError, match="'p'"):
            view.get()
        heard_s = shared.now - shared.began
    assert 200.0 < heard_s < 200.0 + 30.0 + 2 * LOOK_S
    shared.queue.close()


def test_one_that_comes_again_under_the_same_name_is_heard_of(shared: Shared) -> None:
    """Nobody is missing of those who say, by now, that there are fewer of them."""
    stop = threading.Event()
    shared.queue.configure_stream(await_s=60.0)
    early = Elsewhere(shared, "producer", "p", expected=2)

    def come_again() -> None:
        early.file.unlink()
        Elsewhere(shared, "producer", "p", expected=1)

    shared.after(20.0, come_again)
    shared.after(200.0, stop.set)
    with TrainerView(shared.queue, batch=1) as view:
        assert view.get(stop_event=stop) == []
    shared.queue.close()
