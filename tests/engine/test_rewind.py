"""`queue.rewind()` where others hold leases: of those who are dead, whose time is up, who live, and who may live."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, LeasesHeldError, SampleRef
from fsqueue.engine.packing import parts
from fsqueue.engine.rewind import rewind
from fsqueue.operate import pack
from tests.support import Child, Queue, assert_clean, content, drain, ids, lease_and_obey, names_in, ref, refs
from tests.support.dying import died


def acked(path: Path, **options: Any) -> Queue:
    """A queue with a to d acked at the steps 1 to 4, and e pending."""
    queue = FileSampleRefQueue(path, durable=False, **options)
    queue.put(refs("a", "b", "c", "d", "e"))
    for step in range(1, 5):
        queue.ack(queue.get(1), step=step)
    return queue


def acked_at(queue: Queue, step: int, *found: SampleRef) -> None:
    queue.put(found)
    queue.ack(queue.get(len(found)), step=step)


def test_the_leases_of_a_killed_process_of_this_host_are_taken_back_at_once(path: Path) -> None:
    with acked(path) as queue:
        with Child(lease_and_obey, path, 1, {"durable": False}) as child:
            child.receive()
            child.kill()
        assert queue.rewind(after_step=2) == ["c", "d"]
        assert queue.counts() == (3, 0, 2, 0)
        assert content(path / "pending" / "e.json")["_fsqueue"]["expiries"] == 1
    assert_clean(path)


def test_a_lease_whose_time_is_up_is_taken_back_though_its_process_cannot_be_asked_for(path: Path) -> None:
    with acked(path, lease_timeout_s=60) as queue, FileSampleRefQueue(path, durable=False) as other:
        other.get(1)
        (path / "owners" / f"{other.owner}.json").unlink()
        with pytest.raises(LeasesHeldError):
            queue.rewind(after_step=2)
        (lease,) = (path / "leased").iterdir()
        os.utime(lease, (1, 1))
        with FileSampleRefQueue(path, durable=False) as later:
            assert later.rewind(after_step=2) == ["c", "d"]
            assert later.in_flight() == 0


def test_the_refusal_says_who_lives_and_of_whom_that_is_not_known(path: Path) -> None:
    with acked(path) as queue, FileSampleRefQueue(path, durable=False, owner="far") as other:
        queue.put(refs("f"))
        other.get(1)
        (path / "owners" / f"{other.owner}.json").unlink()
        with Child(lease_and_obey, path, 1, {"durable": False}) as child:
            owner, _ = child.receive()
            with pytest.raises(LeasesHeldError) as refused:
                queue.rewind(after_step=2)
        assert refused.value.alive == [owner] and set(refused.value.owners) == {owner, other.owner}
        assert f"{owner} (alive: " in str(refused.value) and f"{other.owner} (not known to be dead" in str(
            refused.value
        )
        assert len(names_in(path, "done")) == 4 and len(names_in(path, "leased")) == 2


def test_a_rewind_that_was_killed_at_any_file_operation_is_completed_by_calling_it_again(tmp_path: Path) -> None:
    for number in range(400):
        path = tmp_path / f"q{number}"
        acked(path).close()

        def rewind(path: Path) -> None:
            with FileSampleRefQueue(path, durable=False) as queue:
                queue.rewind(after_step=2)

        went_on = died(rewind, path, number)
        with FileSampleRefQueue(path, durable=False) as queue:
            queue.rewind(after_step=2)
            assert sorted(drain(queue)) == ["c", "d", "e"], number
        assert names_in(path, "done")[:2] == ["a@1.json", "b@2.json"]
        if not went_on:
            break
    else:
        pytest.fail("it never came to its end")


@pytest.mark.parametrize("packed", ["none", "some", "all"])
def test_more_than_one_part_holds_come_again_in_one_order(
    path: Path, monkeypatch: pytest.MonkeyPatch, packed: str
) -> None:
    """Part by part by step, each ref once, as it was put last, and at its last step's place; live ones stay."""
    monkeypatch.setattr(parts, "PART_REFS", 2)
    with FileSampleRefQueue(path, durable=False) as queue:
        acked_at(queue, 1, *refs("first", "a", "i d"))
        acked_at(queue, 2, *refs("b", "c", "d"))
        acked_at(queue, 3, *refs("e", "live"))
        if packed == "some":
            pack(path, 0)
        acked_at(queue, 4, ref("a", num_tokens=7), *refs("f"))
        acked_at(queue, 5, *refs("g", "h"))
        if packed == "all":
            pack(path, 0)
        queue.put(refs("live"))
        queue.get(1)  # so that it stays so
        acked_at(queue, 6, *refs("later"))
        (path / "done" / "later@6.json").rename(path / "done" / f"later@{'6'.zfill(30)}.json")
        seen: list[tuple[int, int | None]] = []
        told: list[str] = []
        handle, reclaimer = queue.handle, queue.engine.reclaimer
        returned = rewind(handle, reclaimer, 0, True, lambda done, total: seen.append((done, total)), told.append)
        assert returned == ["first", "i d", "b", "c", "d", "e", "a", "f", "g", "h", "later"] == told
        found = queue.get(99)
        assert ids(found) == returned and found[6].num_tokens == 7
        assert seen[-1][0] == seen[-1][1]
    assert_clean(path)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_trained_again_meanwhile_does_not_come_a_second_time(path: Path, packed: bool) -> None:
    """A trainer that goes on from the checkpoint acks at the same steps, between the two looks of a rewind."""
    with FileSampleRefQueue(path, durable=False) as queue, FileSampleRefQueue(path, durable=False) as trainer:
        acked_at(queue, 1, *refs("a", "b"))
        if packed:
            pack(path, 0)
        again = iter([1])

        def train(done: int, total: int | None) -> None:
            for step in again:
                trainer.ack(trainer.get(2), step=step)

        assert rewind(queue.handle, queue.engine.reclaimer, 0, True, train) == ["a", "b"]
        assert queue.depth() == 0
    assert_clean(path)


def test_force_asks_nobody_and_takes_nothing_back(path: Path) -> None:
    with acked(path) as queue:
        with Child(lease_and_obey, path, 1, {"durable": False}) as child:
            child.receive()
            child.kill()
        assert queue.rewind(after_step=3, force=True) == ["d"]
        assert queue.in_flight() == 1
