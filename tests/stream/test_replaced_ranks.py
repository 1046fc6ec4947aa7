"""A rank is replaced while it still runs, or was stopped and wakes: the group goes on with its successor, or ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.membership import Membership
from tests.support import Queue

NAMES = ["trainer-0", "trainer-1"]


class Rank:
    """One process of a rank, step by step."""

    def __init__(self, path: Path, rank: int, attempt: int) -> None:
        self.queue: Queue = FileSampleRefQueue(path, durable=False)
        self.member: Membership = self.queue.consumer(NAMES[rank], attempt=attempt)
        self.said = Rendezvous(self.queue.handle, self.queue.stream(), rank, NAMES, "")

    def opens_a_window(self) -> None:
        assert self.said.verdict() == "go"
        self.said.next_window()


class Group:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ranks: list[Rank] = []
        FileSampleRefQueue(path, durable=False).close()
        self.zero, self.one = self.start(0), self.start(1)

    def start(self, rank: int, attempt: int = 0) -> Rank:
        self.ranks.append(Rank(self.path, rank, attempt))
        return self.ranks[-1]

    def all_ready(self, *ranks: Rank, standing: str = "ready") -> None:
        for rank in ranks:
            rank.said.look_for_leader()
            rank.said.post(standing)  # type: ignore[arg-type]

    def close(self) -> None:
        with ExitStack() as stack:
            for rank in self.ranks:
                stack.callback(rank.queue.close)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    it = Group(tmp_path / "q")
    yield it
    it.close()


def test_what_a_replaced_rank_says_late_is_not_taken_for_its_successors(group: Group) -> None:
    """It speaks on a window that its successor has left already, which goes on to the next one."""
    group.all_ready(group.zero, group.one)
    new = group.start(1, attempt=1)
    group.all_ready(group.zero, new)
    group.zero.opens_a_window()
    new.opens_a_window()
    group.all_ready(group.one)
    group.all_ready(group.zero, new)
    assert group.zero.said.verdict() == "go"
    assert new.said.verdict() == "go"


def test_a_rank_goes_on_where_a_verdict_binds_the_process_before_it(group: Group) -> None:
    """Also one that has agreed on a window before; the window after that one is its next."""
    new = group.start(1, attempt=1)
    group.all_ready(group.zero, new)
    group.zero.opens_a_window()
    new.opens_a_window()
    group.all_ready(group.zero, new)
    decided = group.path / "stream" / f"verdict@default.{group.zero.queue.owner}@1.go.json"
    decided.write_text(f'{{"owners":["{group.zero.queue.owner}","{group.one.queue.owner}"]}}')
    assert new.said.verdict() is None
    assert new.said.window == 2


@pytest.mark.parametrize("leaves", [False, True])
def test_the_end_that_binds_the_process_before_it_ends_a_rank(group: Group, leaves: bool) -> None:
    """Rank 0 ends there, and may have left already."""
    group.all_ready(group.zero, group.one, standing="starved")
    new = group.start(1, attempt=1)
    group.all_ready(new)
    decided = group.path / "stream" / f"verdict@default.{group.zero.queue.owner}@0.end.json"
    decided.write_text(f'{{"owners":["{group.zero.queue.owner}","{group.one.queue.owner}"]}}')
    if leaves:
        group.zero.member.close()
        new.said.look_for_leader()
    assert new.said.verdict() == "end"


def test_rank_0_binds_the_one_that_is_there(group: Group) -> None:
    """The one before has said ready, and its successor has not spoken."""
    group.all_ready(group.zero, group.one)
    new = group.start(1, attempt=1)
    group.all_ready(group.one)
    assert group.zero.said.verdict() is None
    group.all_ready(new)
    assert group.zero.said.verdict() == "go"
    assert (group.one.said.verdict(), new.said.verdict()) == (None, "go")


def test_rank_0_waits_for_the_successor_of_one_that_has_said_ready_and_left(group: Group) -> None:
    """A window of which one rank is gone would be trained by the others alone."""
    group.all_ready(group.zero, group.one)
    group.one.member.withdraw()
    assert group.zero.said.verdict() is None


def test_ranks_meet_where_a_replaced_rank_0_has_led_one_of_them(group: Group) -> None:
    """It was stopped between reading the posts and its verdict, which it writes when its successor leads."""
    group.all_ready(group.zero, group.one)
    new = group.start(0, attempt=1)
    group.all_ready(new, group.one)
    new.opens_a_window()
    group.all_ready(new)
    for window in (0, 1):  # the verdicts of one that was stopped for long
        late = group.path / "stream" / f"verdict@default.{group.zero.queue.owner}@{window}.go.json"
        late.write_text(f'{{"owners":["{group.zero.queue.owner}","{group.one.queue.owner}"]}}')
    for _ in range(2):
        group.one.opens_a_window()
    assert group.one.said.window == 2
    group.all_ready(group.one, new)
    assert new.said.verdict() is None
    assert new.said.window == 2
    group.all_ready(new)
    assert (new.said.verdict(), group.one.said.verdict()) == ("go", "go")


def test_the_end_of_a_replaced_rank_0_ends_nobody(group: Group) -> None:
    """Its successor has brought back what it had leased, and goes on."""
    group.all_ready(group.zero, group.one, standing="starved")
    new = group.start(0, attempt=1)
    late = group.path / "stream" / f"verdict@default.{group.zero.queue.owner}@0.end.json"
    late.write_text(f'{{"owners":["{group.zero.queue.owner}","{group.one.queue.owner}"]}}')
    group.all_ready(new, group.one)
    assert group.one.said.verdict() is None
    assert new.said.verdict() == "go"
    assert group.one.said.verdict() == "go"


def test_a_rank_that_was_passed_over_goes_on_at_rank_0s_window(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 shows itself further on, and nothing binds this rank: but not before a second look, a second later."""
    group.all_ready(group.zero, group.one)
    now = [100.0]
    monkeypatch.setattr(group.one.queue.handle.ops, "monotonic", lambda: now[0], raising=False)
    group.zero.said.window = 5
    group.all_ready(group.zero)
    for seconds, window in ((0.0, 0), (0.5, 0), (1.0, 5)):
        now[0] = 100.0 + seconds
        assert group.one.said.verdict() is None
        assert group.one.said.window == window


def test_a_second_view_of_the_same_handles_begins_anew(group: Group) -> None:
    """What the first one has ended does not end the second."""
    group.all_ready(group.zero, group.one, standing="starved")
    assert (group.zero.said.verdict(), group.one.said.verdict()) == ("end", "end")
    for rank, one in enumerate((group.zero, group.one)):
        one.said = Rendezvous(one.queue.handle, one.queue.stream(), rank, NAMES, "")
    group.all_ready(group.one, group.zero)
    assert group.one.said.verdict() is None
    assert (group.zero.said.verdict(), group.one.said.verdict()) == ("go", "go")
