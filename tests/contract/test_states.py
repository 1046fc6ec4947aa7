"""Where refs are, by their ids, as a producer that is started again asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidArgumentError
from fsqueue.disk.fileops import FileOps
from fsqueue.engine import states
from tests.support import refs
from tests.support.implementations import Implementation, make_refs, numbered


@pytest.mark.parametrize("others", [0, 30])
def test_states_are_told_by_id(full_queue: Implementation, others: int) -> None:
    """In the order that was asked for, also for ids that are no file names; those that were never put are left out."""
    queue = full_queue.open()
    queue.put(make_refs("done", "failed", "a/leased", "x" * 1000, "last"))
    taken = queue.get(3)
    queue.ack(taken[:1], step=3)
    queue.fail(taken[1:2], "NaN", retryable=False)
    queue.put(numbered(others))
    asked = ["last", "x" * 1000, "never", "a/leased", "failed", "done"]
    expected = {"last": "pending", "x" * 1000: "pending", "a/leased": "leased", "failed": "failed", "done": "done"}
    found = queue.states([*asked, *(f"s{number:03d}" for number in range(40))])
    assert list(found)[:5] == [each for each in asked if each != "never"]
    assert found == {**expected, **{f"s{number:03d}": "pending" for number in range(others)}}
    assert queue.states([]) == {} and queue.states(["never"]) == {}


def test_of_several_lives_the_live_one_counts(full_queue: Implementation) -> None:
    queue = full_queue.open()
    for _ in range(2):
        queue.put(make_refs("s"))
        held = queue.get(1)
        assert queue.states(["s"]) == {"s": "leased"}
        queue.ack(held)
    assert queue.states(["s"]) == {"s": "done"}


@pytest.mark.parametrize("wrong", ["s0", [b"s0"], 3])
def test_states_of_what_are_no_ids(full_queue: Implementation, wrong: Any) -> None:
    queue = full_queue.open()
    with pytest.raises(InvalidArgumentError, match="states"):
        queue.states(wrong)


def test_packed_refs_are_done(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(refs("s0", "s1", "s2"))
        queue.ack(queue.get(2), step=1)
        queue.pack(older_than_s=0.0)
        assert queue.states(["s1"]) == {"s1": "done"}
        assert queue.states(["s2", "s1", "s0", "s3"]) == {"s2": "pending", "s1": "done", "s0": "done"}


def test_a_letter_under_a_substitute_name_is_found(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(refs("s0"))
        queue.fail(queue.get(1), "NaN", retryable=False)
        (letter := tmp_path / "q" / "failed" / "s0.json").rename(letter.with_name("s0.0a1b2c.json"))
        assert queue.states(["s0"]) == {"s0": "failed"}


def test_a_ref_that_moves_back_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease ends between the look into pending/ and the one into leased/."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(refs("s0"))
        held = queue.get(1)
        look = dict(states._LOOK_INTO)

        def leased(*given: Any) -> Any:
            queue.release(held)
            return look["leased"](*given)

        monkeypatch.setitem(states._LOOK_INTO, "leased", leased)
        assert queue.states(["s0"]) == {"s0": "pending"}


def test_pending_refs_cost_a_stat_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(refs("s0", "s1"))
        monkeypatch.setattr(FileOps, "listdir", lambda *given: pytest.fail("it lists a directory"))
        assert queue.states(["s1", "s0"]) == {"s1": "pending", "s0": "pending"}
