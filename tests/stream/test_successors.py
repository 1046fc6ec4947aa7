"""A member that takes a place with proof takes the leases away, too, that the process before it had."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, TrainerView
from fsqueue.operate.check import check_queue
from tests.support import Queue, refs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=3600).close()
    return tmp_path / "q"


@pytest.fixture
def former(path: Path) -> Iterator[Queue]:
    """The process before: it lives, as far as anybody here can tell."""
    with FileSampleRefQueue(path, durable=False) as it:
        yield it


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    with FileSampleRefQueue(path, durable=False) as it:
        yield it
        assert check_queue(path) == []


def history(path: Path, sample_id: str, state: str = "pending") -> list[str]:
    kept = json.loads((path / state / f"{sample_id}.json").read_text())["_fsqueue"]
    return [event["event"] for event in kept["history"]]


def test_leases_come_back_with_the_successor(former: Queue, queue: Queue, path: Path) -> None:
    """As after a death: a delivery is counted, and no attempt."""
    former.put(refs("s0", "s1", "s2"))
    former.consumer("trainer", attempt=0)
    former.get(2)
    with queue.consumer("trainer", attempt=1):
        assert queue.counts() == (3, 0, 0, 0)
        kept = json.loads((path / "pending" / "s0.json").read_text())["_fsqueue"]
        assert (kept["expiries"], kept.get("attempts", 0)) == (1, 0)
        assert history(path, "s0") == ["replaced"]
        assert sorted(each.sample_id for each in queue.get(3)) == ["s0", "s1", "s2"]


@pytest.mark.parametrize("end", ["ack", "fail", "release", "renew"])
@pytest.mark.parametrize("leased_again", [False, True])
def test_the_process_before_can_end_nothing_any_more(
    former: Queue, queue: Queue, path: Path, end: str, leased_again: bool
) -> None:
    """What it trained since then is in no state that goes on; so its ack is lost, also while the ref is pending."""
    former.put(refs("s0"))
    former.consumer("trainer", attempt=0)
    held = former.get(1)
    with queue.consumer("trainer", attempt=1):
        again = queue.get(1) if leased_again else []
        settle: Callable[[], list[str]] = {
            "ack": lambda: former.ack(held, step=7),
            "fail": lambda: former.fail(held, "NaN", retryable=False),
            "release": lambda: former.release(held),
            "renew": lambda: former.renew(held),
        }[end]
        assert settle() == ["s0"]
        assert queue.counts() == ((0, 1, 0, 0) if leased_again else (1, 0, 0, 0))
        again = again or queue.get(1)
        assert queue.ack(again, step=1) == []
    assert os.listdir(path / "done") == ["s0@1.json"]


@pytest.mark.parametrize("attempt", [None, 0])
def test_nothing_comes_back_without_proof(former: Queue, queue: Queue, attempt: int | None) -> None:
    """A namesake of the same attempt, or of none, proves nothing: neither does one that has left."""
    former.put(refs("s0", "s1"))
    member = former.consumer("trainer", attempt=attempt)
    held = former.get(2)
    member.close()
    with queue.consumer("trainer", attempt=attempt):
        assert queue.counts().leased == 2
        assert former.ack(held) == []


def test_whoever_takes_its_own_place_keeps_what_it_leases(queue: Queue) -> None:
    queue.put(refs("s0"))
    queue.consumer("trainer", attempt=0)
    held = queue.get(1)
    with queue.consumer("trainer", attempt=1):
        assert queue.ack(held) == []


def test_one_that_kills_every_process_ends_in_failed(former: Queue, path: Path) -> None:
    """The leases that ended so have the bound of all that ended with their process."""
    former.put(refs("s0", "s1"))
    former.consumer("trainer", attempt=0)
    former.get(1)
    with FileSampleRefQueue(path, durable=False, max_deliveries=1) as queue, queue.consumer("trainer", attempt=1):
        assert queue.counts() == (1, 0, 0, 1)
    assert history(path, "s0", "failed") == ["replaced"]


def test_leases_of_ranks_that_a_smaller_group_has_not_come_back(former: Queue, queue: Queue, path: Path) -> None:
    """Two ranks are started again as one: it brings back what both of them had."""
    with FileSampleRefQueue(path, durable=False) as second:
        former.put(refs(*(f"s{number}" for number in range(4))))
        for rank, each in enumerate((former, second)):
            view = TrainerView(each, partition=(rank, 2), batch=1, session="run", attempt=0)
            view._closed.set()
            each.get(2)
        assert queue.counts().leased == 4
        with TrainerView(queue, batch=4, session="run", attempt=1) as one:
            assert queue.counts() == (4, 0, 0, 0)
            assert len(one.get()) == 4


def test_a_successor_that_dies_before_it_has_brought_all_back_leaves_that_to_the_next(
    former: Queue, queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former.put(refs("s0"))
    former.consumer("trainer", attempt=0)
    former.get(1)
    with FileSampleRefQueue(path, durable=False) as cut_short:
        with monkeypatch.context() as broken:
            broken.setattr(cut_short.engine.reclaimer, "_reclaim_all", lambda *given: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                cut_short.consumer("trainer", attempt=1)
        with queue.consumer("trainer", attempt=2):
            assert queue.counts() == (1, 0, 0, 0)
