"""A ref that is done and has been put again: to take back its first life is not to make it live twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.operate.requeue import requeue, requeue_failed
from tests.support import Queue, Tap, assert_clean, names_in, ref


def claim(other: Queue) -> None:
    moves = other.handle.moves
    assert moves.stamp_pending("x") and moves.claim_stamped(moves.new_claim("x"))


def give_back(other: Queue) -> None:
    claim = other.handle.held.find("x")
    assert claim is not None and other.handle.moves.give_back(claim)


def rewind(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.rewind(after_step=1, force=True)


def second_life(path: Path, other: Queue, leased: bool) -> None:
    """Ref x is done at step 5, and pending or leased again."""
    other.put([ref("x")])
    other.ack(other.get(1), step=5)
    other.put([ref("x")])
    if leased:
        assert len(other.get(1)) == 1


@pytest.mark.parametrize("change", [claim, give_back])
@pytest.mark.parametrize("command", [lambda path: requeue(str(path), ["x"]), rewind], ids=["requeue", "rewind"])
def test_a_ref_that_changes_hands_meanwhile_does_not_become_live_twice(
    tmp_path: Path, command: Callable[[Path], None], change: Callable[[Queue], None]
) -> None:
    """Before each file operation of the command in turn, another handle claims the ref or gives it back."""
    for at in range(10_000):
        path, tap = tmp_path / str(at), Tap()
        with FileSampleRefQueue(path, durable=False) as other:
            second_life(path, other, leased=change is give_back)
            tap.before = lambda *_, tap=tap, other=other, at=at: (
                change(other) if sum(tap.counts.values()) == at + 1 else None
            )
            with tap.here():
                command(path)
            assert len(names_in(path, "pending") + names_in(path, "leased")) == 1, f"before file operation {at}"
            assert names_in(path, "done") == ["x@5.json"]
        assert_clean(path)
        if sum(tap.counts.values()) <= at:
            return
    raise AssertionError("the command never came to its end")


def test_two_dead_letters_of_one_ref_do_not_replace_each_other(tmp_path: Path) -> None:
    """One becomes a ref again, the other stays and says why."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put([ref("x")])
        queue.fail(queue.get(1), "broken", retryable=False)
    failed = path / "failed"
    (failed / "x.a1b2c3.json").write_bytes((failed / "x.json").read_bytes())
    outcomes = requeue_failed(str(path))
    assert sorted(outcome.moved for outcome in outcomes) == [False, True]
    assert "requeued already" in next(outcome.detail for outcome in outcomes if not outcome.moved)
    assert names_in(path, "pending") == ["x.json"]
    assert len(names_in(path, "failed")) == 1
