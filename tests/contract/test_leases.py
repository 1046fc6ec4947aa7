"""The promises of fsqueue's own queues beyond the common contract: fencing, attempts, dead letters, counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from tests.support import FakeClock, ids
from tests.support.implementations import LEASE_S, Implementation, make_ref, make_refs, numbered


def leased_once(queue: Any, count: int = 1) -> list[Any]:
    """Put that many refs and lease them."""
    queue.put(numbered(count))
    leased: list[Any] = queue.get(count)
    assert len(leased) == count
    return leased


def expire(implementation: Implementation) -> None:
    implementation.clock.advance(LEASE_S + 1)


def test_counts(full_queue: Implementation) -> None:
    """counts() tells all four states by name."""
    queue = full_queue.open()
    queue.put(numbered(10))
    leased = queue.get(6)
    queue.ack(leased[:3])
    queue.fail(leased[3:4], "broken", retryable=False)
    counts = queue.counts()
    assert (counts.pending, counts.leased, counts.done, counts.failed) == (4, 2, 3, 1)
    assert counts == (4, 2, 3, 1)


def test_unsettled_refs(full_queue: Implementation) -> None:
    """Those of some ids that are pending or leased; what is done, failed or unknown is left out."""
    queue = full_queue.open()
    queue.put(numbered(6))
    leased = queue.get(4)
    queue.ack(leased[:1])
    queue.fail(leased[1:2], "broken", retryable=False)
    queue.fail(leased[2:3], "flaky", retryable=True)
    asked = [*reversed(ids(numbered(5))), "unknown"]
    assert queue.unsettled(asked) == ["s004", "s003", "s002"]
    queue.put(numbered(1))
    assert queue.unsettled(asked[3:]) == ["s000"]
    with pytest.raises(TypeError, match="sample ids"):
        queue.unsettled("s000")


def test_ack_reports_nothing_normally(full_queue: Implementation) -> None:
    """Settling leases that are held returns an empty list, whatever the verb."""
    queue = full_queue.open()
    leased = leased_once(queue, 5)
    assert queue.ack(leased[:1]) == []
    assert queue.fail(leased[1:2], "flaky", retryable=True) == []
    assert queue.fail(leased[2:3], "broken", retryable=False) == []
    assert queue.release(leased[3:4]) == []
    assert queue.renew(leased[4:]) == []


def test_ack_with_a_step(full_queue: Implementation) -> None:
    """An ack may name the optimizer step."""
    queue = full_queue.open()
    assert queue.ack(leased_once(queue), step=17) == []
    assert queue.counts().done == 1


def test_without_keep_done_nothing_stays(full_queue: Implementation) -> None:
    """keep_done=False: an acked ref is in no state, and may be put again."""
    queue = full_queue.open(keep_done=False)
    assert queue.ack(leased_once(queue)) == []
    assert queue.counts() == (0, 0, 0, 0)
    assert len(leased_once(queue)) == 1


def test_a_late_ack_settles_what_is_pending_again(full_queue: Implementation) -> None:
    """The lease was lost, the id is returned; nobody else has the ref yet, and the work is done all the same."""
    queue = full_queue.open()
    leased = leased_once(queue)
    expire(full_queue)
    assert queue.reclaim() == 1
    assert queue.ack(leased) == ["s000"]
    assert queue.counts() == (0, 0, 1, 0)
    assert queue.get(1) == []


@pytest.mark.parametrize("verb", ["renew", "release", "fail", "fail for good"])
def test_other_verbs_report_lost_leases(full_queue: Implementation, verb: str) -> None:
    """renew, release and fail of a lease that was lost return its id, and leave the ref pending."""
    queue = full_queue.open()
    leased = leased_once(queue)
    expire(full_queue)
    assert queue.reclaim() == 1
    calls = {
        "renew": lambda: queue.renew(leased),
        "release": lambda: queue.release(leased),
        "fail": lambda: queue.fail(leased, "late", retryable=True),
        "fail for good": lambda: queue.fail(leased, "late", retryable=False),
    }
    assert calls[verb]() == ["s000"]
    assert queue.counts() == (1, 0, 0, 0)


def test_a_ref_leased_anew_is_not_lost(full_queue: Implementation) -> None:
    """A handle that lost a lease and got the ref again holds it, and may settle it."""
    queue = full_queue.open()
    leased_once(queue)
    expire(full_queue)
    again = queue.get(1)
    assert ids(again) == ["s000"]
    assert queue.renew(again) == []
    assert queue.ack(again) == []


def test_max_attempts_by_fail(full_queue: Implementation) -> None:
    """fail(retryable=True) counts an attempt, and the last one makes a dead letter."""
    queue = full_queue.open(max_attempts=3)
    queue.put(numbered(1))
    for _ in range(3):
        assert queue.fail(queue.get(1), "flaky", retryable=True) == []
    assert queue.counts() == (0, 0, 0, 1)
    assert queue.get(1) == []


def test_max_deliveries(full_queue: Implementation) -> None:
    """An expired lease is no attempt, and has a limit of its own: preemptions do not use up a good ref's attempts."""
    queue = full_queue.open(max_attempts=1, max_deliveries=3)
    leased_once(queue)
    for _ in range(2):
        expire(full_queue)
        assert len(queue.get(1)) == 1
    expire(full_queue)
    assert queue.get(1) == []
    assert queue.counts() == (0, 0, 0, 1)


