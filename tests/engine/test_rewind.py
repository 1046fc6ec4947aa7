"""`queue.rewind()` where others hold leases: of those who are dead, whose time is up, who live, and who may live."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, LeasesHeldError
from tests.support import Child, Queue, assert_clean, content, drain, lease_and_obey, names_in, refs
from tests.support.dying import died


def acked(path: Path, **options: Any) -> Queue:
    """A queue with a to d acked at the steps 1 to 4, and e pending."""
    queue = FileSampleRefQueue(path, durable=False, **options)
    queue.put(refs("a", "b", "c", "d", "e"))
    for step in range(1, 5):
        queue.ack(queue.get(1), step=step)
    return queue


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


def test_force_asks_nobody_and_takes_nothing_back(path: Path) -> None:
    with acked(path) as queue:
        with Child(lease_and_obey, path, 1, {"durable": False}) as child:
            child.receive()
            child.kill()
        assert queue.rewind(after_step=3, force=True) == ["d"]
        assert queue.in_flight() == 1