def test_release_counts_no_attempt(full_queue: Implementation) -> None:
    """Releasing a ref any number of times never makes it a dead letter."""
    queue = full_queue.open(max_attempts=1)
    queue.put(numbered(1))
    for _ in range(4):
        assert queue.release(queue.get(1)) == []
    assert queue.counts() == (1, 0, 0, 0)


def test_without_max_attempts_a_ref_is_retried_forever(full_queue: Implementation) -> None:
    """max_attempts=None makes no dead letters of retryable failures."""
    queue = full_queue.open()
    queue.put(numbered(1))
    for _ in range(50):
        queue.fail(queue.get(1), "flaky", retryable=True)
    assert queue.counts() == (1, 0, 0, 0)


def test_a_new_life_starts_without_attempts(full_queue: Implementation) -> None:
    """A ref that is put again after its ack has its full number of attempts."""
    queue = full_queue.open(max_attempts=2)
    queue.put(numbered(1))
    queue.fail(queue.get(1), "flaky", retryable=True)
    queue.ack(queue.get(1))
    queue.put(numbered(1))
    queue.fail(queue.get(1), "flaky", retryable=True)
    assert queue.counts().pending == 1


@pytest.mark.parametrize("verb", ["release", "expire"])
def test_what_comes_back_goes_to_the_tail(full_queue: Implementation, verb: str) -> None:
    """Released and reclaimed refs are delivered after those that were pending already."""
    queue = full_queue.open()
    queue.put(numbered(3))
    leased = queue.get(1)
    if verb == "release":
        queue.release(leased)
    else:
        expire(full_queue)
        assert queue.reclaim() == 1
    assert ids(queue.get(3)) == ["s001", "s002", "s000"]


def test_renew_starts_the_timeout_anew(full_queue: Implementation) -> None:
    """A renewed lease outlives its first timeout, and expires one timeout after the renewal."""
    queue = full_queue.open()
    leased = leased_once(queue, 2)
    full_queue.clock.advance(LEASE_S * 0.75)
    assert queue.renew(leased[:1]) == []
    full_queue.clock.advance(LEASE_S * 0.5)
    assert ids(queue.get(2)) == ["s001"]
    full_queue.clock.advance(LEASE_S * 0.625)
    assert ids(queue.get(2)) == ["s000"]


def test_renew_of_an_unknown_id(full_queue: Implementation) -> None:
    """renew returns the ids that this handle does not lease."""
    queue = full_queue.open()
    assert queue.renew(make_refs("never-put")) == ["never-put"]


def test_reclaim_returns_how_many(full_queue: Implementation) -> None:
    """reclaim() brings back what has expired, and counts it."""
    queue = full_queue.open()
    leased_once(queue, 4)
    assert queue.reclaim() == 0
    expire(full_queue)
    assert queue.reclaim() == 4
    assert queue.counts() == (4, 0, 0, 0)


def test_release_and_fail_of_pending_refs(full_queue: Implementation) -> None:
    """release and a retryable fail leave a pending ref as it is; failing for good takes it out."""
    queue = full_queue.open()
    queue.put(numbered(2))
    assert queue.release(make_refs("s000")) == []
    assert queue.fail(make_refs("s000"), "flaky", retryable=True) == []
    assert queue.counts() == (2, 0, 0, 0)
    assert queue.fail(make_refs("s000"), "broken", retryable=False) == []
    assert queue.counts() == (1, 0, 0, 1)


def test_ack_of_a_pending_ref_by_the_same_handle(full_queue: Implementation) -> None:
    """A handle that has given a ref back settles it by ack where it failed, and not where it was merely released."""
    queue = full_queue.open()
    queue.put(numbered(3))
    leased = queue.get(2)
    queue.fail(leased[:1], "flaky", retryable=True)
    queue.release(leased[1:])
    assert queue.ack(make_refs("s000", "s001", "s002")) == []
    assert queue.counts() == (2, 0, 1, 0)
    assert ids(queue.get(3)) == ["s002", "s001"]


def test_a_late_ack_leaves_the_next_life_alone(full_queue: Implementation) -> None:
    """What was acknowledged and put again is delivered again, whatever a lease on its earlier life comes to."""
    queue = full_queue.open()
    late = leased_once(queue)
    expire(full_queue)
    assert queue.ack(queue.get(1)) == []
    queue.put(numbered(1))
    queue.ack(late)
    queue.ack(make_refs("s000"))
    assert queue.counts() == (1, 0, 1, 0)
    assert ids(queue.get(1)) == ["s000"]


def test_as_a_context_manager(full_queue: Implementation) -> None:
    """A queue is its own context manager."""
    with full_queue.open() as queue:
        assert len(leased_once(queue)) == 1


def test_bad_refs_leave_good_ones_unput(full_queue: Implementation) -> None:
    """One bad ref refuses its whole batch: nothing of it is queued."""
    queue = full_queue.open()
    with pytest.raises(ValueError):
        queue.put([make_ref("good"), make_ref("bad", metadata={"x": float("nan")})])
    assert queue.counts() == (0, 0, 0, 0)


class Pair:
    """Two handles of a file queue with one clock between them."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = FakeClock()
        options = {"lease_timeout_s": LEASE_S, "clock": self.clock, "durable": False, **options}
        self.first: FileSampleRefQueue[Any] = FileSampleRefQueue(path, **options)
        self.second: FileSampleRefQueue[Any] = FileSampleRefQueue(path, **options)

    def overtaken(self) -> list[Any]:
        """A ref that the first handle leased, lost to its timeout, and the second one leases now."""
        leased = leased_once(self.first)
        self.clock.advance(LEASE_S + 1)
        assert ids(self.second.get(1)) == ids(leased)
        return leased

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.first.close()
        self.second.close()


@pytest.mark.parametrize("verb", ["ack", "fail", "fail for good", "release", "renew"])
def test_a_late_call_cannot_touch_another_lease(tmp_path: Path, verb: str) -> None:
    """The new owner's lease stands, whatever the handle that lost it calls, and the id is returned."""
    with Pair(tmp_path / "queue") as pair:
        late = pair.overtaken()
        calls = {
            "ack": lambda: pair.first.ack(late),
            "fail": lambda: pair.first.fail(late, "late", retryable=True),
            "fail for good": lambda: pair.first.fail(late, "late", retryable=False),
            "release": lambda: pair.first.release(late),
            "renew": lambda: pair.first.renew(late),
        }
        assert calls[verb]() == ["s000"]
        assert pair.second.counts() == (0, 1, 0, 0)
        assert pair.second.ack(late) == []
        assert pair.second.counts() == (0, 0, 1, 0)


def test_renewing_with_another_handle_reports_lost(tmp_path: Path) -> None:
    """renew is for the handle that leases: another one gets the id back."""
    with Pair(tmp_path / "queue") as pair:
        leased = leased_once(pair.first)
        assert pair.second.renew(leased) == ["s000"]
        assert pair.first.renew(leased) == []


def test_release_by_a_handle_that_never_leased(tmp_path: Path) -> None:
    """An operator's handle gives back another's lease; the former owner then finds it lost."""
    with Pair(tmp_path / "queue") as pair:
        leased = leased_once(pair.first)
        assert pair.second.release(leased) == []
        assert pair.second.counts() == (1, 0, 0, 0)
        assert pair.first.renew(leased) == ["s000"]


def test_attempts_are_the_ref_s_not_the_handle_s(tmp_path: Path) -> None:
    """Attempts that different handles count add up."""
    with Pair(tmp_path / "queue", max_attempts=2) as pair:
        pair.first.put(numbered(1))
        pair.first.fail(pair.first.get(1), "flaky", retryable=True)
        pair.second.fail(pair.second.get(1), "flaky", retryable=True)
        assert pair.first.counts() == (0, 0, 0, 1)


def test_a_skipped_put_leaves_a_lost_lease_lost(full_queue: Implementation) -> None:
    """Putting an id that is pending again changes nothing, not even that its lease was lost."""
    queue = full_queue.open()
    leased = leased_once(queue)
    expire(full_queue)
    assert queue.reclaim() == 1
    queue.put(numbered(1))
    assert queue.ack(leased) == ["s000"]
